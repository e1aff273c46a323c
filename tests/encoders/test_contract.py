"""Every encoder family keeps one contract. Tiny random models; the checkpoints' own sizes change nothing here."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from steermoe.encoders import wrap
from steermoe.encoders.attach import attach
from steermoe.steering import Steering

from .families import FIRST, SECOND, build

Speech = Callable[..., np.ndarray]
ALL = {**FIRST, **SECOND}
SECONDS = (1.2, 0.43, 0.9)


@pytest.fixture(params=ALL, scope="module")
def frames(request: pytest.FixtureRequest) -> Any:
    return wrap(*build(ALL[request.param]))


def finished(frames: Any, h: Tensor) -> Tensor:
    return h if frames.final_norm is None else frames.final_norm(h)


def run(frames: Any, clips: list[np.ndarray]) -> list[Tensor]:
    h, lengths = frames(*frames.features(clips))
    return [row[:n] for row, n in zip(finished(frames, h), lengths.tolist(), strict=True)]


def steering(frames: Any, scale: float = 0.5) -> Steering:
    torch.manual_seed(1)
    made = Steering(len(frames.layers), 2, frames.width, scale)
    with torch.no_grad():
        made.vectors.normal_()
    return made


def plain(frames: Any, clip: np.ndarray) -> Tensor:
    """The encoder as its documentation calls it."""
    options = {"return_attention_mask": True} if frames.encoder.config.model_type == "audioflamingo3_encoder" else {}
    inputs = dict(frames.extractor(clip, sampling_rate=16_000, return_tensors="pt", **options))
    if "attention_mask" in inputs and options:
        inputs["input_features_mask"] = inputs.pop("attention_mask")
    return frames.encoder(**inputs).last_hidden_state[0]


@torch.no_grad()
def test_equals_the_plain_encoder(frames: Any, speech: Speech) -> None:
    clip = speech(4.0 if frames.encoder.config.model_type == "whisper" else 1.1)
    theirs, (ours,) = plain(frames, clip), run(frames, [clip])
    assert len(ours) <= len(theirs)
    assert torch.allclose(ours, theirs[: len(ours)], atol=1e-5)


@torch.no_grad()
def test_scale_zero_is_the_plain_encoder_and_removal_restores(frames: Any, speech: Speech) -> None:
    clips, module = [speech(1.0)], steering(frames)
    (before,) = run(frames, clips)
    attached = attach(frames.layers, module)
    (steered,) = run(frames, clips)
    with module.disabled():
        assert torch.equal(run(frames, clips)[0], before)
    attached.remove()
    assert torch.equal(run(frames, clips)[0], before)
    assert steered.shape == before.shape
    assert not torch.allclose(steered, before, atol=1e-3)


def test_every_vector_gets_gradient(frames: Any, speech: Speech) -> None:
    module = steering(frames)
    attached = attach(frames.layers, module)
    try:
        h, lengths = frames.leave(*frames.enter(*frames.features([speech(0.8), speech(0.5)]), 0), 0)
        rows = finished(frames, h)
        sum(
            (row[:n] * torch.randn_like(row[:n])).sum() for row, n in zip(rows, lengths.tolist(), strict=True)
        ).backward()
    finally:
        attached.remove()
    for parameter in module.parameters():
        assert parameter.grad is not None
        assert (parameter.grad.flatten(1) if parameter.ndim > 1 else parameter.grad[:, None]).abs().sum(1).min() > 0
    assert module.vectors.grad.abs().sum(-1).min() > 0  # each of the L N vectors
    assert all(p.grad is None for p in frames.parameters())


@torch.no_grad()
def test_padding_changes_nothing(frames: Any, speech: Speech) -> None:
    clips = [speech(s, seed=i) for i, s in enumerate(SECONDS)]
    attached = attach(frames.layers, steering(frames))
    try:
        together, alone = run(frames, clips), [run(frames, [clip])[0] for clip in clips]
    finally:
        attached.remove()
    for one, other in zip(together, alone, strict=True):
        assert one.shape == other.shape
        assert torch.allclose(one, other, atol=2e-4), (one - other).abs().max()


@torch.no_grad()
def test_lengths_are_true_for_50_random_lengths(frames: Any, speech: Speech) -> None:
    rng = np.random.default_rng(0)
    for samples in rng.integers(1600, 20_000, 50).tolist():
        features, lengths = frames.features([speech(2.0)[:samples]])
        h, out = frames(features, lengths)
        if getattr(frames, "fixed", False):  # a whole window comes out: as long as the sound in it, to a frame
            assert 0 < int(out) <= h.shape[1]
            told = samples / 16_000 * frames.rate
            assert int(out) == h.shape[1] or abs(int(out) - told) <= 2
        else:
            assert int(out) == h.shape[1]


@torch.no_grad()
def test_entering_below_and_above_the_layers_is_the_same(frames: Any, speech: Speech) -> None:
    inputs = frames.features([speech(0.7), speech(1.0)])
    whole, lengths = frames(*inputs)
    for first in (0, 1, len(frames.layers)):
        h, out = frames.leave(*frames.enter(*inputs, first), first)
        assert torch.equal(out, lengths)
        assert torch.allclose(h, whole, atol=1e-5)


@torch.no_grad()
def test_copies_and_pickles_steer_themselves(frames: Any, speech: Speech) -> None:
    module = steering(frames)
    pair = nn.ModuleDict({"frames": frames, "steering": module})
    attached = attach(frames.layers, module)
    try:
        (before,) = run(frames, [speech(0.6)])
        twins = [copy.deepcopy(pair)]
        if not any(isinstance(m, ParametrizationList) for m in pair.modules()):  # torch itself pickles no weight norm
            twins.append(pickle.loads(pickle.dumps(pair)))
        for twin in twins:
            assert torch.equal(run(twin["frames"], [speech(0.6)])[0], before)
            twin["steering"].vectors.zero_()
            assert not torch.allclose(run(twin["frames"], [speech(0.6)])[0], before, atol=1e-3)
        assert torch.equal(run(frames, [speech(0.6)])[0], before)
    finally:
        attached.remove()


@torch.no_grad()
def test_what_is_longer_than_the_window_is_refused(frames: Any, speech: Speech) -> None:
    with pytest.raises(ValueError, match="longer than the window"):
        frames.features([np.zeros(int(frames.window * 16_000) + 1, np.float32)])

"""Whisper at any length against transformers' own forward, and the hooks that steer it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from steermoe.encoders import wrap
from steermoe.encoders.attach import attach
from steermoe.encoders.discover import find_layers
from steermoe.encoders.whisper import WhisperFrames
from steermoe.errors import UsageError
from steermoe.inference.ears import Ears
from steermoe.pretrained import load_encoder, load_feature_extractor

Speech = Callable[..., np.ndarray]


@pytest.fixture(scope="module")
def frames(pair: Any) -> WhisperFrames:
    return wrap(load_encoder(pair.encoder, torch.float32), load_feature_extractor(pair.encoder))


@torch.no_grad()
def run(frames: WhisperFrames, clips: list[np.ndarray]) -> tuple[Tensor, list[int]]:
    h, lengths = frames(*frames.features(clips))
    return h, lengths.tolist()


def test_contract(frames: WhisperFrames, speech: Speech) -> None:
    assert len(frames.layers) == 2 and frames.width == 32 and frames.sampling_rate == 16_000
    assert frames.window == 30.0
    features, lengths = frames.features([speech(1.0), speech(0.503, 1)])
    assert features.shape == (2, 80, 100) and lengths.tolist() == [100, 50]
    h, out_lengths = frames(features, lengths)
    assert h.shape == (2, 50, 32) and out_lengths.tolist() == [50, 25]


@torch.no_grad()
def equals_transformers(frames: WhisperFrames, clip: np.ndarray) -> None:
    features, lengths = frames.features([clip])
    assert features.shape[2] == 3000
    ours = frames.final_norm(frames(features, lengths)[0])
    assert torch.equal(ours, frames.encoder(features).last_hidden_state)


def test_a_full_window_equals_transformers(frames: WhisperFrames, speech: Speech) -> None:
    equals_transformers(frames, speech(30.0))


def test_a_full_window_of_the_real_one_equals_transformers(real_pair: Ears, speech: Speech) -> None:
    with real_pair.model.steering.disabled():
        equals_transformers(real_pair.model.frames, speech(30.0))


def test_pad_to_window_equals_transformers(frames: WhisperFrames, speech: Speech) -> None:
    equals_transformers(WhisperFrames(frames.encoder, frames.extractor, pad_to_window=True), speech(2.0))


def test_silence_is_heard_and_not_read(frames: WhisperFrames, speech: Speech) -> None:
    quiet = WhisperFrames(frames.encoder, frames.extractor, silence=0.5)
    assert quiet.window == frames.window - 0.5
    clips = [speech(0.73), speech(1.2, 1), speech(0.03, 2)]
    h, lengths = run(quiet, clips)
    plain, heard = run(frames, [np.pad(clip, (0, max(0, 1600 - len(clip)) + 8000)) for clip in clips])
    assert lengths == [n - 25 for n in heard] == run(frames, clips)[1]
    assert h.shape[1] == max(lengths) and torch.equal(h, plain[:, : h.shape[1]])
    assert not torch.allclose(h[0, :30], run(frames, clips)[0][0, :30])
    run(quiet, [speech(29.5)])
    with pytest.raises(ValueError, match=r"longer than the window of 29\.5 s"):
        quiet.features([speech(29.6)])


def test_features_are_the_extractors_own(frames: WhisperFrames, speech: Speech) -> None:
    clip = speech(2.0)
    own = frames.extractor(clip, sampling_rate=16_000, return_tensors="pt", padding="do_not_pad")["input_features"]
    assert torch.equal(frames.features([clip])[0], own)


@pytest.mark.parametrize("samples", [1, 200, 1599, 1600, 1601, 479_999, 480_000])
def test_every_length_up_to_the_window(frames: WhisperFrames, speech: Speech, samples: int) -> None:
    h, lengths = run(frames, [speech(samples / 16_000)])
    mels = max(samples, 1600) // 160
    assert h.shape[1] == lengths[0] == -(-mels // 2) and h.isfinite().all()


def test_what_is_longer_than_the_window_is_refused(frames: WhisperFrames, speech: Speech) -> None:
    with pytest.raises(ValueError, match="window"):  # callers cut it; nothing is dropped here
        frames.features([speech(30.01)])


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e30])
def test_padding_is_never_read(frames: WhisperFrames, speech: Speech, poison: float) -> None:
    clips = [speech(1.03), speech(0.2, 1), speech(0.61, 2)]
    features, lengths = frames.features(clips)
    bad = features.masked_fill(torch.arange(features.shape[2]) >= lengths[:, None, None], poison)
    with torch.no_grad():
        good, out = frames(features, lengths)
        poisoned, _ = frames(bad, lengths)
    assert bad.isfinite().all() == (poison == 1e30)
    for i, n in enumerate(out.tolist()):
        assert torch.equal(poisoned[i, :n], good[i, :n])
        alone = run(frames, [clips[i]])[0][0]
        torch.testing.assert_close(good[i, :n], alone, rtol=1e-4, atol=1e-5)


def test_layers_are_found(frames: WhisperFrames) -> None:
    encoder = frames.encoder
    assert find_layers(encoder) == find_layers(encoder, "layers") == list(encoder.layers)
    for wrong in ("layer", "conv1", "layers.0.fc1"):
        with pytest.raises(UsageError, match=f"layers='{wrong}': no list of layers there; this encoder has layers"):
            find_layers(encoder, wrong)
    with pytest.raises(UsageError, match="Linear does not say where its layers are"):
        find_layers(nn.Linear(2, 2))


def test_padding_to_a_window_is_whispers_alone() -> None:
    class Other:
        class config:
            model_type = "wave2vec3"

    for name in ("pad_to_window", "silence"):
        with pytest.raises(UsageError, match=f"{name} is Whisper's; 'wave2vec3' takes its input as"):
            wrap(Other(), None, **{name: True})


class Block(nn.Module):
    """A layer; ``as_tuple`` returns it as some families do."""

    def __init__(self, as_tuple: bool) -> None:
        super().__init__()
        self.as_tuple = as_tuple

    def forward(self, h: Tensor) -> Any:
        return (h + 1, "attention") if self.as_tuple else h + 1


@pytest.mark.parametrize("as_tuple", [False, True])
def test_hooks_come_and_go(as_tuple: bool) -> None:
    layers = nn.ModuleList(Block(as_tuple) for _ in range(3))
    before = list(layers.state_dict())

    def first(out: Any) -> Tensor:
        assert not as_tuple or out[1] == "attention"
        return out[0] if as_tuple else out

    attached = attach(layers, lambda h, i: h * 10 + i, [2, 0])
    zero = torch.zeros(1)
    assert [float(first(layer(zero))) for layer in layers] == [11, 1, 10]
    twin = copy.deepcopy(layers)
    assert float(first(twin[2](zero))) == 10
    attached.remove()
    assert [float(first(layer(zero))) for layer in layers] == [1, 1, 1]
    assert not any(layer._forward_hooks for layer in layers) and list(layers.state_dict()) == before


def test_recorded_hidden_states_are_the_steered_ones(make: Callable[..., Ears], speech: Speech) -> None:
    frames = make().model.frames
    features, _ = frames.features([speech(30.0)])
    with torch.no_grad():
        states = frames.encoder(features, output_hidden_states=True).hidden_states
        second = frames.encoder.layers[1](states[1], None)
    assert torch.equal(frames.final_norm(second), states[-1]) or torch.equal(second, states[-1])

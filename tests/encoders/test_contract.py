"""Every encoder family keeps one contract. Tiny random models; the checkpoints' own sizes change nothing here."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList
from transformers import PretrainedConfig
from transformers.modeling_outputs import BaseModelOutput

from steermoe.adapter import load_tensors
from steermoe.config import SteerMoEConfig
from steermoe.encoders import FAMILIES, wrap
from steermoe.encoders.attach import attach, checkpointed
from steermoe.encoders.frames import EncoderFrames
from steermoe.errors import UsageError
from steermoe.model import SteerMoEForConditionalGeneration
from steermoe.pretrained import load_encoder, load_feature_extractor, load_llm
from steermoe.steering import Steering

from ..llms.families import FAMILIES as LLMS
from .families import FIRST, REFUSED, SECOND, build

Speech = Callable[..., np.ndarray]
ALL = {**FIRST, **SECOND}
SECONDS = (1.2, 0.43, 0.9, *(0.5 + 0.02 * k for k in range(8)))  # a strided convolution leaks at some lengths only


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
    if frames.encoder.config.model_type == "qwen3_asr_encoder":  # a whole window, of which it takes what the mask has
        inputs = frames.extractor(clip, sampling_rate=16_000, return_attention_mask=True, return_tensors="pt")
        return frames.encoder(inputs["input_features"], inputs["attention_mask"]).last_hidden_state
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


def gradients(frames: Any, clip: np.ndarray) -> list[Tensor]:
    module = steering(frames)
    attached = attach(frames.layers, module)
    try:
        h, _ = frames.leave(*frames.enter(*frames.features([clip]), 0), 0)
        finished(frames, h).square().sum().backward()
    finally:
        attached.remove()
    return [p.grad for p in module.parameters() if p.grad is not None]


def test_checkpointed_gradients_are_the_same(frames: Any, speech: Speech) -> None:
    calls: list[int] = []
    handle = frames.layers[1].register_forward_pre_hook(lambda *_: calls.append(1))
    inner = next(m for m in frames.layers[1].modules() if isinstance(m, nn.LayerNorm))
    handle_inner = inner.register_forward_pre_hook(lambda *_: calls.append(100))
    try:
        kept = gradients(frames, speech(0.7))
        once, calls[:] = sum(calls), []
        with checkpointed(frames.layers):
            anew = gradients(frames, speech(0.7))
    finally:
        handle.remove()
        handle_inner.remove()
    assert once < sum(calls)  # the layer's inside ran again in the backward pass
    assert sum(c == 1 for c in calls) == 1  # its hooks did not
    assert all(
        torch.allclose(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max())) for a, b in zip(anew, kept, strict=True)
    )
    assert all("forward" not in layer.__dict__ for layer in frames.layers)


def test_compiled_is_the_same(frames: Any, speech: Speech) -> None:
    attached = attach(frames.layers, steering(frames))
    try:
        with torch.no_grad():
            (plainly,) = run(frames, [speech(0.8)])
            torch._dynamo.reset()
            frames.forward = torch.compile(frames.forward, backend="eager")
            try:
                (compiled,) = run(frames, [speech(0.8)])
            finally:
                del frames.forward
    finally:
        attached.remove()
    assert torch.allclose(compiled, plainly, atol=1e-4)


def test_three_steps_leave_the_encoder_as_it_was_and_the_adapter_round_trips(
    frames: Any, pair: Any, speech: Speech, tmp_path: Any
) -> None:
    config = SteerMoEConfig(encoder="one", llm=pair.llm, num_experts=2, projector="linear", prompt_mode="raw")
    torch.manual_seed(0)
    model = SteerMoEForConditionalGeneration(config, frames, load_llm(pair.llm, torch.float32)).train()
    try:
        before = {k: v.clone() for k, v in [*frames.named_parameters(), *frames.named_buffers()]}
        fresh = {k: v.clone() for k, v in model.adapter_state().items()}
        features, lengths = frames.features([speech(0.6), speech(0.9)])
        optimizer = torch.optim.AdamW(model.trainable().values(), lr=1e-2)
        for _ in range(3):
            ids = torch.tensor([[model.audio_token_id, 7, 8, 9]] * 2)
            loss = model(ids, labels=ids.where(ids < 9, -100), input_features=features, feature_lengths=lengths,
                         audio_windows=torch.tensor([1, 1])).loss  # fmt: skip
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        assert all(torch.equal(v, before[k]) for k, v in [*frames.named_parameters(), *frames.named_buffers()])
        assert all(not torch.equal(v, fresh[k]) for k, v in model.adapter_state().items())
        ends = {end: {"name": end, "weights": ["0"]} for end in ("encoder", "llm")}
        model.pair_fingerprint = ends
        model.save_adapter(tmp_path)
        learned = {k: v.clone() for k, v in model.adapter_state().items()}
        for tensor in model.trainable().values():
            tensor.data.zero_()
        load_tensors(model, tmp_path)
        assert all(torch.equal(v, learned[k]) for k, v in model.adapter_state().items())
    finally:
        assert model.attached is not None
        model.attached.remove()


PARTS = ("fireredasr", "whisper", "moonshine", "seamless_m4t", "speech_to_text")
SINGLE = [name for name in ALL if name.partition(",")[0] not in PARTS]


@pytest.mark.parametrize("name", SINGLE)
@torch.no_grad()
def test_loads_from_a_folder(name: str, speech: Speech, tmp_path: Any) -> None:
    """Those that are part of a larger model are in tests/pretrained."""
    encoder, extractor = build(ALL[name])
    encoder.save_pretrained(tmp_path)
    extractor.save_pretrained(tmp_path)
    again = wrap(load_encoder(str(tmp_path), torch.float32), load_feature_extractor(str(tmp_path)))
    assert torch.allclose(run(again, [speech(0.6)])[0], run(wrap(encoder, extractor), [speech(0.6)])[0], atol=1e-5)


@pytest.mark.parametrize("name", ["wav2vec2", "parakeet", "whisper"])
@torch.no_grad()
def test_half_precision_hears(name: str, speech: Speech) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        encoder, extractor = build(ALL[name])
        frames = wrap(encoder.to(dtype), extractor)
        (h,) = run(frames, [speech(0.6)])
        assert h.dtype == dtype
        assert torch.isfinite(h).all()


class Unheard(nn.Module):
    """A family that transformers does not have: strided convolution, two layers that add, no mask."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.config = PretrainedConfig()
        self.config.model_type = "unheard"
        self.front = nn.Conv1d(1, width, 400, 320)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(2))

    def forward(self, input_values: Tensor) -> BaseModelOutput:
        h = self.front(input_values[:, None]).transpose(1, 2)
        for block in self.blocks:
            h = h + block(h).tanh()
        return BaseModelOutput(last_hidden_state=h)


def unheard() -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    return Unheard().eval().requires_grad_(False), build(FIRST["moonshine"])[1]


@torch.no_grad()
def test_a_new_family_without_code(speech: Speech) -> None:
    """Only where its layers are must be said, since nothing tells."""
    encoder, extractor = unheard()
    with pytest.raises(
        UsageError, match=r"Unheard does not say where its layers are; .*encoder_layers: encoder.layers"
    ):
        wrap(encoder, extractor)
    frames = wrap(encoder, extractor, layers="blocks")
    assert (len(frames.layers), frames.width, frames.out_width, frames.pads) == (2, 24, 24, False)
    clips = [speech(0.5), speech(1.0)]
    together, alone = run(frames, clips), [run(frames, [clip])[0] for clip in clips]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(together, alone, strict=True))


@torch.no_grad()
def test_a_new_family_with_one_small_class(speech: Speech, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the probe cannot find out: here, how long a window may be, and how many frames a clip has."""

    class UnheardFrames(EncoderFrames):
        def window_seconds(self) -> float:
            return 10.0

        def output_lengths(self, length: int) -> list[int]:
            return [(length - 400) // 320 + 1]

    monkeypatch.setitem(FAMILIES, "unheard", UnheardFrames)
    frames = wrap(*unheard(), layers="blocks")
    assert (frames.window, frames.rate) == (10.0, 50.0)
    _, lengths = frames(*frames.features([speech(0.5), speech(1.0)]))
    assert lengths.tolist() == [24, 49]
    with pytest.raises(UsageError, match=r"layers='block': no list of layers there; this encoder has blocks"):
        wrap(*unheard(), layers="block")


def test_layers_that_cannot_be_steered_are_named() -> None:
    """A list of layers of several widths: the convolutions of a front end."""
    with pytest.raises(UsageError, match=r"Wav2Vec2Model: of its 3 layers .* needs \(batch, time, width\) from each"):
        wrap(*build(FIRST["wav2vec2"]), layers="feature_extractor.conv_layers")


@pytest.mark.parametrize("name", [name for name, (make, _, _) in REFUSED.items() if make])
def test_what_cannot_be_steered_is_refused(name: str) -> None:
    make, line, _ = REFUSED[name]
    assert make is not None
    with pytest.raises(UsageError, match=line):
        wrap(*make(), layers="audio_encoder.layers")


def test_the_support_table_has_every_family() -> None:
    table = (Path(__file__).parents[2] / "docs" / "support.md").read_text()
    for family in (*ALL, *REFUSED, *LLMS):
        (row,) = (line for line in table.splitlines() if line.startswith(f"| {family} |"))
        if family not in REFUSED:
            passed, of = row.split("|")[3].split(" of ")
            assert int(passed) == int(of) > 8, row


@pytest.mark.parametrize("name", ["fireredasr", "wav2vec2-bert", "speech_to_text"])
def test_the_rate_is_that_of_a_long_clip(name: str, speech: Speech) -> None:
    """Spectra lose an edge, once a clip and not once a second."""
    frames = wrap(*build({**FIRST, **SECOND}[name]))
    _, lengths = frames(*frames.features([speech(2.0), speech(8.0)]))
    assert frames.rate == pytest.approx(float(lengths[1] - lengths[0]) / 6, abs=0.2) and frames.rate in (25.0, 50.0)


def test_an_encoder_of_another_rate_is_refused() -> None:
    encoder, extractor = build(FIRST["wav2vec2"])
    extractor.sampling_rate = 24_000
    with pytest.raises(UsageError, match="hears 24000 Hz, and audio comes to encoders at 16000 Hz"):
        wrap(encoder, extractor)

"""FireRedASR's encoder and filter banks against the published code, run and remembered; test_contract.py has the rest.

The numbers below were computed by the packages fireredasr 0.0.2 and kaldi-native-fbank 1.23.0. The tests that run
these packages themselves are skipped where they are not installed. They need none of their dependencies:
``pip install --no-deps fireredasr kaldi-native-fbank kaldiio``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from steermoe.encoders import wrap
from steermoe.encoders.fireredasr import (
    FireRedConfig,
    FireRedEncoder,
    FireRedFeatureExtractor,
    FireRedFrames,
    shifted,
)
from steermoe.errors import UsageError

from .families import build, firered, firered_fbanks

Speech = Callable[..., np.ndarray]


def valid(lengths: Tensor, frames: int) -> Tensor:
    return (torch.arange(frames) < lengths[:, None]).long()


# --- the encoder


@pytest.mark.parametrize("kind", ["sdpa", "eager"])
def test_equals_the_published_code(kind: str) -> None:
    published = pytest.importorskip("fireredasr.models.module.conformer_encoder")
    torch.manual_seed(0)
    theirs = published.ConformerEncoder(80, n_layers=4, n_head=4, d_model=64, kernel_size=33).eval()
    with torch.no_grad():  # a fresh one is nearly linear
        for parameter in theirs.parameters():
            if parameter.ndim > 1:
                parameter.mul_(2)
    ours = FireRedEncoder(FireRedConfig(80, 4, 4, 64, 33, 5000)).eval()
    assert torch.equal(ours.positional_encoding.pe, theirs.positional_encoding.pe)
    ours.load_state_dict(theirs.state_dict())
    ours.set_attn_implementation(kind)

    lengths = torch.tensor([203, 102, 53])
    mask = valid(lengths, 203)
    x = torch.randn(3, 203, 80) * mask[..., None]
    x.requires_grad_()
    expected, out, _ = theirs(x, lengths)
    assert out.tolist() == [-(-n // 4) for n in lengths.tolist()]
    made = ours(x, mask).last_hidden_state
    for i, n in enumerate(out.tolist()):
        torch.testing.assert_close(made[i, :n], expected[i, :n], rtol=0, atol=1e-4)
        alone, _, _ = theirs(x[i : i + 1, : lengths[i]], lengths[i : i + 1])
        torch.testing.assert_close(ours(x[i : i + 1, : lengths[i]]).last_hidden_state, alone, rtol=0, atol=1e-4)
    weights = torch.randn_like(expected[1, : out[1]])
    gradients = [torch.autograd.grad((h[1, : out[1]] * weights).sum(), x)[0][1] for h in (made, expected)]
    torch.testing.assert_close(*(g[: lengths[1]] for g in gradients), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def settled(module: nn.Module) -> nn.Module:
    """Weights that any language can write down."""
    for i, (_, p) in enumerate(sorted(module.named_parameters())):
        values = torch.sin(torch.arange(p.numel(), dtype=torch.float64) * (1 + i / 7)).reshape(p.shape)
        p.copy_(values + (p.ndim == 1))
    return module.eval()


REMEMBERED = {
    (0, 0): [0.44884, 0.76107, 2.97675, 0.15391, 0.62912, 1.23705, -0.75024, 1.15096],
    (0, 9): [1.57604, -0.25584, 3.41903, 0.74461, -0.63264, 1.24573, 0.97495, 0.93473],
    (1, 5): [0.17552, 0.85855, 3.40912, 0.16968, 1.79091, 1.15045, -0.74105, 1.05056],  # the last of a padded clip
}


@torch.no_grad()
def test_equals_what_the_published_code_computed() -> None:
    encoder = settled(FireRedEncoder(FireRedConfig(80, 2, 2, 8, 7, 5000)))
    x = torch.sin(torch.arange(2 * 37 * 80, dtype=torch.float64) ** 1.3).reshape(2, 37, 80).float()
    h = encoder(x, valid(torch.tensor([37, 22]), 37)).last_hidden_state
    assert h.shape == (2, 10, 8)
    for (clip, frame), expected in REMEMBERED.items():
        torch.testing.assert_close(h[clip, frame], torch.tensor(expected), rtol=0, atol=1e-4)


def test_distances_become_frames() -> None:
    for count in (1, 2, 7):
        x = torch.randn(2, 3, count, 2 * count - 1)
        expected = torch.stack(
            [torch.stack([x[..., i, count - 1 - i + j] for j in range(count)], -1) for i in range(count)], -2
        )
        assert torch.equal(shifted(x), expected)


@torch.no_grad()
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e30])
def test_padding_is_never_read(speech: Speech, poison: float) -> None:
    frames = wrap(*build((firered, firered_fbanks)))
    features, lengths = frames.features([speech(1.03), speech(0.2, 1)])
    good, out = frames(features, lengths)
    bad = features.masked_fill(torch.arange(features.shape[1])[:, None] >= lengths[:, None, None], poison)
    poisoned, _ = frames(bad, lengths)
    for i, n in enumerate(out.tolist()):
        assert torch.equal(poisoned[i, :n], good[i, :n])


@torch.no_grad()
def test_both_attentions_agree(speech: Speech) -> None:
    frames = wrap(*build((firered, firered_fbanks)))
    inputs = frames.features([speech(1.0), speech(0.6)])
    fused, _ = frames(*inputs)
    frames.encoder.set_attn_implementation("eager")
    plain, out = frames(*inputs)
    assert torch.allclose(fused[1, : out[1]], plain[1, : out[1]], atol=1e-4)
    assert not torch.equal(fused, plain)  # else nothing was switched


def test_frames(speech: Speech) -> None:
    frames = wrap(*build((lambda: firered(5000), firered_fbanks)))
    assert isinstance(frames, FireRedFrames) and frames.pads and not frames.divisible and frames.final_norm is None
    assert len(frames.layers) == 3 and frames.width == frames.out_width == 32 and frames.window == 30.0
    features, lengths = frames.features([speech(30.0)])
    assert features.shape == (1, 2998, 80)
    h, out = frames(features, lengths)
    assert h.shape[1] == out[0] == 750
    with pytest.raises(UsageError, match="pad_to_window is Whisper's"):
        wrap(frames.encoder, frames.extractor, pad_to_window=True)


def test_the_table_of_positions_bounds_the_window(speech: Speech) -> None:
    frames = wrap(*build((lambda: firered(50), firered_fbanks)))
    assert frames.window == 2.0
    assert frames(*frames.features([speech(2.0)]))[1].tolist() == [50]
    with pytest.raises(ValueError, match="longer than the window of 2 s"):
        frames.features([speech(2.01)])
    with pytest.raises(ValueError, match="201 spectra, but pe_maxlen reaches over 200"):
        frames.encoder(torch.zeros(1, 201, 80))


# --- its filter banks


def chirp() -> np.ndarray:
    """(1600,) int16: a rising tone, then silence."""
    time = np.arange(1600) / 16_000
    wave = (8000 * np.sin(2 * np.pi * (200 * time + 20_000 * time**2))).astype(np.int16)
    wave[1100:] = 0
    return wave


KALDI = [  # every 11th band
    [13.1239, 18.605, 23.1367, 14.5131, 5.8332, 5.3996, 4.9892, 5.8258],
    [11.4999, 10.2211, 20.8441, 23.5355, 9.084, 5.888, 5.563, 6.2667],
    [10.657, 6.1998, 11.953, 24.3544, 15.4553, 5.5902, 6.5174, 6.0817],
    [10.0654, 4.2391, 7.4389, 17.5796, 24.5005, 7.6464, 5.9413, 6.7616],
    [9.595, 3.2372, 5.3424, 10.2601, 25.7137, 10.9706, 6.1571, 7.2874],
    [8.8647, 10.8232, 12.9563, 15.2239, 19.8253, 21.0942, 19.1439, 19.0298],
    [8.3254, 11.4978, 13.6903, 15.9856, 18.9798, 21.865, 19.9467, 19.8353],
    [-15.9424] * 8,
]


def raw_fbanks(wave: np.ndarray) -> np.ndarray:
    extractor = FireRedFeatureExtractor([0.0] * 80, [1.0] * 80)
    return extractor(wave.astype(np.float32) / 2**15, sampling_rate=16_000)["input_features"][0]


def test_filter_banks_are_what_kaldi_computed() -> None:
    made = raw_fbanks(chirp())
    assert made.shape == (8, 80) and made.dtype == np.float32
    # Kaldi computes in float32: beside a loud tone, bands that hear next to nothing hold its rounding
    np.testing.assert_allclose(made[:, ::11], KALDI, atol=5e-3)


def test_filter_banks_are_kaldis(speech: Speech) -> None:
    kaldi = pytest.importorskip("kaldi_native_fbank")
    options = kaldi.FbankOptions()
    options.frame_opts.dither = 0.0
    options.mel_opts.num_bins = 80
    for seconds in (0.1, 0.777, 3.0):
        wave = (speech(seconds) * 20_000).astype(np.int16)
        bank = kaldi.OnlineFbank(options)
        bank.accept_waveform(16_000, wave.astype(np.float32).tolist())
        theirs = np.stack([bank.get_frame(i) for i in range(bank.num_frames_ready)])
        ours = raw_fbanks(wave)
        assert ours.shape == theirs.shape == (1 + (len(wave) - 400) // 160, 80)
        np.testing.assert_allclose(ours, theirs, atol=5e-3)
        assert np.abs(ours - theirs).mean() < 1e-4


def test_features_are_normalised_by_band() -> None:
    mean, inverse_std = np.linspace(3, 12, 80), np.linspace(0.2, 0.4, 80)
    made = FireRedFeatureExtractor(mean.tolist(), inverse_std.tolist())(
        chirp().astype(np.float32) / 2**15, return_attention_mask=True, return_tensors="pt"
    )
    expected = (raw_fbanks(chirp()) - mean) * inverse_std
    np.testing.assert_allclose(made["input_features"][0].numpy(), expected, atol=1e-5)
    assert made["attention_mask"].tolist() == [[1] * 8]


def test_another_sampling_rate_is_refused() -> None:
    with pytest.raises(ValueError, match="sampling_rate=8000: FireRedASR hears 16000 Hz"):
        firered_fbanks()(np.zeros(8000, np.float32), sampling_rate=8000)

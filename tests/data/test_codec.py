"""What a codec leaves of a clip: nearly all of what is heard, of the same length, and the same for the same draw."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steermoe.data import augment, load_source
from steermoe.data.augment import CODECS, RATE, codec


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    return load_source("librivox")[0].load()[: 3 * RATE]


def loudness(samples: np.ndarray) -> np.ndarray:
    """Of each 50 ms, in decibels; the quiet is all alike."""
    frames = samples[: len(samples) // 800 * 800].reshape(-1, 800)
    return 10 * np.log10(np.maximum(np.mean(frames**2, axis=1), 1e-5))


@pytest.mark.parametrize("number", range(len(CODECS)))
def test_speech_stays_speech(speech: np.ndarray, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(augment, "CODECS", [CODECS[number]] * len(CODECS))
    for seed in range(6):
        heard = codec(speech, random.Random(seed))
        assert heard.dtype == np.float32 and 0 <= len(heard) - len(speech) <= RATE // 4
        assert not np.array_equal(heard[: len(speech)], speech)
        told = loudness(speech)
        alike = max(
            np.corrcoef(loudness(heard[shift:])[: len(told)], told[: len(heard[shift:]) // 800])[0, 1]
            for shift in range(0, 2401, 400)
        )
        assert alike > 0.9  # the same rises and falls, a little later at most


@pytest.mark.parametrize("number", range(len(CODECS)))
def test_nothing_is_left_above_half_its_rate(speech: np.ndarray, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    kind, subtype, rates, strength = CODECS[number]
    assert min(rates) == 8_000
    monkeypatch.setattr(augment, "CODECS", [(kind, subtype, (8_000,), strength)] * len(CODECS))

    def above(samples: np.ndarray) -> float:
        return float(np.sum(np.abs(np.fft.rfft(samples, 4 * RATE))[int(4 * 4_300) :] ** 2))

    assert above(codec(speech, random.Random(0))) < above(speech) / 100


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 4_000), st.integers(0, 1_000))
def test_any_length_and_the_same_draw(length: int, seed: int) -> None:
    samples = np.random.default_rng(seed).normal(0, 0.1, length).astype(np.float32)
    heard = codec(samples, random.Random(seed))
    assert np.array_equal(heard, codec(samples, random.Random(seed))) and np.isfinite(heard).all()
    assert length <= len(heard) <= length + RATE // 4
    assert length >= RATE // 10 or heard is samples

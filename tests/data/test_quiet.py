"""Clips without a word: each a pure function of its number, of all kinds, no two parts alike."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from steermoe.audio import RATE
from steermoe.data import load_source, quiet
from steermoe.errors import DataError
from steermoe.packages import cache_root


def test_clips_are_pure_and_keep_their_bounds() -> None:
    kinds: Counter[str] = Counter()
    for index in range(64):
        kind, samples = quiet.compose("test", index)
        kinds[kind] += 1
        assert np.array_equal(samples, quiet.compose("test", index)[1])
        assert samples.dtype == np.float32 and 0.3 * RATE - 1 <= len(samples) <= 12 * RATE
        assert np.isfinite(samples).all() and np.abs(samples).max() <= 1
        if kind == "silence":
            assert not samples.any()
        elif kind != "clicks":  # whose peaks may be clipped
            assert -61 < 10 * np.log10(np.mean(samples**2)) < -11
        other = quiet.compose("train", index)[1]
        assert len(other) != len(samples) or kind == "silence"
    assert kinds == dict.fromkeys(quiet.KINDS, 8)


def test_the_spectra_are_those_of_their_names() -> None:
    for index, tilt in ((1, 0.0), (2, -3.0), (3, -6.0)):  # decibels an octave
        found = []
        for i in range(index, 80, 8):
            samples = quiet.compose("test", i)[1]
            power = np.abs(np.fft.rfft(samples)) ** 2
            low, high = (
                power[round(f / RATE * len(samples)) : round(2 * f / RATE * len(samples))] for f in (500, 2000)
            )
            found.append(10 * np.log10(high.mean() / low.mean()) / 2)
        assert np.median(found) == pytest.approx(tilt, abs=0.7)


def test_it_is_a_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STEERMOE_CACHE", str(tmp_path))
    monkeypatch.setattr(quiet, "SIZES", {"test": 9, "train": 8})
    clips = load_source("quiet:test")
    assert len(clips) == 9 and {clip.text for clip in clips} == {""} and str(cache_root()) in str(clips[0].audio)
    assert all(len(clip.load()) == pytest.approx((clip.duration or 0) * RATE) for clip in clips)
    with pytest.raises(DataError, match="quiet has no split 'dev'"):
        load_source("quiet:dev")

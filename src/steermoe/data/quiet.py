"""``quiet``: clips without a word, made by seed. What is heard in ``test`` (500) is invented: the ``silence`` suite; ``train`` (800)
teaches not to (``min_words: 0``).

Digital silence, white, pink and brown noise, mains hum, tones, clicks and melodies, 0.3 to 12 seconds, -60 to -12 dB. Clip i is a
pure function of its split and i. Nothing is fetched.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..audio import RATE
from ..errors import DataError
from ..packages import build_once, cache_root
from .augment import noise
from .manifest import Example, read_manifest, write_manifest

SIZES = {"test": 500, "train": 800}
RECIPE = "v1"  # a new one when clips change
COLOURS = {"white noise": 0.0, "pink noise": 1.0, "brown noise": 2.0}  # augment.noise's
KINDS = ("silence", *COLOURS, "hum", "tone", "clicks", "melody")


def load(split: str = "test", root: Path | None = None) -> list[Example]:
    """The clips, with ``kind``; their text is empty. ``root`` is not used. Made on first use, 17 and 25 MB."""
    if split not in SIZES:
        raise DataError(f"quiet has no split {split!r}; it has {', '.join(SIZES)}")
    target = cache_root() / "data" / "quiet" / RECIPE / split
    return read_manifest(build_once(target, lambda scratch: _build(scratch, split)) / "manifest.jsonl")


def compose(split: str, index: int) -> tuple[str, np.ndarray]:
    """Kind and samples (N,) at 16 kHz of clip ``index`` of a split."""
    rng, kind = np.random.default_rng([list(SIZES).index(split), index]), KINDS[index % len(KINDS)]
    seconds, decibels = np.exp(rng.uniform(np.log(0.3), np.log(12))), rng.uniform(-60, -12)
    times = np.arange(int(seconds * RATE)) / RATE
    samples = _sound(kind, times, rng)
    loud = float(np.sqrt(np.mean(samples**2)))
    samples = samples * 10 ** (decibels / 20) / loud if loud else samples
    return kind, np.clip(samples, -1, 1).astype(np.float32)


def _sound(kind: str, times: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A sound at any level, over ``times`` (N,) in seconds."""
    if kind == "silence":
        return np.zeros_like(times)
    if kind in COLOURS:
        return noise(len(times), rng, COLOURS[kind])
    if kind == "hum":
        mains, shares = rng.choice([50.0, 60.0]), rng.uniform(0, 1, 8)
        waves = (a * np.sin(2 * np.pi * n * mains * times) for n, a in enumerate(shares, start=1))
        return np.sum([0.05 * rng.standard_normal(len(times)), *waves], axis=0)
    if kind == "tone":
        return np.sin(2 * np.pi * rng.uniform(100, 4000) * times)
    samples, at = np.zeros_like(times), float(rng.uniform(0, 0.1))
    while at < times[-1]:
        since = times - at
        after = since >= 0
        if kind == "clicks":
            samples += after * np.exp(-np.maximum(since, 0) * 800) * rng.choice([-1.0, 1.0])
            at += float(rng.exponential(0.3)) + 0.01
        else:  # a note, plucked
            note = 220.0 * 2 ** (int(rng.integers(0, 24)) / 12)
            samples += after * np.exp(-np.maximum(since, 0) * 4) * np.sin(2 * np.pi * note * since)
            at += float(rng.choice([0.15, 0.3, 0.6]))
    return samples


def _build(scratch: Path, split: str) -> None:
    import soundfile

    rows = []
    for index in range(SIZES[split]):
        kind, samples = compose(split, index)
        name = f"{split}-{index:03}"
        soundfile.write(scratch / f"{name}.flac", samples, RATE, subtype="PCM_16")
        rows.append({"id": name, "audio": f"{name}.flac", "duration": len(samples) / RATE, "text": "", "kind": kind})
    write_manifest(scratch / "manifest.jsonl", rows)

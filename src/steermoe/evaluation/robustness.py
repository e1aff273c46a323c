"""The ``robustness`` suite: asr as it is, and under each of the conditions that recordings meet outside.

What is random of a condition is drawn from the clip's own samples, so that every run hears the same.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data import augment
from .asr import Transcribe, measured

if TYPE_CHECKING:
    from .listener import Listener
    from .suites import Options

TELEPHONE = (300.0, 3400.0)  # hertz

Condition = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def telephone(samples: np.ndarray) -> np.ndarray:
    """What a telephone line carries, 300 to 3400 Hz."""
    spectrum = np.fft.rfft(samples)
    hertz = np.fft.rfftfreq(len(samples), 1 / augment.RATE)
    spectrum[(hertz < TELEPHONE[0]) | (hertz > TELEPHONE[1])] = 0
    return np.fft.irfft(spectrum, len(samples)).astype(np.float32)


def _noise(decibels: float) -> Condition:
    return lambda samples, rng: augment.add_noise(samples, decibels, rng, colour=1.0)


CONDITIONS: dict[str, Condition] = {
    "noise 20 dB": _noise(20),  # pink
    "noise 10 dB": _noise(10),
    "noise 0 dB": _noise(0),
    "speed 0.9": lambda samples, rng: augment.speed(samples, 0.9),  # and lower
    "speed 1.1": lambda samples, rng: augment.speed(samples, 1.1),
    "room 0.6 s": lambda samples, rng: augment.room(samples, rng, seconds=0.6, direct_db=0.0),
    "telephone": lambda samples, rng: telephone(samples),
    "gain -30 dB": lambda samples, rng: (samples * 10 ** (-30 / 20)).astype(np.float32),
    "gain +20 dB, clipped": lambda samples, rng: np.clip(samples * 10, -1, 1).astype(np.float32),
}


def under(name: str, samples: np.ndarray) -> np.ndarray:
    """``samples`` (N,) at 16 kHz under a condition; the same every time."""
    rng = np.random.default_rng([zlib.crc32(name.encode()), zlib.crc32(samples.tobytes())])
    return CONDITIONS[name](samples, rng)


def run(listener: Listener, options: Options) -> dict[str, Any]:
    """The asr suite with a column for each condition: its rates, and the p-value of its WER against the clean one's."""
    columns = {name: _heard_under(name, listener.transcribe) for name in CONDITIONS}
    return measured(listener, options, columns=columns, suite="robustness")


def _heard_under(name: str, transcribe: Transcribe) -> Transcribe:
    return lambda clips: transcribe([under(name, clip) for clip in clips])

"""Small acoustic changes for training: speed, microphone, room, band limit, noise, gain; codecs; and masks over the spectrogram.

Drawn from the given generator only.
"""

from __future__ import annotations

import io
import random
from typing import Any

import numpy as np

RATE = 16_000
# Those of soundfile at their lowest rates: format, subtype, sampling rates, and how strongly they compress, where that is a choice.
CODECS: tuple[tuple[str, str, tuple[int, ...], tuple[float, float] | None], ...] = (
    ("MP3", "MPEG_LAYER_III", (8_000, 11_025, 12_000, 16_000, 22_050), (0.8, 0.95)),  # 17 to 41 kbit/s
    ("OGG", "OPUS", (8_000, 12_000, 16_000), (0.9, 0.98)),  # 12 to 32 kbit/s
    ("OGG", "VORBIS", (8_000, 11_025, 16_000), (0.9, 1.0)),  # 18 to 30 kbit/s
    ("WAV", "GSM610", (8_000,), None),  # 13 kbit/s
)


def band_limit(samples: np.ndarray, hertz: float) -> np.ndarray:
    """What is left of 16 kHz speech after a line that carries up to ``hertz``."""
    import soxr

    narrow = soxr.resample(samples, RATE, 2 * hertz)
    wide = soxr.resample(narrow, 2 * hertz, RATE)[: len(samples)]
    return np.pad(wide, (0, len(samples) - len(wide))).astype(np.float32)


def noise(count: int, rng: np.random.Generator, colour: float) -> np.ndarray:
    """(``count``,) samples with spectrum 1 / f^colour: 0 is white, 1 pink, 2 brown."""
    spectrum = np.fft.rfft(rng.standard_normal(count))
    return np.fft.irfft(spectrum / np.maximum(np.arange(len(spectrum)), 1) ** (colour / 2), count)


def add_noise(samples: np.ndarray, snr_db: float, rng: np.random.Generator, colour: float) -> np.ndarray:
    """``noise`` at ``snr_db`` below the clip's mean power."""
    added = noise(len(samples), rng, colour)
    power, noise_power = float(np.mean(samples**2)), float(np.mean(added**2))
    if power == 0 or noise_power == 0:
        return samples
    return (samples + added * np.sqrt(power / noise_power / 10 ** (snr_db / 10))).astype(np.float32)


def colour(samples: np.ndarray, rng: np.random.Generator, decibels: float) -> np.ndarray:
    """Another microphone: a smooth curve of gains over mel-spaced frequencies, each within +- ``decibels``."""
    spectrum = np.fft.rfft(samples)
    mel = np.log1p(np.linspace(0, RATE / 2, len(spectrum)) / 700)
    knots = np.linspace(0, mel[-1], 7)
    gains = np.interp(mel, knots, rng.uniform(-decibels, decibels, len(knots)))
    return np.fft.irfft(spectrum * 10 ** (gains / 20), len(samples)).astype(np.float32)


def room(samples: np.ndarray, rng: np.random.Generator, seconds: float, direct_db: float) -> np.ndarray:
    """A room: noise that dies away by 60 dB in ``seconds``, ``direct_db`` below the direct sound."""
    times = np.arange(int(seconds * RATE)) / RATE
    echo = rng.standard_normal(len(times)) * 10 ** (-3 * times / seconds)
    echo *= 10 ** (-direct_db / 20) / np.sqrt(np.sum(echo**2))
    echo[0] += 1.0
    size = len(samples) + len(echo)
    wet = np.fft.irfft(np.fft.rfft(samples, size) * np.fft.rfft(echo, size), size)
    return wet[: len(samples)].astype(np.float32)


def speed(samples: np.ndarray, factor: float) -> np.ndarray:
    """Faster and higher (or slower and lower) by ``factor``."""
    import soxr

    return np.asarray(soxr.resample(samples, RATE * factor, RATE, quality="MQ"), np.float32)


def codec(samples: np.ndarray, rng: random.Random) -> np.ndarray:
    """What a lossy codec at a low rate leaves of a clip: half of the times MP3. Some shift the clip by a tenth of a second."""
    import soundfile
    import soxr

    if len(samples) < RATE // 10:
        return samples
    kind, subtype, rates, strength = rng.choices(CODECS, (3, 1, 1, 1))[0]
    rate, how = rng.choice(rates), {} if strength is None else {"compression_level": rng.uniform(*strength)}
    if kind == "MP3":
        how["bitrate_mode"] = "CONSTANT"  # type: ignore[assignment]
    written = io.BytesIO()
    soundfile.write(written, soxr.resample(samples, RATE, rate), rate, format=kind, subtype=subtype, **how)
    written.seek(0)
    return np.asarray(soxr.resample(*soundfile.read(written, dtype="float32"), RATE), np.float32)[
        : len(samples) + RATE // 4
    ]


def augment(samples: np.ndarray, rng: random.Random, most_seconds: float = 30.0) -> np.ndarray:
    """One clip in four as it is, the others with some changes; never longer than ``most_seconds`` by them."""
    if rng.random() < 0.25 or len(samples) < RATE // 10:
        return samples
    generator = np.random.default_rng(rng.getrandbits(32))
    if rng.random() < 0.4:
        factor = rng.uniform(0.88, 1.14)
        samples = speed(samples, factor) if len(samples) / factor <= most_seconds * RATE else samples
    if rng.random() < 0.4:
        samples = colour(samples, generator, rng.uniform(3, 12))
    if rng.random() < 0.3:
        samples = room(samples, generator, rng.uniform(0.1, 0.5), rng.uniform(0, 15))
    if rng.random() < 0.3:
        samples = band_limit(samples, rng.uniform(3400, 6500))
    if rng.random() < 0.4:
        samples = add_noise(samples, rng.uniform(8, 35), generator, rng.choice([0.0, 1.0, 1.5]))
    peak = float(np.abs(samples).max(initial=0.0))
    return (samples * (rng.uniform(0.2, 0.9) / max(peak, 1e-3))).astype(np.float32)


def mask_spectrogram(spectrum: Any, rng: random.Random) -> None:
    """Two stretches of time (each at most a twentieth of the clip) and two of frequency (at most a third of the bands) become the
    clip's mean, in place (SpecAugment; Park et al., 2019). ``spectrum`` (T, bands) is a tensor or an array."""
    time, bands = spectrum.shape
    mean = spectrum.mean()
    for _ in range(2):
        width = rng.randint(0, time // 20)
        start = rng.randint(0, time - width)
        spectrum[start : start + width] = mean
        width = rng.randint(0, bands // 3)
        start = rng.randint(0, bands - width)
        spectrum[:, start : start + width] = mean

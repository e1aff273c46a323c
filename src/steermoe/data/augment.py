"""Small acoustic changes for training: band limit, noise, gain. Drawn from the given generator only."""

from __future__ import annotations

import random

import numpy as np

RATE = 16_000


def band_limit(samples: np.ndarray, hertz: float) -> np.ndarray:
    """What is left of 16 kHz speech after a line that carries up to ``hertz``."""
    import soxr

    narrow = soxr.resample(samples, RATE, 2 * hertz)
    wide = soxr.resample(narrow, 2 * hertz, RATE)[: len(samples)]
    return np.pad(wide, (0, len(samples) - len(wide))).astype(np.float32)


def add_noise(samples: np.ndarray, snr_db: float, rng: np.random.Generator, colour: float) -> np.ndarray:
    """Noise with spectrum 1 / f^colour at ``snr_db`` below the clip's mean power."""
    spectrum = np.fft.rfft(rng.standard_normal(len(samples)))
    spectrum /= np.maximum(np.arange(len(spectrum)), 1) ** (colour / 2)
    noise = np.fft.irfft(spectrum, len(samples))
    power, noise_power = float(np.mean(samples**2)), float(np.mean(noise**2))
    if power == 0 or noise_power == 0:
        return samples
    return (samples + noise * np.sqrt(power / noise_power / 10 ** (snr_db / 10))).astype(np.float32)


def augment(samples: np.ndarray, rng: random.Random) -> np.ndarray:
    """Half of the clips as they are, the others with one or two changes."""
    if rng.random() < 0.5 or len(samples) < RATE // 10:
        return samples
    if rng.random() < 0.5:
        samples = band_limit(samples, rng.uniform(3400, 6500))
    if rng.random() < 0.6:
        generator = np.random.default_rng(rng.getrandbits(32))
        samples = add_noise(samples, rng.uniform(8, 35), generator, rng.choice([0.0, 1.0, 1.5]))
    return (samples * rng.uniform(0.25, 1.0)).astype(np.float32)

"""``synth:actors``: people who act. Each is somebody else, speaks in another manner, and often with an accent.

A mean of Kokoro's voices (voices.py) narrates, clearly and as in a book. An actor's style lies where no mean of voices does: its timbre
and its manner, the two halves of Kokoro's style vector, are drawn apart, each as far from the middle of all voices as
those are themselves, or farther. An accent puts one sound for another, the same throughout an utterance.
"""

from __future__ import annotations

import random
import re
from functools import cached_property

import numpy as np

from .tts import HEARD, Kokoro

# What speakers of other languages and dialects say for an English sound; in Kokoro's alphabet, where A, I, O and Q are diphthongs.
ACCENTS = {
    "θ": "tsf", "ð": "dzv", "ɹ": "ɾʁr", "h": ("",), "w": "vʋ", "v": "wf", "z": "s", "ŋ": "n", "ʤ": "ʒ", "ʧ": "ʃ",
    "ɪ": "i", "i": "ɪ", "ʊ": "u", "æ": "aɛ", "ʌ": "aɑ", "ə": "aɛ", "ɜ": "ɛø", "ɛ": "e", "ɑ": "ɔa", "ɔ": "o",
    "A": "eɛ", "I": "ɑ", "O": "oɔ", "Q": "oɔ", "ɒ": "ɔa",
}  # fmt: skip
VOICELESS = str.maketrans("bdɡvzʒʤ", "ptkfsʃʧ")
ENDS = ("!", "?", "…", "", "↗", "↘")
FARTHEST = 1.4  # times as far from the middle as a voice is on average


def accented(phonemes: str, rng: random.Random, share: float = 0.2) -> str:
    """Each sound of ACCENTS is another with the probability ``share``, throughout; so are voiced ends of words."""
    other = {sound: rng.choice(others) for sound, others in ACCENTS.items() if rng.random() < share}
    told = "".join(other.get(sound, sound) for sound in phonemes)
    if rng.random() < share:
        told = re.sub(r"[bdɡvzʒʤ](?![^\W_])", lambda end: end[0].translate(VOICELESS), told)
    return told


def drawled(phonemes: str, rng: random.Random) -> str:
    """Half of the stressed vowels are long."""
    return re.sub(r"ˈ[ɑɒɛɪiɔuʊæʌəɜAOQIW](?!ː)", lambda vowel: vowel[0] + rng.choice(["", "ː"]), phonemes)


class Actors(Kokoro):
    """Kokoro, whose voices here are numbers: ``speak(text, "4711")`` is that actor's way to say it."""

    @cached_property
    def _middle(self) -> tuple[np.ndarray, np.ndarray]:
        """The mean style (510, 256) of the voices heard in training, and how each differs from it (N, 510, 256)."""
        styles = np.stack([super(Actors, self).style(voice) for voice in HEARD])
        return styles.mean(axis=0), styles - styles.mean(axis=0)

    def style(self, voice: str) -> np.ndarray:
        """(510, 256): timbre (the first 128) and manner, each from one to three voices."""
        rng = random.Random(f"style/{voice}")
        middle, others = self._middle
        style = middle.copy()
        for half in (slice(0, 128), slice(128, 256)):
            drawn = rng.choices(range(len(others)), k=rng.randint(1, 3))
            shares = [0.1 + rng.random() for _ in drawn]
            toward = np.einsum("i,ijk->jk", shares, others[drawn][..., half])
            usual = np.linalg.norm(others[..., half], axis=-1).mean(axis=0)
            far = rng.uniform(0.6, FARTHEST) * usual / np.linalg.norm(toward, axis=-1)
            style[:, half] += far[:, None] * toward
        return style

    def phonemes(self, text: str, voice: str) -> str:
        rng = random.Random(f"accent/{voice}")
        told = super().phonemes(text, rng.choice(["a", "b"]))
        if rng.random() < 0.6:
            told = accented(told, rng)
        if rng.random() < 0.2:
            told = drawled(told, rng)
        return re.sub(r"[.!?]$", rng.choice(ENDS), told) if rng.random() < 0.3 else told


def actor(number: int, rng: random.Random) -> dict[str, str | float]:
    """How an utterance is acted (synth.plan): slower to faster, by a larger or smaller speaker than a narrator."""
    pace, tract = rng.uniform(0.8, 1.35), rng.uniform(0.86, 1.18)
    return {"engine": "actors", "voice": str(number), "pace": round(pace, 3), "tract": round(tract, 3)}

"""``synth:voices``: the most natural voices that can be had, another one for every utterance, and what they say.

Kokoro's voices are vectors, and their means are voices, too, nearly as far from every parent as parents are from each other. Those made
for other languages speak English well, if with an accent. Voices that are held out for tests are in no mean.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

from .fotaq import line_key
from .held_out import test_lines
from .home import sentences
from .talk import talk_texts
from .texts import wordnet_texts
from .tts import HELD_OUT, Kokoro

# Of the utterances: dictionary examples, definitions and lists; everyday talk; commands for a house.
KINDS = {"wordnet": 0.6, "talk": 0.35, "home": 0.05}


def natural_voice(rng: random.Random) -> dict[str, str | float]:
    """How an utterance is spoken (synth.plan): by the mean of two or three of Kokoro's voices, drawn with replacement."""
    heard = [voice for voice in (*Kokoro.voices, *Kokoro.others) if voice not in HELD_OUT]
    voice = "+".join(rng.choices(heard, k=rng.choice([2, 3, 3])))
    return {
        "engine": "kokoro",
        "voice": voice,
        "pace": round(rng.uniform(0.9, 1.25), 3),
        "tract": round(rng.uniform(0.93, 1.1), 3),
    }


def voice_texts(others: Iterable[str] = (), seed: int = 1, count: int = 24_000) -> list[str]:
    """``count`` texts, the kinds mixed, without doubles, lines of tests, or any of ``others``."""
    rng = random.Random(seed)
    said = {
        "wordnet": iter(wordnet_texts(seed)),
        "talk": iter(talk_texts(seed, count // 2)),
        "home": iter(sentences(count // 15)),
    }
    taken = set(test_lines()) | set(map(line_key, others))
    texts: list[str] = []
    while len(texts) < count:
        text = next(said[rng.choices(list(KINDS), list(KINDS.values()))[0]])
        if (key := line_key(text)) not in taken:
            taken.add(key)
            texts.append(text)
    return texts

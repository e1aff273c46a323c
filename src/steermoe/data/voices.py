"""``synth:voices``: the most natural voices that can be had, another one for every utterance, and what they say.

Kokoro's voices are vectors, and their means are voices, too, nearly as far from every parent as parents are from each other. Those made
for other languages speak English well, if with an accent. Voices that are held out for tests are in no mean.

Speaking is slow, and a word is heard rightly once training has said it about four times (lab notebook, entry 20). So what is said
next is what says most of the common words that were said least.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Iterable, Sequence

from .fotaq import line_key
from .held_out import test_lines
from .home import sentences
from .talk import talk_texts
from .texts import glosses, quoted, wordnet_texts
from .tts import HEARD

# Of the utterances: dictionary examples, definitions and lists; everyday talk; commands for a house.
KINDS = {"wordnet": 0.6, "talk": 0.35, "home": 0.05}
AS_DRAWN = 2850  # texts, the first 57 shards, that were not ordered


def natural_voice(rng: random.Random) -> dict[str, str | float]:
    """How an utterance is spoken (synth.plan): by the mean of two or three of Kokoro's voices, drawn with replacement."""
    voice = "+".join(rng.choices(HEARD, k=rng.choice([2, 3, 3])))
    return {
        "engine": "kokoro",
        "voice": voice,
        "pace": round(rng.uniform(0.9, 1.25), 3),
        "tract": round(rng.uniform(0.93, 1.1), 3),
    }


def voice_texts(others: Iterable[str] = (), seed: int = 1, count: int = 24_000) -> list[str]:
    """``count`` texts, the kinds mixed, without doubles, lines of tests, or any of ``others``; ordered ``by_worth``."""
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
    drawn, rest = texts[:AS_DRAWN], texts[AS_DRAWN:]
    return drawn + by_worth(rest, Counter(word for text in drawn for word in line_key(text).split()), examples())


def examples() -> Counter[str]:
    """How often the dictionary's examples say each word."""
    return Counter(word for _, gloss in glosses() for text in quoted(gloss) for word in line_key(text).split())


def by_worth(texts: Sequence[str], said: Counter[str], often: Counter[str]) -> list[str]:
    """``texts`` so that each says, for its length, the most of what is ``often`` said and was not yet, by the texts before it or
    as ``said`` has it: a word is worth half as much each time."""
    said, words = said.copy(), [Counter(line_key(text).split()) for text in texts]

    def worth(i: int) -> float:
        new = sum(often[w] * 2.0 ** -said[w] * (2 - 2.0 ** (1 - n)) for w, n in words[i].items())
        return new / (30 + len(texts[i]))  # letters; a clip's two ends take about two seconds

    # Worth only ever shrinks, so the first whose worth is still what it was is the best (Minoux, 1978).
    queue = [(-worth(i), i) for i in range(len(texts))]
    heapq.heapify(queue)
    ordered = []
    while queue:
        _, i = heapq.heappop(queue)
        now = (-worth(i), i)
        if queue and now > queue[0]:
            heapq.heappush(queue, now)
            continue
        ordered.append(texts[i])
        said.update(words[i])
    return ordered

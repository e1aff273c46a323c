"""How tokens are pronounced: whole words as a dictionary has them, parts of words as its words have those.

The dictionary is that of the synthetic voices (misaki's, in hibari's package): 175,000 English words. Which of a word's letters
make which of its phones is learned from it, by the likeliest alignment under counts of the last one, over and over; what a part
of a word sounds like is then what it sounds like in most words that the LLM's tokenizer parts there.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .packages import build_once, cache_root, unpacked
from .spelling import spellings

if TYPE_CHECKING:
    from .data.tts import Kokoro

WORD = re.compile(r"[A-Za-z']+")
SAID = frozenset("0123456789&%$")  # what is no word, and is said
MOST = 3  # phones that one letter makes
ROUNDS, SAMPLE = 5, 8_000  # of the alignment; words it is learned from
ENOUGH = 3  # words that a part is heard in
Costs = Mapping[str, Mapping[str, float]]


def pronounced(tokenizer: Any, size: int) -> list[str]:
    """What each of ``size`` tokens sounds like, a space in front where it begins a word; "" where that is not known.

    Made once a tokenizer, in about a minute, and kept.
    """
    written = spellings(tokenizer, size)
    digest = hashlib.sha256("\0".join(written).encode()).hexdigest()[:16]

    def build(folder: Path) -> None:
        words = dictionary()
        costs = learned(words)
        sounds = of_tokens(written, words, parts(tokenizer, written, words, costs), spoken)
        (folder / "sounds.json").write_text(json.dumps(sounds, ensure_ascii=False), encoding="utf-8")

    kept = build_once(cache_root() / "pronunciations" / digest, build) / "sounds.json"
    told: list[str] = json.loads(kept.read_text(encoding="utf-8"))
    return told


def dictionary() -> dict[str, str]:
    """Words in small letters, and their phones in Kokoro's alphabet, without stress; of several the first."""
    from .data.tts import HIBARI

    words: dict[str, str] = {}
    for part in ("silver", "gold"):  # the latter is checked by people, and counts
        file = unpacked(HIBARI) / "hibari" / "assets" / f"lexicon_us_{part}.json.gz"
        for word, said in json.loads(gzip.decompress(file.read_bytes())).items():
            if isinstance(said, dict):  # by its part of speech
                said = said.get("DEFAULT") or next(filter(None, said.values()), None)
            if said and WORD.fullmatch(word):
                words[word.lower()] = re.sub("[ˈˌ]", "", said)
    return words


def spoken(word: str) -> str:
    """As ``dictionary``, by rules and a small model for words that it has not: "parents", "numpy"."""
    return re.sub("[ˈˌ ]", "", _speaker().phonemes(word, "a"))


@cache
def _speaker() -> Kokoro:
    from .data.tts import Kokoro

    return Kokoro()


def learned(words: Mapping[str, str]) -> Costs:
    """What it costs (nats) that a letter makes these phones."""
    sample = [(word, said) for word, said in sorted(words.items()) if len(word) > 2]
    sample = random.Random(0).sample(sample, min(SAMPLE, len(sample)))
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for word, said in sample:  # at first: the phone that lies as far into the word
        for i, letter in enumerate(word):
            counts[letter] += Counter({said[i * len(said) // len(word)]: 1, "": 0.3})  # type: ignore[dict-item]
    for _ in range(ROUNDS):
        costs, counts = _costs(counts), defaultdict(Counter)
        for word, said in sample:
            for letter, phones in zip(word, aligned(word, said, costs) or (), strict=False):
                counts[letter][phones] += 1
    return _costs(counts)


def _costs(counts: Mapping[str, Counter[str]]) -> Costs:
    return {
        letter: {phones: math.log(found.total() / n) for phones, n in found.items()} for letter, found in counts.items()
    }


def aligned(word: str, said: str, costs: Costs) -> list[str] | None:
    """The phones that each letter makes, all of them in order, at the least cost; None where there are too many."""
    ways: dict[int, tuple[float, tuple[str, ...]]] = {0: (0.0, ())}  # by how many phones are made
    for i, letter in enumerate(word):
        known, left = costs.get(letter, {}), len(word) - i - 1
        further: dict[int, tuple[float, tuple[str, ...]]] = {}
        for made, (cost, so_far) in ways.items():
            for more in range(min(MOST, len(said) - made) + 1):
                if len(said) - made - more > MOST * left:
                    continue
                phones = said[made : made + more]
                new = cost + known.get(phones, 8.0 if not more else 6.0 + 3.0 * more)
                if made + more not in further or new < further[made + more][0]:
                    further[made + more] = new, (*so_far, phones)
        ways = further
    return list(ways[len(said)][1]) if len(said) in ways else None


def parts(tokenizer: Any, written: Sequence[str], words: Mapping[str, str], costs: Costs) -> dict[int, Counter[str]]:
    """How often each token that is part of a word sounds how."""
    found: dict[int, Counter[str]] = defaultdict(Counter)
    spelled = [word for word in words if len(word) > 2]
    for word, tokens in zip(
        spelled, tokenizer([f" {word}" for word in spelled], add_special_tokens=False)["input_ids"], strict=True
    ):
        pieces = [written[token].strip() for token in tokens]
        if len(tokens) < 2 or "".join(pieces) != word or (phones := aligned(word, words[word], costs)) is None:
            continue
        at = 0
        for token, piece in zip(tokens, pieces, strict=True):
            found[token]["".join(phones[at : at + len(piece)])] += 1
            at += len(piece)
    return found


def of_tokens(
    written: Iterable[str],
    words: Mapping[str, str],
    found: Mapping[int, Counter[str]],
    says: Callable[[str], str],
) -> list[str]:
    """The likeliest sound of each token; ``says`` what no dictionary has."""
    sounds = []
    for token, text in enumerate(written):
        bare, begins, said = text.strip(), text[:1].isspace() or text[:1].isupper(), ""
        if WORD.fullmatch(bare):
            whole, likely = words.get(bare.lower(), ""), found.get(token, Counter())
            part = likely.most_common(1)[0][0] if likely.total() >= ENOUGH else ""
            said = (whole or part) if begins else (part or whole)
            if not said and len(bare) > 2:
                said = says(bare.lower())
        elif bare in SAID:
            said = says(bare)
        sounds.append((" " if said and text[:1].isspace() else "") + said)
    return sounds

"""``synth:vocabulary``: the common words of an LLM's own vocabulary that the first of ``synth:voices`` hardly say.

What an LLM can be shown are its tokens, numbered by how often they came in its training text: a list of common words of today,
which a dictionary is not. Each is said until, with ``synth:voices``, it was said ``ENOUGH`` times. The sentences make no sense: what they
say cannot be guessed, only heard.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

from .fotaq import line_key
from .talk import gerund, past, plural
from .texts import as_sentence, dictionary_words

LLM = "HuggingFaceTB/SmolLM2-135M-Instruct"
BLOCKS = (6_000, 12_000)  # words of its vocabulary, common ones first: the first so many, then those up to
ENOUGH = 4  # times; then a word is heard (lab notebook, entry 20)
WORDS = 5  # in a sentence
JOINS = " | |, | and | or | the | of the | in | to | is | for a | with | from my | are ".split("|")


def common_tokens(vocabulary: dict[str, int], known: set[str]) -> list[str]:
    """The lower-case words that are whole tokens of a byte-level ``vocabulary`` (token -> number) and ``known``, common ones first."""
    tokens = (token for token, _ in sorted(vocabulary.items(), key=lambda item: item[1]))
    words = dict.fromkeys(t[1:].lower() for t in tokens if re.fullmatch("Ġ[A-Za-z]{3,14}", t))
    return [word for word in words if word in known]


def inflected(words: Iterable[str]) -> set[str]:
    """The words, and every form that English rules could make of them."""
    return {form for word in words for form in (word, plural(word), past(word), gerund(word))}


def vocabulary_texts(said: Sequence[str], taken: set[str], seed: int = 0) -> list[str]:
    """Sentences of words that the texts ``said`` have less than ENOUGH times: each once, then again those still short of it.
    None is a line of ``taken`` (by ``line_key``)."""
    from ..pretrained import load_tokenizer

    rng = random.Random(seed)
    times = Counter(word for text in said for word in line_key(text).split())
    words = common_tokens(load_tokenizer(LLM).get_vocab(), inflected(dictionary_words()))
    texts: dict[str, None] = {}
    for start, end, already in ((*block, n) for block in pairwise((0, *BLOCKS)) for n in range(ENOUGH)):
        wanted = [word for word in words[start:end] if times[word] + already < ENOUGH]
        rng.shuffle(wanted)
        for i in range(0, len(wanted), WORDS):
            first, *others = wanted[i : i + WORDS]
            text = as_sentence(first + "".join(rng.choice(JOINS) + word for word in others))
            if line_key(text) not in taken:
                texts[text] = None
    return list(texts)

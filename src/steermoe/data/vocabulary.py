"""``synth:vocabulary``: the common words of an LLM's own vocabulary that the first of ``synth:voices`` hardly say; and
``synth:rarer``: the common words of English that neither says.

What an LLM can be shown are its tokens, numbered by how often they came in its training text: a list of common words of today,
which a dictionary is not. Each is said until, with ``synth:voices``, it was said ``ENOUGH`` times. Words of two tokens or more are not in it
("mailbox", "tortoise"): for these there are lists for spelling checkers, sorted by how common a word is (SCOWL, which may be used, changed and
sold). The sentences make no sense: what they say cannot be guessed, only heard.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

from ..packages import Package, unpacked
from .fotaq import line_key
from .talk import gerund, past, plural
from .texts import as_sentence, dictionary_words, glosses

LLM = "HuggingFaceTB/SmolLM2-135M-Instruct"
BLOCKS = (6_000, 12_000)  # words of its vocabulary, common ones first: the first so many, then those up to
ENOUGH = 4  # times; then a word is heard (lab notebook, entry 20)
WORDS = 5  # in a sentence
SCOWL = Package("deb", "scowl", "2020.12.07-2", "de692546df9b169f2cbdf4d8d88111a374733a9c382b820a6f943914ca705718")
LEVELS = (("10", "20"), ("35",))  # of SCOWL: the 11,000 commonest words; 28,000 more, of which
USED = 3  # times by the dictionary is enough to be said
# A level, and how often each of its words was said when the pass is over.
PASSES = ((0, 1), (0, 2), (1, 1), (0, 3), (1, 2), (0, 4), (1, 3), (1, 4))
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
        texts |= _sentences(wanted, taken, rng)
    return list(texts)


def _sentences(words: list[str], taken: set[str], rng: random.Random) -> dict[str, None]:
    """The words, shuffled, WORDS at a time; without lines of ``taken``."""
    rng.shuffle(words)
    parts = (words[i : i + WORDS] for i in range(0, len(words), WORDS))
    texts = (as_sentence(first + "".join(rng.choice(JOINS) + word for word in others)) for first, *others in parts)
    return {text: None for text in texts if line_key(text) not in taken}


def listed_words(levels: Iterable[str]) -> list[str]:
    """SCOWL's American words and contractions of some levels ("10" holds the commonest), without names, 3 to 15 letters each."""
    folder = unpacked(SCOWL) / "usr" / "share" / "dict" / "scowl"
    kinds = {"english-words": "[a-z]{3,15}", "american-words": "[a-z]{3,15}", "english-contractions": "[a-z]+'[a-z]+"}
    files = [(folder / f"{kind}.{level}", form) for level in levels for kind, form in kinds.items()]
    lines = [(line, form) for file, form in files if file.exists() for line in file.read_text("latin-1").splitlines()]
    return list(dict.fromkeys(word for word, form in lines if re.fullmatch(form, word)))


def rarer_texts(said: Sequence[str], taken: set[str], seed: int = 0) -> list[str]:
    """Sentences of listed words that the texts ``said`` do not have, then of those with one of them, and so on, up to ENOUGH; none
    is a line of ``taken``, which also does not count for how often the dictionary uses a word."""
    rng = random.Random(seed)
    times = Counter(word for text in said for word in line_key(text).split())
    used = Counter(word for _, gloss in glosses() for word in line_key(gloss).split())
    used.subtract(word for line in taken for word in line.split())
    common, others = (dict.fromkeys(listed_words(level)) for level in LEVELS)
    levels = (common, [word for word in others if used[word] >= USED and word not in common])
    texts: dict[str, None] = {}
    for level, enough in PASSES:
        new = _sentences([word for word in levels[level] if times[word] < enough], taken, rng)
        times.update(word for text in new for word in line_key(text).split())
        texts |= new
    return list(texts)

"""Word and character error rates, how sure they are, and how a transcriber fails.

Everything is a sum of per-utterance counts, an int64 array ``(n, 4)`` with the columns HITS, SUBSTITUTIONS,
DELETIONS, INSERTIONS; a rate is errors / reference length over the whole set (never a mean of rates), as a
fraction (0.128, not 12.8).

References without words. One that is empty as given (nothing is said in the clip) stays in every score: it
adds no reference words, and each word heard there is an insertion. One that only the normaliser empties ("uh",
"[noise]") is a thing the normaliser chose not to score: it is dropped from the normalised score and counted.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from ..errors import DataError, UsageError

HITS, SUBSTITUTIONS, DELETIONS, INSERTIONS = range(4)
NORMALIZERS = ("english", "basic", "chinese", "none")
RESAMPLES = 1000
_BLOCK = 1 << 22  # indices drawn at once, so that memory stays at some 100 MB whatever the size of the set


@cache
def normalizer(name: str) -> Callable[[str], str]:
    """``english`` and ``basic`` are Whisper's own; ``none`` only evens out white space.

    Whisper's leaves of "..." a "." as a word of its own, which nobody says; in ``english`` it is none here.

    ``chinese``: full-width forms become plain ones, case and punctuation go, every Han character is a word of its own.
    Simplified and traditional characters, and 三 and 3, stay different: a recogniser that is told one script writes it.
    """
    if name == "english":
        from whisper_normalizer.english import EnglishTextNormalizer

        english: Callable[[str], str] = EnglishTextNormalizer()
        return lambda text: english(re.sub(r"\.{2,}|…", " ", text))
    if name == "basic":
        from whisper_normalizer.basic import BasicTextNormalizer

        basic: Callable[[str], str] = BasicTextNormalizer()
        return basic
    if name == "chinese":
        return _chinese
    if name == "none":
        return lambda text: " ".join(text.split())
    raise UsageError(f"normalizer {name!r} is unknown; choose one of {', '.join(NORMALIZERS)}")


HAN = re.compile(r"([\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])")


def _chinese(text: str) -> str:
    plain = unicodedata.normalize("NFKC", text).casefold()
    kept = "".join(" " if unicodedata.category(c)[0] in "PSZC" else c for c in plain)
    return " ".join(HAN.sub(r" \1 ", kept).split())


@dataclass(frozen=True)
class Pair:
    """One piece of an alignment: ``reference`` and ``hypothesis`` words, either of them "" where absent."""

    kind: int  # HITS, SUBSTITUTIONS, DELETIONS or INSERTIONS
    reference: str
    hypothesis: str


def align(reference: str, hypothesis: str) -> list[Pair]:
    """The word alignment with the fewest errors."""
    import jiwer

    output = jiwer.process_words(reference, hypothesis)
    kinds = {"equal": HITS, "substitute": SUBSTITUTIONS, "delete": DELETIONS, "insert": INSERTIONS}
    pairs = []
    for chunk in output.alignments[0]:
        there = output.references[0][chunk.ref_start_idx : chunk.ref_end_idx]
        heard = output.hypotheses[0][chunk.hyp_start_idx : chunk.hyp_end_idx]
        for i in range(max(len(there), len(heard))):
            pairs.append(Pair(kinds[chunk.type], there[i] if there else "", heard[i] if heard else ""))
    return pairs


def count_words(references: Sequence[str], hypotheses: Sequence[str]) -> np.ndarray:
    """Counts per utterance, ``(n, 4)``, of words as white space parts them."""
    import jiwer

    even = normalizer("none")  # jiwer parts words at spaces alone
    return _counts(jiwer.process_words, [even(text) for text in references], [even(text) for text in hypotheses])


def count_characters(references: Sequence[str], hypotheses: Sequence[str]) -> np.ndarray:
    """Counts per utterance, ``(n, 4)``, of characters; a run of white space is one character, none at the ends."""
    import jiwer

    even = normalizer("none")
    return _counts(jiwer.process_characters, [even(text) for text in references], [even(text) for text in hypotheses])


def _counts(process: Callable[..., Any], references: Sequence[str], hypotheses: Sequence[str]) -> np.ndarray:
    if len(references) != len(hypotheses):
        raise UsageError(f"{len(references)} references but {len(hypotheses)} hypotheses; give one for each")
    counts = np.zeros((len(references), 4), dtype=np.int64)
    if not len(references):
        return counts
    kinds = {"equal": HITS, "substitute": SUBSTITUTIONS, "delete": DELETIONS}
    for i, chunks in enumerate(process(list(references), list(hypotheses)).alignments):
        for chunk in chunks:
            if chunk.type == "insert":
                counts[i, INSERTIONS] += chunk.hyp_end_idx - chunk.hyp_start_idx
            else:
                counts[i, kinds[chunk.type]] += chunk.ref_end_idx - chunk.ref_start_idx
    return counts


def errors(counts: np.ndarray) -> np.ndarray:
    """Substitutions + deletions + insertions, ``(n,)``."""
    wrong: np.ndarray = counts[:, SUBSTITUTIONS:].sum(axis=1)
    return wrong


def reference_lengths(counts: np.ndarray) -> np.ndarray:
    """Hits + substitutions + deletions, ``(n,)``."""
    said: np.ndarray = counts[:, : DELETIONS + 1].sum(axis=1)
    return said


def rate(counts: np.ndarray) -> float:
    """Errors over reference length, of the whole set. DataError if the references hold no word at all."""
    total = int(reference_lengths(counts).sum())
    if not total:
        raise DataError(f"the {len(counts)} references hold no word to score against; give some that do")
    return int(errors(counts).sum()) / total


def edits(counts: np.ndarray) -> dict[str, int]:
    """Words of the whole set that were right, replaced, left out and invented."""
    names = ("hits", "substitutions", "deletions", "insertions")
    return dict(zip(names, counts.sum(axis=0).tolist(), strict=True))


def verdicts(right: Sequence[bool]) -> np.ndarray:
    """Answers that are right or wrong as counts ``(n, 4)``: each is one hit or one substitution; accuracy is 1 - rate."""
    counts = np.zeros((len(right), 4), dtype=np.int64)
    counts[:, HITS] = np.asarray(right, dtype=bool)
    counts[:, SUBSTITUTIONS] = ~np.asarray(right, dtype=bool)
    return counts


def _resampled(columns: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Sums of ``columns`` (n, C) over ``resamples`` draws of n utterances with replacement, ``(resamples, C)``."""
    rng, n = np.random.default_rng(seed), len(columns)
    step = max(1, _BLOCK // n)
    blocks = []
    for start in range(0, resamples, step):
        drawn = rng.integers(n, size=(min(step, resamples - start), n))  # (R, n)
        blocks.append(np.stack([column[drawn].sum(axis=1) for column in columns.T], axis=1))
    return np.concatenate(blocks)


def interval(counts: np.ndarray, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval of the rate, utterances drawn with replacement."""
    rate(counts)  # says so if there is nothing to score
    sums = _resampled(np.stack([errors(counts), reference_lengths(counts)], axis=1), resamples, seed)
    rates = sums[:, 0] / np.maximum(sums[:, 1], 1)
    low, high = np.quantile(rates, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def sure(n: int, level: float = 0.95) -> float:
    """The greatest rate at which ``n`` trials without an error are no surprise (Clopper and Pearson, 1934): resampled, they never
    have one."""
    return float(1 - ((1 - level) / 2) ** (1 / n))


def paired_interval(
    a: np.ndarray, b: np.ndarray, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of rate(b) - rate(a), both resampled by the same draws of utterances."""
    sums = _resampled(np.stack([errors(b) - errors(a), reference_lengths(a)], axis=1), resamples, seed)
    differences = sums[:, 0] / np.maximum(sums[:, 1], 1)
    low, high = np.quantile(differences, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_p(a: np.ndarray, b: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> float:
    """Two-sided p-value of "a and b have the same rate", both resampled by the same draws of utterances.

    ``a`` and ``b`` are the counts of two runs over the same references. The smallest p that R resamples can
    show is 2 / (R + 1) (Bisani and Ney, "Bootstrap estimates for confidence intervals in ASR", 2004).
    """
    if a.shape != b.shape or (reference_lengths(a) != reference_lengths(b)).any():
        raise UsageError(f"a paired test needs the same references: got {len(a)} and {len(b)} utterances that differ")
    differences = _resampled((errors(b) - errors(a))[:, None], resamples, seed)[:, 0]
    smaller = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    return min(1.0, 2 * (smaller + 1) / (resamples + 1))


def repeats(text: str, longest: int = 10) -> int:
    """How often a phrase of at most ``longest`` words follows upon itself: 1 for "a b c", 3 for "a b a b a b".

    A text without spaces is taken as characters, in phrases of two or more ("haha" is 2, "mm" is no phrase).
    """
    words: Sequence[str] = text.split()
    shortest = 1
    if len(words) == 1:
        words, shortest = words[0], 2
    most = min(1, len(words))
    for size in range(shortest, min(longest, len(words) // 2) + 1):
        run = 0  # positions in a row that equal the one a phrase later
        for earlier, later in zip(words, words[size:], strict=False):
            run = run + 1 if earlier == later else 0
            most = max(most, run // size + 1)
    return most


def is_looping(reference: str, hypothesis: str) -> bool:
    """A phrase recurs at least three times more than anything in the reference does."""
    return repeats(hypothesis) >= max(repeats(reference), 1) + 3


def is_cut(reference: str, hypothesis: str) -> bool:
    """Something was heard, and then the end is missing: the last fifth (3 words or more) of the reference."""
    if not hypothesis.split():
        return False
    pairs = align(reference, hypothesis)
    missing = 0
    while missing < len(pairs) and pairs[-1 - missing].kind == DELETIONS:
        missing += 1
    return missing >= max(3, len(reference.split()) / 5)


def count_failures(references: Sequence[str], hypotheses: Sequence[str]) -> dict[str, int]:
    """How many hypotheses are empty where something was said, loop (``is_looping``) or are cut (``is_cut``)."""
    pairs = list(zip(references, hypotheses, strict=True))
    return {
        "empty": sum(bool(said.split()) and not heard.split() for said, heard in pairs),
        "repeated": sum(is_looping(said, heard) for said, heard in pairs),
        "cut": sum(is_cut(said, heard) for said, heard in pairs),
    }


@dataclass(frozen=True)
class Score:
    """One transcriber over one set: the counts behind every rate, raw and normalised."""

    words: np.ndarray  # (kept, 4)
    characters: np.ndarray  # (kept, 4)
    words_raw: np.ndarray  # (n, 4)
    characters_raw: np.ndarray  # (n, 4)
    dropped: int  # references that only the normaliser emptied
    failures: dict[str, int]

    def metrics(self) -> dict[str, float]:
        """``wer`` and ``cer`` after the normaliser, ``wer_raw`` and ``cer_raw`` as given."""
        return {"wer": rate(self.words), "cer": rate(self.characters),
                "wer_raw": rate(self.words_raw), "cer_raw": rate(self.characters_raw)}  # fmt: skip


def score(references: Sequence[str], hypotheses: Sequence[str], normalizer_name: str = "english") -> Score:
    """Count everything once. Which references count where: see the module's text.

    Chinese characters are counted without the spaces that its normalizer sets.
    """
    normalize = normalizer(normalizer_name)
    pairs = [(normalize(said), normalize(heard)) for said, heard in zip(references, hypotheses, strict=True)]
    kept = [pair for raw, pair in zip(references, pairs, strict=True) if pair[0].strip() or not raw.strip()]
    said, heard = [pair[0] for pair in kept], [pair[1] for pair in kept]
    written = [
        [text.replace(" ", "") if normalizer_name == "chinese" else text for text in side] for side in (said, heard)
    ]
    return Score(
        words=count_words(said, heard),
        characters=count_characters(*written),
        words_raw=count_words(references, hypotheses),
        characters_raw=count_characters(references, hypotheses),
        dropped=len(pairs) - len(kept),
        failures=count_failures(said, heard),
    )

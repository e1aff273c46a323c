"""Error rates equal jiwer's, intervals behave as statistics should, failures are told apart."""

from __future__ import annotations

import jiwer
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steermoe.errors import DataError, UsageError
from steermoe.evaluation import scoring
from steermoe.evaluation.scoring import DELETIONS, HITS, INSERTIONS, SUBSTITUTIONS, count_words, score

WORDS = st.lists(st.sampled_from(["a", "b", "cat", "dog", "über"]), max_size=7).map(" ".join)
SPOKEN = st.lists(st.sampled_from(["a", "b", "cat", "dog", "über"]), min_size=1, max_size=7).map(" ".join)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(SPOKEN, WORDS), min_size=1, max_size=6))
def test_rates_are_jiwers_and_counts_add_up(pairs: list[tuple[str, str]]) -> None:
    references, hypotheses = [list(side) for side in zip(*pairs, strict=True)]
    words, characters = count_words(references, hypotheses), scoring.count_characters(references, hypotheses)
    assert scoring.rate(words) == pytest.approx(jiwer.wer(references, hypotheses))
    assert scoring.rate(characters) == pytest.approx(jiwer.cer(references, hypotheses))
    heard = words[:, [HITS, SUBSTITUTIONS, INSERTIONS]].sum(axis=1)
    assert heard.tolist() == [len(text.split()) for text in hypotheses]
    assert scoring.reference_lengths(words).tolist() == [len(text.split()) for text in references]
    # one utterance at a time gives the same rows: all else is a sum
    assert np.array_equal(words, np.concatenate([count_words([r], [h]) for r, h in pairs]))


@settings(max_examples=60, deadline=None)
@given(WORDS, WORDS)
def test_an_alignment_spells_both_texts_and_has_the_counted_errors(said: str, heard: str) -> None:
    pairs = scoring.align(said, heard)
    assert " ".join(pair.reference for pair in pairs if pair.reference) == said
    assert " ".join(pair.hypothesis for pair in pairs if pair.hypothesis) == heard
    assert np.bincount([pair.kind for pair in pairs], minlength=4).tolist() == count_words([said], [heard])[0].tolist()


def test_normalizers() -> None:
    assert scoring.normalizer("english")("Mr. Smith's colour, twenty-one!") == "mister smith is color 21"
    assert scoring.normalizer("english")("So... now...it is 3.5, wait…").split() == "so now it is 3.5 wait".split()
    assert scoring.score(["To leave..."], ["to leave"]).words.tolist() == [[2, 0, 0, 0]]
    assert scoring.normalizer("basic")("Grüß  Gott, Welt!").strip() == "grüß gott welt"
    assert scoring.normalizer("none")(" A\n  b! ") == "A b!"
    with pytest.raises(UsageError, match=r"'klingon'.*english, basic, chinese, none"):
        scoring.normalizer("klingon")


def test_raw_and_normalized_differ_where_they_should() -> None:
    metrics = score(["Mr. Smith's colour."], ["mister smith is color"]).metrics()
    assert metrics["wer"] == metrics["cer"] == 0.0
    assert metrics["wer_raw"] == pytest.approx(4 / 3)  # three words, none of them the same, and one more


def test_a_reference_that_only_the_normalizer_empties_is_dropped_and_counted() -> None:
    result = score(["two words", "uh"], ["two words", "five words that are invented"])
    assert result.metrics()["wer"] == 0.0
    assert result.dropped == 1
    assert result.metrics()["wer_raw"] == pytest.approx(5 / 3)  # the raw score keeps it


def test_words_heard_in_silence_are_insertions() -> None:
    result = score(["two words", ""], ["two words", "thank you"])
    assert result.dropped == 0
    assert result.metrics()["wer"] == result.metrics()["wer_raw"] == 1.0
    assert result.words[1].tolist() == [0, 0, 0, 2]


def test_an_empty_hypothesis_is_all_deletions() -> None:
    result = score(["red green blue"], [""])
    assert result.words[0, DELETIONS] == 3
    assert result.metrics()["wer"] == result.metrics()["cer"] == 1.0
    assert result.failures["empty"] == 1


def test_nothing_to_score_is_said() -> None:
    with pytest.raises(DataError, match="no word to score"):
        score(["uh"], ["hello"]).metrics()
    with pytest.raises(UsageError, match="2 references but 1 hypotheses"):
        count_words(["a", "b"], ["a"])


def utterances(rate: float, count: int, length: int = 10, seed: int = 0) -> np.ndarray:
    """Counts of ``count`` utterances of ``length`` words, each wrong with probability ``rate``."""
    wrong = np.random.default_rng(seed).binomial(length, rate, size=count)
    counts = np.zeros((count, 4), dtype=np.int64)
    counts[:, HITS], counts[:, SUBSTITUTIONS] = length - wrong, wrong
    return counts


def test_the_interval_has_the_width_that_theory_gives() -> None:
    counts = utterances(0.2, 800)
    low, high = scoring.interval(counts)
    width = 2 * 1.96 * (0.2 * 0.8 / 8000) ** 0.5
    assert low < scoring.rate(counts) < high
    assert high - low == pytest.approx(width, rel=0.12)
    assert scoring.interval(counts) == (low, high)  # seeded
    assert scoring.interval(counts, seed=1) != (low, high)
    narrow = scoring.interval(counts, level=0.5)
    assert low < narrow[0] < narrow[1] < high


def test_the_interval_does_not_depend_on_how_much_is_drawn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = utterances(0.2, 101)
    whole = scoring.interval(counts)
    monkeypatch.setattr(scoring, "_BLOCK", 700)
    assert scoring.interval(counts) == whole


def test_p_values() -> None:
    a = utterances(0.2, 400)
    assert scoring.paired_p(a, a) == 1.0
    b = a.copy()
    b[:300, HITS] -= 1  # one more error in most utterances
    b[:300, SUBSTITUTIONS] += 1
    assert scoring.paired_p(a, b) == pytest.approx(2 / 1001)
    assert scoring.paired_p(b, a) == pytest.approx(2 / 1001)
    with pytest.raises(UsageError, match="same references"):
        scoring.paired_p(a, a[:10])
    with pytest.raises(UsageError, match="same references"):
        scoring.paired_p(a, utterances(0.2, 400, length=9))


def test_p_values_of_equal_runs_are_spread_evenly() -> None:
    values = [
        scoring.paired_p(utterances(0.2, 200, seed=2 * i), utterances(0.2, 200, seed=2 * i + 1), resamples=200)
        for i in range(120)
    ]
    assert 0.35 < np.mean(values) < 0.65
    assert np.mean(np.array(values) < 0.1) < 0.2


@pytest.mark.parametrize(
    ("text", "count"),
    [("", 0), ("a", 1), ("a b c", 1), ("a b a b a b", 3), ("no no no", 3), ("x y z x y z q", 2), ("haha", 2),
     ("mm", 1), ("今天今天今天今天", 4), ("a b a", 1)],
)  # fmt: skip
def test_repeats(text: str, count: int) -> None:
    assert scoring.repeats(text) == count


def test_failures_are_told_apart() -> None:
    said = "the quick brown fox jumps over the lazy dog"
    assert scoring.is_looping(said, "the quick " * 4)
    assert not scoring.is_looping("no no no no", "no no no no no")
    assert scoring.is_looping("", "thank you " * 9)
    assert scoring.is_cut(said, "the quick brown fox")
    assert not scoring.is_cut(said, "")  # that is "empty"
    assert not scoring.is_cut(said, "the quick brown fox jumps over the dog")
    assert not scoring.is_cut("yes of course", "yes")
    failures = scoring.count_failures([said, said, said, ""], ["", "the quick " * 20, "the quick brown fox", ""])
    assert failures == {"empty": 1, "repeated": 1, "cut": 1}


def test_any_white_space_parts_words() -> None:
    assert count_words(["one\ntwo\tthree"], ["one two  three"]).tolist() == count_words(["a b c"], ["a b c"]).tolist()

"""Thirty pairs whose counts were worked out by hand, and every metric against a second computation of its own."""

from __future__ import annotations

import random
import unicodedata
from itertools import pairwise

import jiwer
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steermoe.evaluation import scoring
from steermoe.evaluation.scoring import normalizer

# normalizer, reference, hypothesis, errors in words, reference words (after the normalizer)
TRICKY = [
    ("english", "Mr. Brown's dog.", "mister browns dog", 2, 4),  # mister brown is dog / mister browns dog
    ("english", "I won't go.", "I will not go", 0, 4),
    ("english", "twenty-one", "21", 0, 1),
    ("english", "two thousand and five", "2005", 0, 1),
    ("english", "The colour grey", "the color gray", 0, 3),
    ("english", "uh, yes, hmm, yes", "yes yes", 0, 2),
    ("english", "[noise] hello (laughs)", "hello", 0, 1),
    ("english", "HELLO WORLD", "hello, world!", 0, 2),
    ("english", "café", "cafe", 0, 1),
    ("english", "a b c", "", 3, 3),
    ("english", "one", "one one one", 1, 1),  # 1 / 111: Whisper's normalizer joins spoken digits
    ("english", "$20", "twenty dollars", 0, 1),
    ("english", "the cat sat", "cat the sat", 2, 3),
    ("english", "let's go", "let us go", 0, 3),
    ("english", "ok okay", "okay ok", 2, 2),
    ("basic", "Grüße, Welt!", "grüße welt", 0, 2),
    ("basic", "won't", "wont", 2, 2),  # won t / wont
    ("basic", "twenty one", "21", 2, 2),
    ("basic", "¡Hola! ¿Qué tal?", "hola qué tal", 0, 3),
    ("basic", "[music] la la", "la la la", 1, 2),
    ("basic", "a-b", "a b", 0, 2),
    ("none", "Hello", "hello", 1, 1),
    ("none", "a  b\n c", "a b c", 0, 3),
    ("none", "end.", "end", 1, 1),
    ("none", "a b c d e f", "b c d e f g", 2, 6),  # one deleted, one inserted
    ("none", "a a a b", "a b", 2, 4),
    ("chinese", "今天天气很好。", "今天天气很好", 0, 6),
    ("chinese", "今天 天气", "今天天器", 1, 4),
    ("chinese", "我用iPhone打电话", "我用 iphone 打电话", 0, 6),  # 我 用 iphone 打 电 话
    ("chinese", "三个人", "3个人", 1, 3),  # numbers are left as they are written
]


@pytest.mark.parametrize(("name", "said", "heard", "errors", "words"), TRICKY)
def test_by_hand(name: str, said: str, heard: str, errors: int, words: int) -> None:
    counts = scoring.score([said], [heard], name).words
    assert (scoring.errors(counts)[0], scoring.reference_lengths(counts)[0]) == (errors, words)
    normalize = normalizer(name)
    assert jiwer.wer(normalize(said), normalize(heard)) == pytest.approx(errors / words)


def test_there_are_thirty() -> None:
    assert len(TRICKY) == 30


def test_chinese_characters_are_counted_without_spaces() -> None:
    metrics = scoring.score(["今天 天气 ok"], ["今天天器 OK"], "chinese").metrics()
    assert metrics["cer"] == pytest.approx(1 / 6) and metrics["wer"] == pytest.approx(1 / 5)
    assert normalizer("chinese")("ABC,123 中文！") == "abc 123 中 文"


def distance(a: list[str] | str, b: list[str] | str) -> int:
    """Levenshtein's, by the book."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, start=1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]


TEXTS = st.lists(st.sampled_from(["a", "b", "cat", "Dog", "über", "21", "今天", "it's", "don't."]), max_size=8).map(
    " ".join
)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=5), st.sampled_from(scoring.NORMALIZERS))
def test_every_rate_equals_a_second_computation(pairs: list[tuple[str, str]], name: str) -> None:
    pairs = [("start " + said, heard) for said, heard in pairs]
    references, hypotheses = (list(side) for side in zip(*pairs, strict=True))
    metrics = scoring.score(references, hypotheses, name).metrics()
    normalize = normalizer(name)
    said, heard = ([" ".join(normalize(text).split()) for text in side] for side in (references, hypotheses))
    wrong = sum(distance(r.split(), h.split()) for r, h in zip(said, heard, strict=True))
    assert metrics["wer"] == pytest.approx(wrong / sum(len(r.split()) for r in said))
    assert metrics["wer_raw"] == pytest.approx(
        sum(distance(r.split(), h.split()) for r, h in pairs) / sum(len(r.split()) for r in references)
    )
    if name == "chinese":
        said, heard = ([text.replace(" ", "") for text in side] for side in (said, heard))
    letters = sum(distance(r, h) for r, h in zip(said, heard, strict=True))
    assert metrics["cer"] == pytest.approx(letters / sum(map(len, said)))
    edits = scoring.edits(scoring.score(references, hypotheses, name).words)
    assert edits["substitutions"] + edits["deletions"] + edits["insertions"] == wrong


@settings(max_examples=40, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(0, 9))
def test_accuracy_and_its_interval_equal_a_second_computation(right: list[bool], seed: int) -> None:
    counts = scoring.verdicts(right)
    assert 1 - scoring.rate(counts) == pytest.approx(sum(right) / len(right))
    rng = np.random.default_rng(seed)
    means = [np.mean([right[i] for i in rng.integers(len(right), size=len(right))]) for _ in range(200)]
    low, high = scoring.interval(counts, resamples=200, seed=seed)
    assert [1 - high, 1 - low] == pytest.approx(np.quantile(means, [0.025, 0.975]).tolist())


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=30))
def test_the_paired_test_equals_a_second_computation(pairs: list[tuple[bool, bool]]) -> None:
    a, b = (scoring.verdicts(list(side)) for side in zip(*pairs, strict=True))
    rng = np.random.default_rng(0)
    differences = []
    for _ in range(300):
        drawn = rng.integers(len(pairs), size=len(pairs))
        differences.append(sum(pairs[i][0] - pairs[i][1] for i in drawn))  # more right before, more wrong after
    smaller = min(sum(d <= 0 for d in differences), sum(d >= 0 for d in differences))
    assert scoring.paired_p(a, b, resamples=300) == pytest.approx(min(1.0, 2 * (smaller + 1) / 301))
    low, high = scoring.paired_interval(a, b, resamples=300)
    assert [low, high] == pytest.approx((np.quantile(differences, [0.025, 0.975]) / len(pairs)).tolist())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from("abc"), max_size=14))
def test_repeats_equal_a_second_computation(words: list[str]) -> None:
    if len(words) == 1:
        return  # characters, then
    most = min(1, len(words))
    for size in range(1, min(10, len(words) // 2) + 1):
        for start in range(len(words) - size):
            phrase, count = words[start : start + size], 1
            while words[start + count * size : start + (count + 1) * size] == phrase:
                count += 1
            most = max(most, count)
    assert scoring.repeats(" ".join(words)) == most


def test_normalized_text_has_no_marks_of_any_script() -> None:
    rng = random.Random(0)
    text = "".join(chr(rng.randrange(0x20, 0x3000)) for _ in range(500))
    left = normalizer("chinese")(text)
    assert not any(unicodedata.category(c)[0] in "PSC" for c in left)
    assert all(not (a == b == " ") for a, b in pairwise(left))

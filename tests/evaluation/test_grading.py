"""Right is right and nothing else is: no substring, no guess between two choices, every way to count told apart."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steermoe.evaluation import aqa, gap, grading
from steermoe.evaluation.breakdown import shown
from steermoe.evaluation.grading import accuracy, choice_of, exact, names_only, plain

CHOICES = ["a dog", "a cat", "Rain"]


@pytest.mark.parametrize(
    ("answer", "gold", "right"),
    [("no", "no", True), ("No.", "no", True), ("snow", "no", False), ("no", "snow", False), ("", "no", False),
     ("A dog!", "dog", True), ("the dog barks", "dog", False), ("two", "2", True), ("dogs", "dog", False),
     ("yes, it is", "yes", False), ("colour", "color", True), ("uh", "yes", False), ("uh yes", "yes", True)],
)  # fmt: skip
def test_exact_means_all_of_it(answer: str, gold: str, right: bool) -> None:
    assert exact(answer, [gold]) is right


@pytest.mark.parametrize(
    ("answer", "number"),
    [("a dog", 0), ("Dog.", 0), ("B", 1), ("b", 1), ("(c)", 2), ("C) rain", 2), ("C. Rain!", 2), ("a: a dog", 0),
     ("(A) a cat", None), ("the dog and the cat", None), ("hot dog", None), ("D", None), ("", None), ("dogs", None),
     ("A cat", 1), ("It is rain", None), ("b.", 1), ("(z) rain", None), ("A dog or (B) a cat", None)],
)  # fmt: skip
def test_choices_are_taken_by_text_or_letter_never_by_substring(answer: str, number: int | None) -> None:
    assert choice_of(answer, CHOICES) == number


def test_names_only() -> None:
    assert names_only("The capital is Paris.", "Paris", ["London"])
    assert not names_only("Paris or London", "Paris", ["London"])
    assert not names_only("comparison", "paris", [])
    assert names_only("It is ice cream", "ice cream", ["ice tea"])
    assert not names_only("anything", "", [])


def test_numbers_of_the_question_are_no_answer() -> None:
    row = {"question": "What is two plus three?", "reference": "5", "kind": "arithmetic"}
    assert gap.is_right(row, "2 plus 3 is 5.") and gap.is_right(row, "five")
    assert not gap.is_right(row, "It is 5 or 6.") and not gap.is_right(row, "2 plus 3") and not gap.is_right(row, "15")
    assert not gap.is_right({"question": "Say apple", "reference": "apple", "kind": "instruction"}, "Say apple")


def annotated(answers: list[str], said: str) -> dict:
    return {"id": "x", "question": "what?", "reference": answers[0], "answers": answers, "hypothesis": said}


def test_majority_any_and_unanimous() -> None:
    row = annotated(["dog", "Dog.", "wolf"], "wolf")
    assert aqa.golds(row) == ["dog"] and not aqa.is_right(row, "wolf") and aqa.is_right(row, "a dog")
    assert aqa.golds(annotated(["a", "b", "c"], "")) == ["a", "b", "c"]
    assert aqa.kind_of(annotated(["yes", "yes", "no"], "")) == "yes or no"
    assert aqa.kind_of(annotated(["rain", "yes", "rain"], "")) == "single word"
    told = aqa.protocol([row, annotated(["yes", "yes", "yes"], "yes")])
    assert told == {"any": 1.0, "unanimous": 1.0, "annotators": pytest.approx((1 / 3 + 1) / 2 * 1.0)}
    assert aqa.protocol([]) == {"any": None, "unanimous": None, "annotators": None}


WORDS = st.sampled_from(["yes", "no", "dog", "cat"])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.lists(WORDS, min_size=3, max_size=3), WORDS), min_size=1, max_size=12))
def test_the_protocol_equals_a_second_computation(told: list[tuple[list[str], str]]) -> None:
    rows = [annotated(answers, said) for answers, said in told]
    found = aqa.protocol(rows)
    assert found["any"] == pytest.approx(sum(said in answers for answers, said in told) / len(told))
    votes = sum(answers.count(said) for answers, said in told)
    assert found["annotators"] == pytest.approx(votes / (3 * len(told)))
    for row, (answers, said) in zip(rows, told, strict=True):
        (top, count), *_ = Counter(answers).most_common()
        assert aqa.is_right(row, said) == (said == top if count > 1 else said in answers)
    agreed = [(a, s) for a, s in told if len(set(a)) == 1]
    expected = sum(s == a[0] for a, s in agreed) / len(agreed) if agreed else None
    assert found["unanimous"] == (pytest.approx(expected) if agreed else None)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("xyz"), st.booleans()), min_size=1, max_size=30))
def test_groups_equal_a_second_computation(told: list[tuple[str, bool]]) -> None:
    rows = [{"kind": kind, "right": {"hypothesis": right}} for kind, right in told]
    found = grading.groups(rows)
    for kind in {kind for kind, _ in told}:
        mine = [right for k, right in told if k == kind]
        assert found[kind]["n"] == len(mine) and found[kind]["accuracy"] == pytest.approx(sum(mine) / len(mine))
    assert set(found) == {kind for kind, _ in told}


def test_plain() -> None:
    assert plain("The Twenty-One Dogs!") == "21 dogs" and plain("A") == "a" and plain("...") == ""


@pytest.mark.parametrize(("n", "sure"), [(500, 0.0074), (62, 0.0578), (1, 0.975)])  # Clopper and Pearson's, from tables
def test_all_right_or_all_wrong_is_not_certain(n: int, sure: float) -> None:
    assert accuracy([True] * n)["interval"] == [pytest.approx(1 - sure, abs=1e-4), 1.0]
    assert accuracy([False] * n)["interval"] == [0.0, pytest.approx(sure, abs=1e-4)]


def test_a_probability_is_no_percentage() -> None:
    assert shown("p_value", 0.002) == "0.002" and shown("gap", 0.096) == "+9.6 points" and shown("f1", 0.2) == "20.0 %"

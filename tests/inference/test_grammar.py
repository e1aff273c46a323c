"""What a grammar lets be written: numbers keep off exclusive bounds by more than a float can round."""

from __future__ import annotations

from typing import Any

import pytest
from llguidance import LLMatcher

from steermoe.errors import UsageError
from steermoe.inference.ears import Ears
from steermoe.inference.grammar import Vocabulary, json_grammar


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        ({"type": "number", "exclusiveMinimum": 17}, ["17.5", "18", "17.000001"], ["17", "17.0", "17.00000000000000000001"]),
        ({"type": "number", "exclusiveMinimum": 0}, ["0.000001"], ["0", "0.00000000000000001", "-1"]),
        ({"type": "number", "exclusiveMaximum": -3.5}, ["-4", "-3.500001"], ["-3.5", "-3.50000000000000000001"]),
        ({"type": ["integer", "null"], "exclusiveMinimum": 17}, ["18", "null"], ["17"]),
        ({"type": "integer", "exclusiveMinimum": 17, "exclusiveMaximum": 19}, ["18"], ["17", "19"]),
    ],
)  # fmt: skip
def test_numbers_keep_off_exclusive_bounds(
    ears: Ears, schema: dict[str, Any], right: list[str], wrong: list[str]
) -> None:
    tokenizer = ears.processor.tokenizer
    vocabulary = Vocabulary(tokenizer, [tokenizer.eos_token_id], len(tokenizer))
    grammar = LLMatcher.grammar_from_lark(json_grammar(vocabulary, schema))

    def fits(text: str) -> bool:
        matcher, tokens = LLMatcher(vocabulary.inner, grammar), vocabulary.inner.tokenize_str(text)
        return bool(matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting())

    assert all(fits(text) for text in right) and not any(fits(text) for text in wrong)


@pytest.mark.parametrize("bound", [10**400, -(10**400), 1e308])
def test_a_bound_that_no_float_holds_is_kept_or_refused_in_one_line(ears: Ears, bound: float) -> None:
    tokenizer = ears.processor.tokenizer
    vocabulary = Vocabulary(tokenizer, [tokenizer.eos_token_id], len(tokenizer))
    try:
        assert "exclusiveMinimum" in json_grammar(vocabulary, {"type": "number", "exclusiveMinimum": bound})
    except UsageError as error:
        assert "cannot be kept to" in str(error)


def test_null_is_what_is_not_there_and_a_keyword_of_another_kind_is_refused(ears: Ears) -> None:
    null = dict.fromkeys(("required", "properties", "minLength", "pattern", "items"))
    assert json_grammar(ears.vocabulary, {"type": "object", **null}) == json_grammar(
        ears.vocabulary, {"type": "object"}
    )
    wrong = [
        {"required": True},
        {"properties": [1]},
        {"minProperties": "1"},
        {"required": [{}]},
        {"pattern": "a", "minLength": "2"},
    ]
    for schema in wrong:
        with pytest.raises(UsageError, match=r"response_format: '\w+' of a JSON schema"):
            json_grammar(ears.vocabulary, schema)
    deep: dict[str, Any] = {}
    for _ in range(5_000):
        deep = {"items": deep}
    with pytest.raises(UsageError, match="no JSON schema"):
        json_grammar(ears.vocabulary, deep)

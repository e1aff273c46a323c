"""Constrained decoding: what an LLM writes is always valid against its JSON schema, and always ends.

llguidance tells which tokens may come next. Beside it stand three rules of our own. An object that lists its
properties has no others (else a small LLM invents some), keywords that cannot be kept are refused by name, and when
the budget of tokens runs out the text is *closed*: of what the schema allows, always what leads to the end soonest.
A closed text is complete; it may run over its budget by what the schema still requires.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError
from .tools import Dialect

# One space behind commas and colons, as LLMs are used to; free white space would have no end.
SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
LONGEST = 256  # characters of a string with a pattern or format: where it may end, only the pattern knows
HUGE = 1e300  # beyond, no float has room to move
OFF = 1e-9  # of an exclusive bound, or of 1: how near to it a number may come
DEEPEST = 100  # levels of a schema
KINDS = {"required": list, "properties": dict, "minLength": int, "minProperties": int}  # of what is read here
WITH_SCHEMAS = ("anyOf", "oneOf", "prefixItems")
WITH_NAMES = ("properties", "patternProperties", "$defs", "definitions")


class Vocabulary:
    """A fast tokenizer as llguidance sees it; made once a tokenizer (a second or less)."""

    def __init__(self, tokenizer: Any, ends: Collection[int], size: int) -> None:
        """``ends`` are the tokens that end a text, ``size`` is the number of the LLM's logits."""
        from llguidance.hf import from_tokenizer

        if getattr(tokenizer, "backend_tokenizer", None) is None:
            raise UsageError("constrained decoding needs a fast tokenizer (tokenizer.json); this LLM's is a slow one")
        self.size, self.tokenizer = size, tokenizer
        self.inner = from_tokenizer(tokenizer, n_vocab=max(size, len(tokenizer)), eos_token=sorted(ends))
        self.special = {str(t): i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
        # Single characters, with which a text is closed step by step.
        self.structure, self.digits = self._single('}],:" '), self._single("0123456789")
        (self.quote,) = self._single('"')

    def _single(self, characters: str) -> list[int]:
        """The tokens that are one of these characters, in their order."""
        greedy = (self.inner.greedy_tokenize(c) for c in characters)
        return [ids[0] for ids in greedy if len(ids) == 1]

    def literal(self, text: str) -> str:
        """``text`` as a Lark expression; special tokens are tokens, not their letters."""
        if not self.special:
            return json.dumps(text)
        parts = re.split("(" + "|".join(map(re.escape, self.special)) + ")", text)
        return " ".join(f"<[{self.special[p]}]>" if p in self.special else json.dumps(p) for p in parts if p) or '""'

    def check(self, schema: Any, where: str) -> dict[str, Any]:
        """The schema as it is kept (see above). Raises UsageError that names what is not supported."""
        from llguidance import LLMatcher

        if _deeper(schema, DEEPEST):
            raise UsageError(f"{where}: no JSON schema: more than {DEEPEST} levels deep")
        try:
            kept = {**_kept(schema, where), "x-guidance": SPACING}
            text = json.dumps(kept)
        except (TypeError, ValueError) as error:
            raise UsageError(f"{where}: no JSON schema: {error}") from None
        if problem := LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(text), self.inner):
            problem = " ".join(problem.split())[:200]
            problem = re.sub(r"Unimplemented keys: \[(.*)\]", r"not supported: \1", problem)
            raise UsageError(f"{where}: this JSON schema cannot be kept to: {problem}")
        return kept


def _deeper(value: Any, most: int) -> bool:
    """Whether objects and lists lie in each other more than ``most`` levels deep; what follows them calls itself."""
    level = [value]
    for _ in range(most):
        inner = (v for v in level if isinstance(v, dict | list))
        level = [each for v in inner for each in (v.values() if isinstance(v, dict) else v)]
        if not level:
            return False
    return any(isinstance(v, dict | list) for v in level)


def _kept(schema: Any, where: str, inside_all: bool = False) -> dict[str, Any]:
    """A copy in which objects that list their properties are closed, patterns have a longest length, and numbers keep off
    exclusive bounds by more than a float can round: 17.00000000000000000001 is 17 to whoever reads it."""
    if isinstance(schema, bool):
        return {} if schema else {"not": {}}  # which is refused by name
    if not isinstance(schema, dict):
        raise UsageError(f"{where}: no JSON schema but {schema!r}; an object is needed")
    # Options of llguidance are ours to give; null is what some write for what is not there.
    kept = {k: v for k, v in schema.items() if k != "x-guidance" and (v is not None or k in ("const", "default"))}
    for key, kind in KINDS.items():
        if key in kept and (not isinstance(kept[key], kind) or isinstance(kept[key], bool)):
            raise UsageError(f"{where}: {key!r} of a JSON schema cannot be {kept[key]!r}")
    if not all(isinstance(name, str) for name in kept.get("required", ())):
        raise UsageError(f"{where}: 'required' of a JSON schema lists names, not {kept['required']!r}")
    for key in WITH_NAMES:
        if isinstance(kept.get(key), dict):
            kept[key] = {name: _kept(inner, f"{where}.{name}", inside_all) for name, inner in kept[key].items()}
    for key in WITH_SCHEMAS:
        if isinstance(kept.get(key), list):
            kept[key] = [_kept(inner, f"{where}.{key}", inside_all) for inner in kept[key]]
    if isinstance(kept.get("allOf"), list):  # their properties come together: none may close the others out
        kept["allOf"] = [_kept(inner, f"{where}.allOf", True) for inner in kept["allOf"]]
    for key in ("items", "additionalProperties"):
        if isinstance(kept.get(key), dict):
            kept[key] = _kept(kept[key], f"{where}.{key}", inside_all)
    listed = not set(kept.get("required", ())) - kept.get("properties", {}).keys()
    if "properties" in kept and listed and not inside_all and not kept.keys() & {"allOf", "anyOf", "oneOf", "$ref"}:
        kept.setdefault("additionalProperties", False)
    if kept.keys() & {"pattern", "format"} and kept.get("type", "string") == "string":
        kept.setdefault("maxLength", max(LONGEST, kept.get("minLength", 0)))
    for key, away in (("exclusiveMinimum", OFF), ("exclusiveMaximum", -OFF)):
        bound = kept.get(key)
        if isinstance(bound, int | float) and not isinstance(bound, bool) and kept.get("type") != "integer":
            size = max(1, abs(bound))
            kept[key] = bound + away * size if size < HUGE else bound
    if kept.get("minProperties", 0) > len(kept.get("required", ())):
        # A name that is written twice counts once, and a grammar does not know which names were written.
        raise UsageError(
            f'{where}: this JSON schema cannot be kept to: not supported: "minProperties" above "required"'
        )
    return kept


def json_grammar(vocabulary: Vocabulary, schema: Any, where: str = "response_format") -> str:
    """The grammar of one JSON value that is valid against ``schema``."""
    return f"start: %json {json.dumps(vocabulary.check(schema, where))}"


def call_grammar(vocabulary: Vocabulary, dialect: Dialect, tools: Sequence[dict[str, Any]]) -> str:
    """The grammar of one call of one of ``tools``, without what the dialect writes before and after all calls."""
    rules = []
    for i, tool in enumerate(tools):
        function = tool["function"]
        where = f"tool {function['name']!r}"
        schema = function.get("parameters") or {}
        schema = {"type": "object", "properties": {}, **schema}
        if schema["type"] != "object":
            raise UsageError(f"{where}: its parameters are of type {schema['type']!r}; an object is needed")
        before, after = (vocabulary.literal(text) for text in dialect.around(function["name"]))
        after = "" if after == '""' else after
        rules.append(f"call{i}: {before} %json {json.dumps(vocabulary.check(schema, where))} {after}")
    return "\n".join(["start: " + " | ".join(f"call{i}" for i in range(len(rules))), *rules])


def schema_of(response_format: Any) -> Any:
    """The JSON schema that OpenAI's ``response_format`` asks for; None for text. Raises UsageError."""
    kind = response_format.get("type") if isinstance(response_format, dict) else None
    if response_format is None or kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    if kind == "json_schema":
        told = response_format.get("json_schema")
        if isinstance(told, dict) and "schema" in told:
            return told["schema"]
        raise UsageError('response_format: "json_schema" needs {"name": ..., "schema": {...}}')
    raise UsageError(f"response_format: type {kind!r} is none of text, json_object, json_schema")


class Constraint:
    """A grammar, and how much of it is written."""

    def __init__(self, vocabulary: Vocabulary, grammar: str) -> None:
        from llguidance import LLMatcher

        self.vocabulary, self.grammar = vocabulary, grammar
        self.matcher = LLMatcher(vocabulary.inner, LLMatcher.grammar_from_lark(grammar), log_level=0)
        self.text = b""
        self._check()

    def _check(self) -> None:
        if self.matcher.is_error():
            raise UsageError(f"constrained decoding: {self.matcher.get_error().splitlines()[0]}")

    @property
    def done(self) -> bool:
        """Nothing more can come."""
        return self.matcher.is_stopped()

    @property
    def accepting(self) -> bool:
        """It may end here."""
        return self.matcher.is_accepting()

    def forced(self) -> list[int]:
        """Tokens that must come next, where there is no choice."""
        return list(self.matcher.compute_ff_tokens())

    def allowed(self) -> Tensor:
        """(V,): which tokens may come next."""
        told = torch.frombuffer(bytearray(self.matcher.compute_logit_bias()), dtype=torch.uint8).bool()
        self._check()
        return told[: self.vocabulary.size]

    def take(self, tokens: Sequence[int]) -> None:
        self.matcher.consume_tokens(list(tokens))
        self._check()
        self.text += self.vocabulary.inner.decode_bytes(list(tokens))

    def closing(self, allowed: Tensor) -> Tensor:
        """Of what is ``allowed`` (V,) what leads to the end soonest; the LLM chooses where that is not known."""
        within, escaped = _in_string(self.text)
        only = torch.zeros_like(allowed)
        if within:
            if allowed[self.vocabulary.quote] and not escaped:
                only[self.vocabulary.quote] = True
                return only
            return allowed
        structure = next((t for t in self.vocabulary.structure if allowed[t]), None)
        digits = [t for t in self.vocabulary.digits if allowed[t]]
        soonest = structure if structure is not None else next((t for t in digits if self._closes(t)), None)
        if soonest is None:
            return allowed
        only[soonest] = True
        return only

    def _closes(self, token: int) -> bool:
        ahead = self.matcher.deep_copy()
        ahead.consume_token(token)
        if ahead.is_stopped() or ahead.is_accepting():
            return True
        told = ahead.compute_logit_bias()
        return any(told[t] for t in self.vocabulary.structure)


def _in_string(text: bytes) -> tuple[bool, bool]:
    """Whether JSON that began with ``text`` is within a string, and there behind a backslash."""
    within = escaped = False
    for byte in text:
        if escaped:
            escaped = False
        elif byte == 0x5C and within:
            escaped = True
        elif byte == 0x22:
            within = not within
    return within, escaped

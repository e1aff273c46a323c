"""Is a required call always valid? Random JSON schemas, random audio, and a validator that shares no code with the grammar.

    python benchmarks/tool_schemas.py [--count 1000] [--adapter tiny] [--max-new-tokens 96] [--seed 0] [--out FILE]

Case i is a pure function of i and the seed: a tool with a random schema of bounded fields, made of the keywords that
are supported, and noise, silence, tones or nothing but clicks to hear. The call is required, parsed from what the LLM
wrote, and held against the schema by the package jsonschema. With --out, cases are kept as they come and not run again.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from steermoe.evaluation import predictions
from steermoe.inference.chat import Conversation
from steermoe.inference.ears import Ears, load

WORDS = "size colour room minutes drink note level mode city name tags when amount unit title on".split()
PATTERNS = ("^[A-Z]{2}[0-9]{3}$", "^(yes|no|maybe)$", "^[a-z]+(-[a-z]+)?$", r"^\d{4}-\d{2}$")
FORMATS = ("date", "time", "date-time", "uuid", "ipv4", "email")


def random_schema(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    """A schema of bounded fields, nested at most three deep."""
    kinds = ["string", "pattern", "format", "enum", "const", "integer", "number", "multiple", "boolean", "null"]
    kinds += ["array", "tuple", "object", "map", "any"] * (depth < 3)
    kind = "object" if depth == 0 else rng.choice(kinds)
    if kind == "string":
        low = rng.choice([0, 0, 1, 5])
        return {"type": "string", "minLength": low, "maxLength": low + rng.choice([0, 3, 40])}
    if kind == "pattern":
        return {"type": "string", "pattern": rng.choice(PATTERNS), "maxLength": 20}
    if kind == "format":
        return {"type": "string", "format": rng.choice(FORMATS)}
    if kind == "enum":
        return {
            "enum": rng.sample(["small", "große", 'a "b"', "back\\slash", "", 7, -1.5, True, None, ["x"], {"k": 1}], 4)
        }
    if kind == "const":
        return {"const": rng.choice(["fixed", 3, None, {"a": [1, "b"]}])}
    if kind in ("integer", "number"):
        low = rng.choice([-1000, -3, 0, 1, 17])
        high = low + rng.choice([0, 1, 9, 5000])
        bounds = [{"minimum": low}, {"maximum": high}, {"minimum": low, "maximum": high}, {"exclusiveMinimum": low}, {}]
        return {"type": kind, **rng.choice(bounds)}
    if kind == "multiple":
        return {"type": "integer", "multipleOf": rng.choice([2, 5, 7, 60]), "minimum": 0, "maximum": 10_000}
    if kind == "array":
        low = rng.choice([0, 0, 1, 3])
        return {
            "type": "array",
            "items": random_schema(rng, depth + 1),
            "minItems": low,
            "maxItems": low + rng.choice([0, 2]),
        }
    if kind == "tuple":
        items = [random_schema(rng, depth + 1) for _ in range(rng.randint(1, 3))]
        return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}
    if kind == "map":
        return {"type": "object", "additionalProperties": random_schema(rng, depth + 1), "maxProperties": 3}
    if kind == "any":
        return {"anyOf": [random_schema(rng, depth + 1) for _ in range(2)]}
    if kind == "object":
        names = rng.sample(WORDS, rng.randint(1, 5 - depth))
        required = rng.sample(names, rng.randint(0, len(names)))
        properties = {name: random_schema(rng, depth + 1) for name in names}
        return {"type": "object", "properties": properties, "required": required}
    return {"type": kind}


def random_audio(rng: random.Random) -> np.ndarray:
    """(N,) float32 at 16 kHz, up to four seconds: silence, noise, tones, clicks, or a square wave at full scale."""
    count = int(16_000 * rng.uniform(0.1, 4))
    draw, time = np.random.default_rng(rng.getrandbits(32)), np.arange(count) / 16_000
    kind = rng.choice(["silence", "noise", "tones", "clicks", "square"])
    if kind == "silence":
        return np.zeros(count, np.float32)
    if kind == "noise":
        return (draw.standard_normal(count) * rng.choice([0.001, 0.1, 0.4])).clip(-1, 1).astype(np.float32)
    if kind == "tones":
        chords = sum(np.sin(2 * np.pi * f * time * (1 + np.sin(3 * time))) for f in draw.uniform(80, 3000, 4)) / 4
        return np.asarray(chords, np.float32)
    if kind == "clicks":
        return (draw.random(count) < 0.001).astype(np.float32)
    return np.sign(np.sin(2 * np.pi * 110 * time)).astype(np.float32)


def case(ears: Ears, number: int, seed: int = 0, max_new_tokens: int = 96) -> dict[str, Any]:
    """One required call: its schema, arguments, and what jsonschema finds wrong with them, "" for nothing."""
    from jsonschema import Draft202012Validator

    rng = random.Random(f"{seed}/{number}")
    schema = random_schema(rng)
    function = {"name": "act", "description": "Do what was said.", "parameters": schema}
    parts = [{"type": "audio", "audio": random_audio(rng), "sampling_rate": 16_000}]
    talk = Conversation(ears, [{"role": "user", "content": parts}], [{"type": "function", "function": function}])
    heat = rng.choice([0.0, 0.0, 1.0, 2.0])
    answer = talk.answer(tool_choice="required", max_new_tokens=max_new_tokens, temperature=heat, seed=number)
    if [call.name for call in answer.tool_calls] != ["act"] or answer.finish_reason != "tool_calls":
        return {"id": str(number), "schema": schema, "wrong": f"no call: {answer}"}
    arguments = answer.tool_calls[0].arguments
    wrong = "; ".join(error.message for error in Draft202012Validator(schema).iter_errors(arguments))
    tokens = answer.usage.completion_tokens
    return {"id": str(number), "schema": schema, "arguments": arguments, "wrong": wrong, "tokens": tokens}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--adapter", default="tiny")
    parser.add_argument("--max-new-tokens", type=int, default=96)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON lines, one a case")
    told = parser.parse_args()
    done, ears, began = predictions.read(told.out) if told.out else {}, load(told.adapter), time.monotonic()
    for number in range(told.count):
        if str(number) not in done:
            done[str(number)] = row = case(ears, number, told.seed, told.max_new_tokens)
            if told.out:
                predictions.append(told.out, [row])
        if number % 50 == 49:
            print(f"{number + 1} of {told.count}, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    rows = [done[str(number)] for number in range(told.count)]
    wrong = [row for row in rows if row["wrong"]]
    for row in wrong:
        print(json.dumps(row, ensure_ascii=False))
    longest = max(row.get("tokens", 0) for row in rows)
    print(f"{len(rows) - len(wrong)} of {len(rows)} required calls are valid; the longest has {longest} tokens")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

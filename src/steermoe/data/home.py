"""``home``: commands for a house, out of Home Assistant's English sentence templates (Apache-2.0).

Every template becomes one sentence, drawn by a seed, and one call: the intent is the function, its slots are the
arguments. The package names no rooms and devices, so this file does. Beside the right function stand three others, as
no small LLM reads forty. The templates are parsed by hassil, out of its wheel; nothing is installed.
"""

from __future__ import annotations

import json
import random
import sys
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..packages import Package, unpacked
from .texts import as_sentence, number_in_words
from .tool_tasks import Accepted, ToolTask, tool

INTENTS = Package(
    "wheel",
    "home-assistant-intents",
    "2026.10.27",
    "256eb1e4fc6e6f4943d0ba4e089c9639d74d0e9d62ccddeb7148bc168de55e40",
)
HASSIL = (
    Package("wheel", "hassil", "3.12.1", "d12553cccf2548a86cfedd28c8f3171690f5e8c064470c2b66170cc5848ecdef"),
    Package("wheel", "unicode-rbnf", "2.4.1", "545a10c40316b49a6f14a1470e51a217c75438569c352abdbc5da11fef273498"),
)
OURS = {
    "area": ("kitchen", "bedroom", "living room", "bathroom", "garage", "office"),
    "floor": ("ground", "first", "second"),
    "name": ("desk lamp", "ceiling fan", "front door", "heater", "television", "radio", "curtain", "garden light"),
}
OTHERS = 3


class _Unspeakable(Exception):
    """A template that needs free text, or something that neither the package nor this file has."""


def load_tasks(split: str = "test", root: Path | None = None) -> list[ToolTask]:
    """``test`` and ``train`` are drawn with different seeds, and no sentence of one is in the other. ``root`` is not used."""
    if split not in ("", "test", "train"):
        raise DataError(f"home has no split {split!r}; it has test and train")
    test = _drawn("test")
    if split != "train":
        return test
    spoken = {task.text for task in test}
    return [task for task in _drawn("train") if task.text not in spoken]


def sentences(count: int) -> list[str]:
    """``count`` different commands to train on; not without those of the test."""
    texts: dict[str, None] = {}
    for number in range(1, 1 + count):
        texts |= dict.fromkeys(task.text or "" for task in _drawn(f"train/{number}"))
        if len(texts) >= count:
            break
    return list(texts)[:count]


@cache
def _drawn(seed: str) -> list[ToolTask]:
    for package in HASSIL:
        if (folder := str(unpacked(package))) not in sys.path:
            sys.path.append(folder)
    book = json.loads((unpacked(INTENTS) / "home_assistant_intents" / "data" / "en.json").read_text(encoding="utf-8"))
    drawn: list[tuple[str, str, str, dict[str, Any], dict[str, Any]]] = []
    seen: set[str] = set()
    for intent, told in sorted(book["intents"].items()):
        for i, block in enumerate(told["data"]):
            if "requires_context" in block:  # which room somebody is in cannot be heard
                continue
            for j, template in enumerate(block["sentences"]):
                draw = _Draw(random.Random(f"{seed}/{intent}/{i}/{j}"), book)
                try:
                    text = as_sentence(" ".join(draw.template(template).split()))
                except _Unspeakable:
                    continue
                if text not in seen:
                    seen.add(text)
                    drawn.append((f"{intent}-{i}-{j}", intent, text, draw.slots, block.get("slots", {})))
    tools = {intent: _tool(intent, book) for intent in sorted({row[1] for row in drawn})}
    tasks = []
    for id, intent, text, slots, implied in drawn:
        rng = random.Random(f"{seed}/{id}")
        chosen = [intent, *rng.sample([other for other in tools if other != intent], OTHERS)]
        rng.shuffle(chosen)
        arguments = {slot: [value] for slot, value in slots.items()}
        # What the sentence only implies, such as that a lamp is a light, may be told or left out.
        arguments |= {slot: [value, ""] for slot, value in implied.items() if slot not in slots}
        tasks.append(ToolTask(id, [tools[name] for name in chosen], Accepted(intent, arguments), text))
    return tasks


def _tool(intent: str, book: dict[str, Any]) -> dict[str, Any]:
    """Its parameters are all slots that its templates have; what a list holds is an enum."""
    from hassil import ListReference, parse_sentence

    rules = {name: parse_sentence(text) for name, text in book["expansion_rules"].items()}
    values: dict[str, dict[Any, None]] = {}  # of each slot, in order and once
    for block in book["intents"][intent]["data"]:
        for slot, value in block.get("slots", {}).items():
            values.setdefault(slot, {})[value] = None
        for template in block["sentences"]:
            found: list[ListReference] = list(parse_sentence(template).expression.list_references(rules))
            for reference in found:
                told = [value for _, value in _values(reference.list_name, book)]
                values.setdefault(reference.slot_name, {}).update(dict.fromkeys(told))
    properties: dict[str, Any] = {}
    for slot, held in values.items():
        if held and all(isinstance(value, int) for value in held):
            properties[slot] = {"type": "integer", "minimum": min(held), "maximum": max(held)}
        elif held and all(isinstance(value, str) for value in held):
            properties[slot] = {"type": "string", "enum": list(held)}
        elif held:
            properties[slot] = {"enum": list(held)}
    words = "".join(f" {c.lower()}" if c.isupper() else c for c in intent.removeprefix("Hass")).strip()
    return tool(intent, f"{words.capitalize()}.", {"type": "object", "properties": properties, "required": []})


def _values(name: str, book: dict[str, Any]) -> list[tuple[str, Any]]:
    """(spoken template, value) of a list or a range; [] for free text."""
    if name in OURS:
        return [(value, value) for value in OURS[name]]
    told = book["lists"].get(name, {})
    if (span := told.get("range")) and "multiplier" not in span:
        numbers = range(span["from"], span["to"] + 1, span.get("step", 1))
        return [(number_in_words(number), number) for number in numbers]
    return [(v["in"], v.get("out", v["in"])) if isinstance(v, dict) else (v, v) for v in told.get("values", [])]


class _Draw:
    """One sentence out of a template; ``slots`` are what it says."""

    def __init__(self, rng: random.Random, book: dict[str, Any]) -> None:
        self.rng, self.book = rng, book
        self.slots: dict[str, Any] = {}

    def template(self, text: str) -> str:
        from hassil import parse_sentence

        return self._say(parse_sentence(text).expression)

    def _say(self, part: Any) -> str:
        from hassil import Alternative, ListReference, Permutation, RuleReference, Sequence, TextChunk

        if isinstance(part, TextChunk):
            return part.original_text
        if isinstance(part, Alternative):
            return self._say(self.rng.choice(part.items))
        if isinstance(part, Permutation):
            return " ".join(self._say(item) for item in self.rng.sample(part.items, len(part.items)))
        if isinstance(part, Sequence):
            return "".join(self._say(item) for item in part.items)
        if isinstance(part, RuleReference) and part.rule_name in self.book["expansion_rules"]:
            return self.template(self.book["expansion_rules"][part.rule_name])
        if isinstance(part, ListReference) and (values := _values(part.list_name, self.book)):
            spoken, self.slots[part.slot_name] = self.rng.choice(values)
            return self.template(spoken)
        raise _Unspeakable

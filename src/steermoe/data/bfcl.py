"""``bfcl``: prompts of the Berkeley Function Calling Leaderboard (v4, Apache-2.0) that can be said aloud.

From the data files of its wheel, of which nothing is installed or run. One call is right (simple), or one of several
functions (multiple), or none of those there are (irrelevance). Prompts of at most 30 words without symbols. ``test`` and
``train`` are halves by the prompt's digest: no prompt is on both sides.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..packages import Package, unpacked
from .tool_tasks import Accepted, ToolTask, tool

WHEEL = Package("wheel", "bfcl-eval", "2026.3.23", "3bb6dfa5f0c68ad403c9ec50b00db2bb3b4cc9b38ab1ff33f48fe30d853d3a0a")
GROUPS = {
    "simple": ("simple_python", "live_simple"),
    "multiple": ("multiple", "live_multiple"),
    "irrelevance": ("irrelevance",),
}
SPEAKABLE = re.compile(r"[A-Za-z0-9 ,.?!'’$%-]+")
MOST_WORDS = 30
TYPES = {"dict": "object", "float": "number", "tuple": "array", "any": None}


def load_tasks(split: str = "test", root: Path | None = None) -> list[ToolTask]:
    """``test``, ``train``, or one group of the test half: ``simple``, ``multiple``, ``irrelevance``. ``root`` is not used."""
    split = split or "test"
    if split not in ("test", "train", *GROUPS):
        raise DataError(f"bfcl has no split {split!r}; it has test, train, {', '.join(GROUPS)}")
    folder = unpacked(WHEEL) / "bfcl_eval" / "data"
    tasks = []
    for group, files in GROUPS.items():
        if split in GROUPS and split != group:
            continue
        for file in files:
            answers = folder / "possible_answer" / f"BFCL_v4_{file}.json"
            right = {row["id"]: row["ground_truth"] for row in _rows(answers)} if group != "irrelevance" else {}
            for row in _rows(folder / f"BFCL_v4_{file}.json"):
                task = _task(row, group, right.get(row["id"]))
                if task is not None and _is_train(task.text or "") == (split == "train"):
                    tasks.append(task)
    return tasks


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _is_train(text: str) -> bool:
    return hashlib.sha256(text.encode()).digest()[0] % 2 == 1


def _task(row: dict[str, Any], group: str, right: list[dict[str, Any]] | None) -> ToolTask | None:
    """None for a prompt of several turns, or one that cannot be said aloud."""
    (turn, *more) = row["question"]
    if more or [message["role"] for message in turn] != ["user"]:
        return None
    text = " ".join(turn[0]["content"].split())
    if not SPEAKABLE.fullmatch(text) or len(text.split()) > MOST_WORDS:
        return None
    tools = [tool(_name(f["name"]), f["description"], _schema(f["parameters"])) for f in row["function"]]
    accepted = None
    if right is not None:
        ((name, arguments),) = right[0].items()
        accepted = Accepted(_name(name), arguments)
    return ToolTask(row["id"], tools, accepted, text, group=group, compare="bfcl")


def _name(name: str) -> str:
    """As the OpenAI API takes it: no dots."""
    return re.sub(r"[^a-zA-Z0-9_-]", "_", name)[:64]


def _schema(told: Any) -> Any:
    """Its types are Python's, JSON schema's are others."""
    if isinstance(told, list):
        return [_schema(item) for item in told]
    if not isinstance(told, dict):
        return told
    schema: dict[str, Any] = {}
    for key, value in told.items():
        if key == "properties":
            schema[key] = {name: _schema(inner) for name, inner in value.items()}
        elif key == "type" and isinstance(value, str):
            if (kind := TYPES.get(value, value)) is not None:
                schema[key] = kind
        elif key in ("items", "additionalProperties", "required", "enum", "description", "minItems", "maxItems"):
            schema[key] = _schema(value) if key == "items" else value
    return schema

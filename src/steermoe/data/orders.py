"""``spoken_orders``: 430 coffee orders, spoken by more than fifty people (Picovoice's speech-to-intent benchmark,
Apache-2.0). For evaluation only.

A folder, given as ``root``, that holds ``labels.jsonl`` and the recordings it names; there are no transcripts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import DataError
from .tool_tasks import Accepted, ToolTask, tool

LABELS = "labels.jsonl"


def load_tasks(split: str = "test", root: Path | None = None) -> list[ToolTask]:
    """One tool, its slots as enums of all values that occur in the labels. Raises DataError."""
    if split not in ("", "test"):
        raise DataError(f"spoken_orders has no split {split!r}; it has test, and is never for training")
    if root is None or not (root / LABELS).is_file():
        raise DataError(f"spoken_orders: give its folder with --root; {root or 'none was given'} has no {LABELS}")
    rows = [json.loads(line) for line in (root / LABELS).read_text(encoding="utf-8").splitlines() if line.strip()]
    values: dict[str, set[str]] = {}
    for row in rows:
        for slot, value in row["slots"].items():
            values.setdefault(slot, set()).add(_even(value))
    properties: dict[str, Any] = {slot: {"type": "string", "enum": sorted(v)} for slot, v in sorted(values.items())}
    tools = {
        intent: [tool(intent, "Order a drink.", {"type": "object", "properties": properties, "required": []})]
        for intent in {row["intent"] for row in rows}
    }
    return [
        ToolTask(
            id=Path(row["audio"]).stem,
            tools=tools[row["intent"]],
            accepted=Accepted(row["intent"], {slot: [_even(value)] for slot, value in row["slots"].items()}),
            audio=root / row["audio"],
        )
        for row in rows
    ]


def _even(value: str) -> str:
    return " ".join(value.split())

"""``predictions.jsonl``: what was heard in each clip, kept so that nothing is ever computed twice.

While an evaluation runs, rows are appended as they come (the last row of an id counts; a line torn by a kill
is ignored); at its end the file is replaced by one with the rows in the order of the data.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import DataError

Row = dict[str, Any]


def read(path: Path) -> dict[str, Row]:
    """Rows by id; {} where there is no file."""
    rows: dict[str, Row] = {}
    if not path.exists():
        return rows
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            row = json.loads(line)
        except ValueError:
            continue  # an empty line, or one torn by a kill
        if isinstance(row, dict) and isinstance(row.get("id"), str):
            rows[row["id"]] = row
    return rows


def read_finished(path: Path) -> list[Row]:
    """The rows of an evaluation, in order. DataError if there are none."""
    rows = list(read(path).values())
    if not rows:
        raise DataError(f"{path} holds no predictions; run `steermoe evaluate` with that output folder first")
    return rows


def read_run(folder: Path) -> dict[str, Any]:
    """The result of a finished `steermoe evaluate --out folder`, with ``label`` and the path of its ``predictions``.

    Raises DataError where there is none.
    """
    try:
        result = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise DataError(f"{folder}: no finished run; give the --out folder of a `steermoe evaluate`") from None
    return {**result, "label": str(folder), "predictions": folder / "predictions.jsonl"}


def append(path: Path, rows: Iterable[Row]) -> None:
    """Whole lines in one write, on a line of their own even after a torn one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    with open(path, "a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                text = "\n" + text
        file.write(text.encode())


def replace(path: Path, text: str) -> None:
    """Write ``text`` beside ``path`` and rename it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, path)


def finish(path: Path, rows: Iterable[Row]) -> None:
    """Replace the file by ``rows``, in their order."""
    replace(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

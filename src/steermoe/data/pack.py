"""From rows that hold their audio (Parquet, a hub's stream) to one file of encoded clips and a manifest of its slices.

The bytes are kept as they come, once, in the cache: then any clip can be read at any time, as batches by duration need
it, and memory holds one row at a time.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..audio import duration
from ..errors import AudioError, DataError
from ..packages import build_once, cache_root
from .manifest import Example, Slice, read_manifest, write_manifest

COLUMNS = ("audio", "text", "duration", "speaker", "language", "prompt", "id")


def packed(
    kind: str, key: Any, rows: Any, columns: Mapping[str, str], where: str, beside: Path | None = None
) -> list[Example]:
    """The examples of ``rows()``, an iterable of mappings, packed on first use.

    ``key`` is all that they depend on (JSON). ``columns`` maps our COLUMNS to theirs; audio and text are also found under
    their own names. An audio cell is encoded bytes, ``{"bytes": ..., "path": ...}``, or a path relative to ``beside``. Raises DataError.
    """
    if unknown := [name for name in columns if name not in COLUMNS]:
        raise DataError(f"{where}: ?{unknown[0]}=: is none of {', '.join(COLUMNS)}")
    wanted = {name: columns.get(name, name) for name in COLUMNS}
    digest = hashlib.sha256(json.dumps([key, wanted]).encode()).hexdigest()[:16]

    def build(scratch: Path) -> None:
        with open(scratch / "audio.bin", "wb") as blob:
            write_manifest(scratch / "manifest.jsonl", _packed(rows(), blob, wanted, set(columns), where, beside))

    return read_manifest(build_once(cache_root() / "data" / kind / digest, build) / "manifest.jsonl")


def _packed(
    rows: Iterable[Mapping[str, Any]],
    blob: Any,
    wanted: dict[str, str],
    said: set[str],
    where: str,
    beside: Path | None,
) -> Iterable[dict[str, Any]]:
    for number, row in enumerate(rows, start=1):
        for name in {"audio", "text"} | said:
            if wanted[name] not in row:
                raise DataError(
                    f"{where}: no column {wanted[name]!r}; say which is the {name}, ?{name}=NAME: {', '.join(row)}"
                )
        out = {name: _plain(row[wanted[name]]) for name in COLUMNS[1:] if row.get(wanted[name]) is not None}
        if not isinstance(out.get("text"), str):
            raise DataError(f"{where}, row {number}: {wanted['text']}: {out.get('text')!r} is no text")
        for name in ("speaker", "language", "prompt", "id"):
            if name in out:
                out[name] = str(out[name])
        if not isinstance(out.get("duration", 0.0), int | float):
            del out["duration"]
        cell = row[wanted["audio"]]
        content, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, Mapping) else (cell, cell)
        if isinstance(content, bytes) and content:
            out |= {"audio": "audio.bin", "offset": blob.tell(), "size": len(content)}
            blob.write(content)
            blob.flush()
            measured: Any = Slice(Path(blob.name), out["offset"], out["size"])
        elif isinstance(path, str) and path and beside is not None:
            measured = beside / path
            out["audio"] = str(measured.resolve())
        else:
            raise DataError(f"{where}, row {number}: {wanted['audio']}: neither bytes nor a path of audio")
        if "duration" not in out:
            try:
                out["duration"] = duration(measured)
            except AudioError:
                pass  # it is skipped, counted and listed when it is heard
        yield out


def _plain(value: Any) -> Any:
    """A scalar of numpy or Arrow as Python's own; NaN as nothing."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and math.isnan(value) else value

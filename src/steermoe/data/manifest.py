"""Manifests: one JSON object a line, the way to bring any data set.

Keys: ``audio`` (a path, relative to the manifest) and ``text``, and optionally ``duration``, ``start``, ``end``
(seconds), ``prompt``, ``language``, ``speaker``, ``id``; ``offset`` and ``size`` (bytes) where ``audio`` is a file that holds
many clips, such as a tar. Other keys go into ``Example.more``: suites read their own.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..audio import decode
from ..errors import DataError


@dataclass(frozen=True, slots=True)
class Slice:
    """An encoded clip inside a larger file: ``size`` bytes from ``offset`` on, read as a file object is."""

    path: Path
    offset: int
    size: int

    @classmethod
    def parse(cls, name: str) -> Slice | Path:
        """Of the ``name`` of one; a path where it is none."""
        found = re.fullmatch(r"(.+)\[(\d+):(\d+)\]", name)
        if found is None or Path(name).exists():
            return Path(name)
        return cls(Path(found[1]), int(found[2]), int(found[3]) - int(found[2]))

    @property
    def name(self) -> str:
        return f"{self.path}[{self.offset}:{self.offset + self.size}]"

    def __str__(self) -> str:
        return self.name

    @property
    def stem(self) -> str:
        return f"{self.path.stem}-{self.offset}"

    def stat(self) -> os.stat_result:
        """Of the file that holds it."""
        return self.path.stat()

    def read(self) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


@dataclass(frozen=True, slots=True)
class Example:
    """One piece of audio with its transcript. Times are seconds; ``start``..``end`` is the part that is meant."""

    id: str
    audio: Path | Slice
    text: str
    duration: float | None = None
    speaker: str | None = None
    language: str | None = None
    prompt: str | None = None
    start: float | None = None
    end: float | None = None
    more: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def load(self) -> np.ndarray:
        """(N,) float32 mono at 16 kHz. Raises AudioError."""
        return decode(self.audio, start=self.start, end=self.end)


_NUMBERS = ("duration", "start", "end")
_STRINGS = ("speaker", "language", "prompt", "id")


def read_manifest(path: Path, root: Path | None = None) -> list[Example]:
    """All examples of a manifest, in its order.

    Relative audio paths start at ``root``, or else at the manifest's own folder. Raises DataError, naming
    file, line and key.
    """
    path = Path(path)
    folder = root or path.parent
    try:
        with open(path, encoding="utf-8", newline="\n") as lines:  # and no other end of a line: JSON may hold U+2028
            examples = [
                _example(line, f"{path}:{number}", folder, f"{path.stem}-{number}")
                for number, line in enumerate(lines, start=1)
                if line.strip()
            ]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a UTF-8 manifest ({error.__class__.__name__}: {error})") from None
    if not examples:
        raise DataError(f"{path}: no examples; a manifest holds one JSON object a line, with audio and text")
    return examples


def _example(line: str, where: str, folder: Path, id: str) -> Example:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON ({error.msg}, column {error.colno}); one object a line is needed") from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: a {type(row).__name__}; an object with audio and text is needed")
    for key in ("audio", "text"):
        if not isinstance(row.get(key), str) or (key == "audio" and not row[key]):
            there = f"missing (the keys are {', '.join(row) or 'none'})"
            found = f"{row[key]!r} is no path or text" if key in row else there
            raise DataError(f"{where}: {key}: {found}")
    fields: dict[str, Any] = {"id": id}
    for key in _NUMBERS:
        value = row.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
            raise DataError(f"{where}: {key}: {value!r} is no number of seconds (0 or more)")
        fields[key] = float(value)
    for key in _STRINGS:
        value = row.get(key)
        if value is not None and not isinstance(value, str):
            raise DataError(f"{where}: {key}: {value!r} is no string")
        if value is not None:
            fields[key] = value
    start, end = fields.get("start", 0.0), fields.get("end", math.inf)
    if not start < end:
        raise DataError(f"{where}: end: {end} is not after start ({start})")
    if end < math.inf:  # the part's, whatever the file's is
        fields["duration"] = end - start
    audio = folder / Path(row["audio"]).expanduser()
    if not audio.is_file():
        raise DataError(f"{where}: audio: no such file: {audio}")
    known = {"audio", "text", "offset", "size", *_NUMBERS, *_STRINGS}
    more = {key: value for key, value in row.items() if key not in known}
    return Example(audio=_slice(row, audio, where), text=row["text"], more=more, **fields)


def _slice(row: dict[str, Any], audio: Path, where: str) -> Path | Slice:
    """The file, or the part of it that ``offset`` and ``size`` name."""
    part = {key: row[key] for key in ("offset", "size") if key in row}
    if not part:
        return audio
    for key in ("offset", "size"):
        if not isinstance(part.get(key), int) or part[key] < (key == "size"):
            raise DataError(f"{where}: {key}: {part.get(key)!r} is no number of bytes; offset and size go together")
    if part["offset"] + part["size"] > audio.stat().st_size:
        raise DataError(f"{where}: offset {part['offset']} and size {part['size']} end behind {audio}")
    return Slice(audio, **part)


def write_manifest(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Rows as JSON lines, in a file that is absent or whole."""
    beside = path.with_name(f".{path.name}.part")
    with open(beside, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    beside.replace(path)

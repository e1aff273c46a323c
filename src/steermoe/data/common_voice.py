"""``common_voice``: read speech of volunteers in many languages (Ardila et al., 2020; CC0), as an archive unpacks.

The folder of one language (``cv-corpus-N/en``) holds ``SPLIT.tsv`` (``client_id``, ``path``, ``sentence``, ``locale``, ...), ``clips/`` and,
since version 14, ``clip_durations.tsv`` in milliseconds.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from ..errors import DataError
from .manifest import Example
from .shipped import choose, find, there

SPLITS = ("train", "dev", "test", "validated", "invalidated", "other")


def load(split: str, root: Path | None = None) -> list[Example]:
    """The clips of one list; ``root`` is the folder of one language. Raises DataError."""
    book = find(f"common_voice:{split}", root, f"{choose('common_voice', split, SPLITS)}.tsv")
    told = book.with_name("clip_durations.tsv")
    seconds = {}
    for where, row in _rows(told, ("clip", "duration[ms]")) if told.is_file() else ():
        try:
            seconds[row["clip"]] = int(row["duration[ms]"]) / 1000
        except ValueError:
            raise DataError(f"{where}: duration[ms]: {row['duration[ms]']!r} is no number") from None
    examples = []
    for where, row in _rows(book, ("client_id", "path", "sentence")):
        audio = there(book.parent / "clips" / row["path"], where)
        language = row.get("locale") or book.parent.name
        examples.append(
            Example(audio.stem, audio, row["sentence"], seconds.get(row["path"]), row["client_id"], language)
        )
    if not examples:
        raise DataError(f"{book}: lists no clip")
    return examples


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str]]]:
    """("file:line", row) of a TSV whose quotation marks mean nothing."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            if missing := [name for name in columns if name not in (rows.fieldnames or [])]:
                raise DataError(
                    f"{path}:1: no column {missing[0]!r}; it has {', '.join(rows.fieldnames or []) or 'none'}"
                )
            for row in rows:
                if empty := [name for name in columns if not row[name]]:
                    raise DataError(f"{path}:{rows.line_num}: {empty[0]}: is empty")
                yield f"{path}:{rows.line_num}", row
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a TSV file in UTF-8 ({error})") from None

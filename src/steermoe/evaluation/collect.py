"""Ask systems about every clip of a set: nothing is computed twice, nothing is left out in silence.

Rows go to ``predictions.jsonl`` as they come, so that a killed evaluation goes on where it was. A shard keeps a file
of its own; the evaluation of the whole set in the same folder finds what its shards have computed, which merges them.
A clip that cannot be decoded, or that a system refuses, becomes a row with an ``error``; it enters no score.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..audio import RATE
from ..errors import AudioError, DataError, SteerMoEError, UsageError
from . import predictions
from .predictions import Row

if TYPE_CHECKING:
    from ..data import Example

OWN = "hypothesis"  # the column of the system under test
Answer = Callable[[list[Row], list[np.ndarray]], list[str]]
BASE = {"id", "data", "audio", "start", "end", "reference"}  # of a row; what else a clip brings is beside them
WORK = {"seconds", "waited", "by"}  # of a row, by column
# No clip brings a result.
OURS = BASE | WORK | {OWN, "heard", "baseline", "transcript", "text", "cascade", "duration", "error", "right"}


@dataclass(frozen=True)
class System:
    """One transcriber or answerer: its column in the rows, and who made that column (others' are not reused)."""

    column: str
    answer: Answer
    maker: str


@dataclass(frozen=True)
class Shard:
    """Part ``number`` of ``count`` (from 1): every ``count``-th clip."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """``2/8``. Raises UsageError."""
        number, _, count = text.partition("/")
        if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
            raise UsageError(f"--shard {text}: give part and parts, as 1/4 to 4/4")
        return cls(int(number), int(count))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


def named(out: Path, stem: str, suffix: str, shard: Shard | None) -> Path:
    """``out/predictions.jsonl``, or a shard's ``out/predictions-1-of-4.jsonl``."""
    return out / f"{stem}{f'-{shard.number}-of-{shard.count}' if shard else ''}{suffix}"


def collect(
    examples: Sequence[Example],
    systems: Sequence[System],
    *,
    data: str,
    batch_size: int = 8,
    out: Path | None = None,
    shard: Shard | None = None,
) -> list[Row]:
    """A row for each of ``examples`` (or of the shard's), in their order, with a column for each system.

    ``row["seconds"][column]`` is the clip's share of the time its batch took, ``row["waited"][column]`` all of it.
    Raises DataError for a set with no clip or with two clips of one id.
    """
    if batch_size < 1:
        raise UsageError(f"batch size {batch_size} must be 1 or more")
    if not examples:
        raise DataError(f"{data or 'the set'} holds no clip to evaluate")
    seen: set[str] = set()
    for example in examples:
        if example.id in seen:
            raise DataError(f"{data or 'the set'} holds two clips with the id {example.id!r}; make ids unique")
        seen.add(example.id)
    if shard is not None:
        examples = examples[shard.number - 1 :: shard.count]
        if not examples:
            raise DataError(f"{data or 'the set'} has too few clips for --shard {shard}")
    path = None if out is None else named(out, "predictions", ".jsonl", shard)
    done = _reusable(out, examples, systems, data) if out else {}
    _ask(examples, systems, done, batch_size, data, path)
    return [done[example.id] for example in examples]


def save(out: Path, shard: Shard | None, rows: list[Row], result: dict[str, Any]) -> None:
    """``predictions.jsonl`` in the order of the data and ``metrics.json``; shards that are merged now are removed."""
    predictions.finish(named(out, "predictions", ".jsonl", shard), rows)
    text = json.dumps(result, indent=2, ensure_ascii=False) + "\n"
    predictions.replace(named(out, "metrics", ".json", shard), text)
    if shard is None:
        for part in [*out.glob("predictions-*-of-*.jsonl"), *out.glob("metrics-*-of-*.json")]:
            part.unlink()


def heard(rows: Sequence[Row], data: str) -> list[Row]:
    """The rows without an error. DataError if there are none."""
    kept = [row for row in rows if "error" not in row]
    if not kept:
        raise DataError(f"none of the {len(rows)} clips of {data or 'the set'} can be decoded: {rows[0]['error']}")
    return kept


def undecodable(rows: Sequence[Row]) -> list[dict[str, str]]:
    return [{"id": row["id"], "error": row["error"]} for row in rows if "error" in row]


def speed(rows: Sequence[Row], column: str) -> float | None:
    """Seconds of audio per second of work; None where no time was measured."""
    spent = sum(row["seconds"][column] for row in rows)
    return sum(row["duration"] for row in rows) / spent if spent else None


def latency(rows: Sequence[Row], column: str) -> dict[str, float]:
    """Seconds from giving a batch to having it, over its clips: ``median`` and ``p95``."""
    waited = [row["waited"][column] for row in rows]
    return {"median": float(np.median(waited)), "p95": float(np.quantile(waited, 0.95))}


def data_digest(rows: Sequence[Row]) -> str:
    """SHA-256 over id, reference and length (in samples) of each clip, in any order."""
    lines = [json.dumps([row["id"], row["reference"], round(row["duration"] * RATE)]) for row in rows]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def _row(example: Example, data: str) -> Row:
    told = {"question": example.prompt, "speaker": example.speaker}
    more = {key: value for key, value in (told | dict(example.more)).items() if value is not None and key not in OURS}
    return {"id": example.id, "data": data, "audio": str(example.audio), "start": example.start, "end": example.end,
            "reference": example.text, **more, "seconds": {}, "waited": {}, "by": {}}  # fmt: skip


def _reusable(out: Path, examples: Sequence[Example], systems: Sequence[System], data: str) -> dict[str, Row]:
    """What earlier runs and shards left: rows of the same clips, stripped of columns that others made."""
    rows: dict[str, Row] = {}
    for path in [out / "predictions.jsonl", *sorted(out.glob("predictions-*-of-*.jsonl"))]:
        found = predictions.read(path)
        for example in examples:
            old, row = found.get(example.id, {}), rows.get(example.id) or _row(example, data)
            if "duration" not in old or any(old.get(key) != row[key] for key in _row(example, data).keys() - WORK):
                continue
            row["duration"] = old["duration"]
            for system in systems:
                column = system.column
                if column in old and old.get("by", {}).get(column) == system.maker:
                    row[column], row["by"][column] = old[column], system.maker
                    row["seconds"][column] = old.get("seconds", {}).get(column, 0.0)
                    row["waited"][column] = old.get("waited", {}).get(column, 0.0)
            rows[example.id] = row
    return rows


def _size(example: Example) -> float:
    """Roughly the seconds of a clip, without decoding it."""
    if example.duration is not None:
        return example.duration
    if example.start is not None and example.end is not None:
        return example.end - example.start
    try:
        return example.audio.stat().st_size / (2 * RATE)
    except OSError:
        return 0.0  # decoding will say what is wrong with it


def _ask(
    examples: Sequence[Example],
    systems: Sequence[System],
    done: dict[str, Row],
    batch_size: int,
    data: str,
    path: Path | None,
) -> None:
    """Fill ``done``. Clips of like length go together, the longest first: too big a batch fails at once."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    todo = [e for e in examples if any(s.column not in done.get(e.id, {}) for s in systems)]
    if len(todo) < len(examples):
        told = f"{len(examples) - len(todo)} of {len(examples)} clips were answered by an earlier run in this folder"
        print(f"{told}: their rows are kept; remove {path} to ask again", file=sys.stderr)
    todo.sort(key=_size, reverse=True)
    look = (TextColumn("evaluating"), BarColumn(), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*look, console=Console(stderr=True)) as progress:
        task = progress.add_task("evaluating", total=len(examples), completed=len(examples) - len(todo))
        for start in range(0, len(todo), batch_size):
            rows = _ask_batch(todo[start : start + batch_size], systems, done, data)
            done.update({row["id"]: row for row in rows})
            if path is not None:
                predictions.append(path, rows)
            progress.advance(task, len(rows))
    for row in done.values():
        if "error" in row:
            print(f"warning: clip {row['id']} was not heard: {row['error']}", file=sys.stderr)


def _ask_batch(batch: Sequence[Example], systems: Sequence[System], done: dict[str, Row], data: str) -> list[Row]:
    rows, heard = [], []
    for example in batch:
        row = done.get(example.id) or _row(example, data)
        try:
            samples = example.load()
        except (AudioError, OSError) as error:
            row["error"] = str(error)
        else:
            row["duration"] = round(len(samples) / RATE, 4)
            heard.append((row, samples))
        rows.append(row)
    for system in systems:
        todo = [(row, samples) for row, samples in heard if system.column not in row]
        if not todo:
            continue
        try:
            _answer(system, todo)
        except (AudioError, UsageError):  # whose fault is it?
            for one in todo:
                try:
                    _answer(system, [one])
                except (AudioError, UsageError) as error:
                    one[0]["error"] = str(error)
            heard = [(row, samples) for row, samples in heard if "error" not in row]
    return rows


def _answer(system: System, todo: list[tuple[Row, np.ndarray]]) -> None:
    begin = time.perf_counter()
    texts = system.answer([row for row, _ in todo], [samples for _, samples in todo])
    seconds = time.perf_counter() - begin
    if len(texts) != len(todo):
        raise SteerMoEError(f"the transcriber of {system.column!r} gave {len(texts)} texts for {len(todo)} clips")
    audio = sum(row["duration"] for row, _ in todo)
    for (row, _), text in zip(todo, texts, strict=True):
        row[system.column], row["by"][system.column] = text, system.maker
        row["seconds"][system.column] = round(seconds * row["duration"] / audio, 6) if audio else 0.0
        row["waited"][system.column] = round(seconds, 6)

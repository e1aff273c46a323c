"""The ``asr`` suite: word and character error rates of a transcriber over a whole set, never a sample of it.

A clip that cannot be decoded is listed under ``undecodable``, counted in ``failures`` and named on stderr; it
enters no rate, since no transcriber heard it. ``n`` is the number of clips that were heard.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..audio import RATE
from ..errors import AudioError, DataError, UsageError
from . import predictions, scoring
from .predictions import Row
from .provenance import provenance

if TYPE_CHECKING:
    from ..data import Example

Transcribe = Callable[[list[np.ndarray]], list[str]]
OWN = "hypothesis"  # the column of the transcriber under test
RESERVED = {OWN, "baseline", "id", "audio", "start", "end", "data", "duration", "reference", "error", "seconds", "by"}


@dataclass(frozen=True)
class System:
    """One transcriber: its column in the predictions, and who made that column (rows of others are not reused)."""

    column: str
    transcribe: Transcribe
    maker: str


def evaluate_asr(
    transcribe: Transcribe,
    examples: Sequence[Example],
    *,
    normalizer: str = "english",
    batch_size: int = 8,
    out: Path | None = None,
    baseline: Transcribe | None = None,
    columns: Mapping[str, Transcribe] | None = None,
    data: str = "",
    adapter: str = "",
    fingerprint: str = "",
) -> dict[str, Any]:
    """Transcribe all ``examples`` and score what was heard.

    ``transcribe``, ``baseline`` and every one of ``columns`` map a batch of float32 mono 16 kHz arrays to as
    many texts. With ``out``, rows go to ``out/predictions.jsonl`` as they come, and those found there from the
    same ``data``, ``adapter`` and ``fingerprint`` (a digest of the adapter's tensors, so that one trained anew
    under an old name is heard anew) are not computed again; the result is ``out/metrics.json`` too.

    Returns the value of ``evaluate --json`` and beside it ``columns`` (rates of each), ``failures``,
    ``undecodable`` and ``provenance``. ``rtfx`` is seconds of audio per second spent in ``transcribe``.
    Raises DataError for a set with no clip, with two clips of one id, or without a single word to score.
    """
    maker = f"{adapter}@{fingerprint[:12]}" if fingerprint else adapter
    systems = [System(OWN, transcribe, maker)]
    if baseline is not None:
        systems.append(System("baseline", baseline, getattr(baseline, "name", "baseline")))
    for name, extra in (columns or {}).items():
        if name in RESERVED:
            raise UsageError(f"the extra column {name!r} has the name of a field of predictions.jsonl; rename it")
        systems.append(System(name, extra, f"{maker}/{name}"))
    _check(examples, normalizer, batch_size, data)

    path = None if out is None else out / "predictions.jsonl"
    done = _reusable(path, examples, systems, data) if path else {}
    _hear(examples, systems, done, batch_size, data, path)
    rows = [done[example.id] for example in examples]
    result = _result(rows, systems, normalizer, data, adapter)
    if path is not None:
        predictions.finish(path, rows)
        predictions.replace(path.with_name("metrics.json"), json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    return result


def _check(examples: Sequence[Example], normalizer: str, batch_size: int, data: str) -> None:
    """Everything that would spoil the end of a long run, said at its start."""
    if batch_size < 1:
        raise UsageError(f"batch size {batch_size} must be 1 or more")
    normalize = scoring.normalizer(normalizer)
    if not examples:
        raise DataError(f"{data or 'the set'} holds no clip to evaluate")
    seen: set[str] = set()
    for example in examples:
        if example.id in seen:
            raise DataError(f"{data or 'the set'} holds two clips with the id {example.id!r}; make ids unique")
        seen.add(example.id)
    if not any(normalize(example.text).strip() for example in examples):
        raise DataError(f"{data or 'the set'} has no word of reference text left after the normalizer {normalizer!r}")


def _row(example: Example, data: str) -> Row:
    return {"id": example.id, "data": data, "audio": str(example.audio), "start": example.start, "end": example.end,
            "reference": example.text, "seconds": {}, "by": {}}  # fmt: skip


def _reusable(path: Path, examples: Sequence[Example], systems: list[System], data: str) -> dict[str, Row]:
    """What an earlier run left: rows of the same clips, stripped of columns that others made."""
    found, rows = predictions.read(path), {}
    for example in examples:
        old, row = found.get(example.id, {}), _row(example, data)
        same = all(old.get(key) == row[key] for key in ("data", "audio", "start", "end", "reference"))
        if not same or "duration" not in old:
            continue
        row["duration"] = old["duration"]
        for system in systems:
            column = system.column
            if column in old and old.get("by", {}).get(column) == system.maker:
                row[column], row["by"][column] = old[column], system.maker
                row["seconds"][column] = old.get("seconds", {}).get(column, 0.0)
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


def _hear(
    examples: Sequence[Example],
    systems: list[System],
    done: dict[str, Row],
    batch_size: int,
    data: str,
    path: Path | None,
) -> None:
    """Fill ``done``. Clips of like length go together, the longest first: too big a batch fails at once."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    todo = [e for e in examples if any(s.column not in done.get(e.id, {}) for s in systems)]
    todo.sort(key=_size, reverse=True)
    look = (TextColumn("evaluating"), BarColumn(), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*look, console=Console(stderr=True)) as progress:
        task = progress.add_task("evaluating", total=len(examples), completed=len(examples) - len(todo))
        for start in range(0, len(todo), batch_size):
            rows = _hear_batch(todo[start : start + batch_size], systems, done, data)
            done.update({row["id"]: row for row in rows})
            if path is not None:
                predictions.append(path, rows)
            progress.advance(task, len(rows))
    for row in done.values():
        if "error" in row:
            print(f"warning: clip {row['id']} was not heard: {row['error']}", file=sys.stderr)


def _hear_batch(batch: list[Example], systems: list[System], done: dict[str, Row], data: str) -> list[Row]:
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
        begin = time.perf_counter()
        texts = system.transcribe([samples for _, samples in todo])
        seconds = time.perf_counter() - begin
        if len(texts) != len(todo):
            raise UsageError(f"the transcriber of {system.column!r} gave {len(texts)} texts for {len(todo)} clips")
        audio = sum(row["duration"] for row, _ in todo)
        for (row, _), text in zip(todo, texts, strict=True):
            row[system.column], row["by"][system.column] = text, system.maker
            row["seconds"][system.column] = round(seconds * row["duration"] / audio, 6) if audio else 0.0
    return rows


def _result(rows: list[Row], systems: list[System], normalizer: str, data: str, adapter: str) -> dict[str, Any]:
    heard = [row for row in rows if "error" not in row]
    if not heard:
        raise DataError(f"none of the {len(rows)} clips of {data or 'the set'} can be decoded: {rows[0]['error']}")
    references = [row["reference"] for row in heard]
    scores = {s.column: scoring.score(references, [row[s.column] for row in heard], normalizer) for s in systems}
    own = scores[OWN]

    def rates(system: System) -> dict[str, Any]:
        mine = scores[system.column]
        return mine.metrics() | {
            "name": system.maker,
            "interval": {"wer": list(scoring.interval(mine.words))},
            "p_value": scoring.paired_p(own.words, mine.words),
            "rtfx": _speed(heard, system.column),
            "failures": mine.failures,
        }

    others = {system.column: rates(system) for system in systems[1:]}
    return {
        "suite": "asr",
        "data": data,
        "n": len(heard),
        "normalizer": normalizer,
        "metrics": own.metrics(),
        "interval": {"wer": list(scoring.interval(own.words))},
        "baseline": others.pop("baseline", None),
        "rtfx": _speed(heard, OWN),
        "adapter": adapter,
        "columns": others,
        "failures": own.failures | {"undecodable": len(rows) - len(heard), "unscored": own.dropped},
        "undecodable": [{"id": row["id"], "error": row["error"]} for row in rows if "error" in row],
        "seconds": round(sum(row["duration"] for row in heard), 3),
        "provenance": provenance() | {"data_sha256": data_digest(heard)},
    }


def _speed(rows: list[Row], column: str) -> float | None:
    """Seconds of audio per second of work; None where no time was measured."""
    spent = sum(row["seconds"][column] for row in rows)
    return sum(row["duration"] for row in rows) / spent if spent else None


def data_digest(rows: Sequence[Row]) -> str:
    """SHA-256 over id, reference and length (in samples) of each clip, in any order."""
    lines = [json.dumps([row["id"], row["reference"], round(row["duration"] * RATE)]) for row in rows]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def compare(before: Path, after: Path, normalizer: str = "english") -> dict[str, Any]:
    """Two ``predictions.jsonl`` over the same clips: ``n``, both WERs, their difference and its paired p-value."""
    old = {row["id"]: row for row in predictions.read_finished(before) if OWN in row}
    new = {row["id"]: row for row in predictions.read_finished(after) if OWN in row}
    shared = [key for key, row in old.items() if key in new and new[key]["reference"] == row["reference"]]
    if not shared:
        raise DataError(f"{before} and {after} share no clip of the same id and text; compare runs over the same data")
    references = [old[key]["reference"] for key in shared]
    a = scoring.score(references, [old[key][OWN] for key in shared], normalizer).words
    b = scoring.score(references, [new[key][OWN] for key in shared], normalizer).words
    return {"n": len(shared), "before": scoring.rate(a), "after": scoring.rate(b),
            "difference": scoring.rate(b) - scoring.rate(a), "p_value": scoring.paired_p(a, b)}  # fmt: skip

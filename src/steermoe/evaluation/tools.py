"""The ``tools`` suite: is the right function called with the right arguments, when it is asked for aloud?

Graded is the parsed call, never a piece of text. Columns: ``text`` (the LLM reads what was asked), ``speech`` (it
hears it) and ``cascade`` (it reads what the encoder's own decoder wrote of it); recordings without a transcript have no
``text``. The gap is text less speech, on the same tasks.

A call is right when its name is, every argument has an accepted value, and none is missing or added; where no tool fits,
when none is called. That is how BFCL grades, and for its prompts strings are compared as there: without case, spaces and
the marks of ``BFCL_MARKS``. Elsewhere numbers are evened out, too: "twelve ounce" is "12 ounce".
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.tool_tasks import Accepted, ToolTask, load_tasks
from ..errors import AudioError, DataError, UsageError
from . import collect, predictions, scoring
from .grading import accuracy
from .listener import adapter_digest, ears_of
from .predictions import Row
from .provenance import provenance

if TYPE_CHECKING:
    from ..inference.ears import Ears
    from .listener import Listener
    from .suites import Options

COLUMNS = ("text", "speech", "cascade")
BFCL_MARKS = re.compile(r"[ ,./\-_*^]")
CAUSES = ("right", "no call", "needless call", "wrong function", "missing argument", "added argument", "wrong value")
BATCH = 8  # tasks that are answered together
REFUSED = "refused"  # its schema cannot be kept to


def plain(text: str, compare: str) -> str:
    """What is compared of a string."""
    if compare == "bfcl":
        return BFCL_MARKS.sub("", text.lower()).replace("'", '"')
    return " ".join(scoring.normalizer("english")(text).split())


def same(wanted: Any, given: Any, compare: str) -> bool:
    """Whether ``given`` is the accepted value ``wanted``; in an accepted object every key has its own accepted values."""
    if isinstance(wanted, str) and isinstance(given, str):
        return plain(wanted, compare) == plain(given, compare)
    if isinstance(wanted, list) and isinstance(given, list):
        return len(wanted) == len(given) and all(same(w, g, compare) for w, g in zip(wanted, given, strict=True))
    if isinstance(wanted, dict) and isinstance(given, dict):
        return not set(given) - set(wanted) and all(
            any(same(value, given[key], compare) for value in values) if key in given else "" in values
            for key, values in wanted.items()
        )
    return isinstance(wanted, bool) == isinstance(given, bool) and bool(wanted == given)


def grade(calls: Sequence[dict[str, Any]], accepted: Accepted | None, compare: str = "words") -> str:
    """One of CAUSES: ``right``, or the first thing that is wrong."""
    if accepted is None:
        return "needless call" if calls else "right"
    if not calls:
        return "no call"
    call, wanted = calls[0], accepted.arguments
    if len(calls) > 1 or call["name"] != accepted.name:
        return "wrong function"
    given = call["arguments"]
    if any(key not in given and "" not in values for key, values in wanted.items()):
        return "missing argument"
    if set(given) - set(wanted):
        return "added argument"
    fits = (any(same(value, given[key], compare) for value in wanted[key]) for key in given)
    return "right" if all(fits) else "wrong value"


def slots(calls: Sequence[dict[str, Any]], accepted: Accepted | None, compare: str = "words") -> tuple[int, int, int]:
    """(hits, given, wanted) of arguments: the counts behind F1. Those of a wrong function are given, and no hits."""
    wanted = {k: v for k, v in accepted.arguments.items() if "" not in v} if accepted else {}
    given = [(call["name"], key, value) for call in calls for key, value in call["arguments"].items()]
    if accepted:  # an argument that may be left out counts neither way when it is right
        free = {k: v for k, v in accepted.arguments.items() if "" in v}
        given = [g for g in given if not any(same(v, g[2], compare) for v in free.get(g[1], ()))]
    hits = sum(
        accepted is not None and name == accepted.name and any(same(v, value, compare) for v in wanted.get(key, ()))
        for name, key, value in given
    )
    return hits, len(given), len(wanted)


def run(listener: Listener, options: Options) -> dict[str, Any]:
    """All tasks of ``options.data`` in the columns that can be asked: the speech's accuracy, and the others' beside it."""
    if options.shard is not None:
        raise UsageError(f"--shard {options.shard}: the tools suite is not sharded; run it whole")
    rows, told = ask_all(
        ears_of(listener, "tools"),
        options.data,
        options.root,
        limit=options.limit,
        tool_choice=options.tool_choice,
        out=options.out,
    )
    columns = {name: {"accuracy": column.pop("exact"), **column} for name, column in told["columns"].items()}
    for column in columns.values():
        column["groups"] = {g: {"accuracy": v.pop("exact"), **v} for g, v in column["groups"].items()}
    own = columns.pop("speech")
    gap = {name: told[name] for name in ("gap", "p_value") if name in told}
    result: dict[str, Any] = {
        "suite": "tools",
        "data": told["data"],
        "n": told["n"],
        "metrics": {"accuracy": own["accuracy"], "f1": own["f1"], **gap},
        "interval": {"accuracy": own["interval"]},
        "groups": own["groups"],
        "columns": columns,
        "tool_choice": options.tool_choice,
        "failures": {cause: n for cause, n in own["causes"].items() if cause != "right"}
        | {"undecodable": told["unheard"]},
        "adapter": listener.name,
        "provenance": provenance() | listener.about(),
    }
    if options.out is not None:
        collect.save(options.out, None, rows, result)
    return result


def ask_all(
    ears: Ears,
    source: str,
    root: Path | None = None,
    *,
    limit: int | None = None,
    columns: Sequence[str] = COLUMNS,
    tool_choice: str = "auto",
    max_new_tokens: int = 128,
    out: Path | None = None,
) -> tuple[list[Row], dict[str, Any]]:
    """Ask all tasks of ``source`` (spoken_orders, bfcl, home; see data/tool_tasks.py), or ``limit`` of them evenly spread:
    the rows, and what ``measure`` makes of them.

    ``tool_choice``: ``auto``, or ``required`` (a call in any case: then irrelevance is never right). With ``out``, rows go to
    ``out/predictions.jsonl`` as they come, and what the same adapter answered to the same task is not asked again.
    Raises DataError, UsageError.
    """
    if wrong := [c for c in columns if c not in COLUMNS]:
        raise UsageError(f"column {wrong[0]!r} is none of {', '.join(COLUMNS)}")
    tasks = load_tasks(source, root)
    data, total = source, len(tasks)
    if limit is not None and limit < total:
        tasks = [tasks[i * total // limit] for i in range(limit)]
        data = f"{source}[{limit} of {total}]"
    shown = [c for c in COLUMNS if c in columns and (c != "text" or all(task.text for task in tasks))]
    maker = _maker(ears, tool_choice, max_new_tokens)
    path = out / "predictions.jsonl" if out is not None else None
    rows = _ask(ears, tasks, shown, maker, _asker(ears, shown, tool_choice, max_new_tokens), path)
    return rows, {"data": data, **measure(rows, tasks, shown)}


def _maker(ears: Ears, tool_choice: str, max_new_tokens: int) -> str:

    return f"{ears.adapter_name}@{adapter_digest(ears)[:12]}/{tool_choice}/{max_new_tokens}"


def _digest(task: ToolTask) -> str:
    return hashlib.sha256(json.dumps([task.text, task.tools], sort_keys=True).encode()).hexdigest()[:16]


Asker = Callable[[Sequence[ToolTask], str, Sequence[Row]], list[dict[str, Any]]]


def _asker(ears: Ears, columns: Sequence[str], tool_choice: str, max_new_tokens: int) -> Asker:
    """What answers tasks in a column, together: ``{"calls", "text"}`` each, or ``{"refused"}``, or ``{"error"}`` where the task
    was not heard; transcripts are kept in the rows."""
    from ..inference.chat import Conversation, Reply, together

    own: Callable[[list[np.ndarray]], list[str]] | None = None
    if "cascade" in columns:
        from .baseline import WhisperOwnDecoder

        own = WhisperOwnDecoder(ears.config.encoder, device=str(ears.model.device))

    def begin(task: ToolTask, column: str, row: Row) -> Reply:
        content: Any = task.text
        if column == "speech":
            content = [{"type": "audio", "audio": task.load(), "sampling_rate": 16_000}]
        elif column == "cascade" and own is not None:
            content = row["transcript"] = row.get("transcript") or own([task.load()])[0]
        return Conversation(ears, tools=task.tools).stream(
            content, tool_choice=tool_choice, max_new_tokens=max_new_tokens
        )

    def ask(tasks: Sequence[ToolTask], column: str, rows: Sequence[Row]) -> list[dict[str, Any]]:
        told: list[dict[str, Any]] = [{} for _ in tasks]
        replies: dict[int, Reply] = {}
        for i, (task, row) in enumerate(zip(tasks, rows, strict=True)):
            try:
                replies[i] = begin(task, column, row)
            except UsageError as error:
                told[i] = {"calls": [], "text": "", REFUSED: str(error)}
            except (AudioError, OSError) as error:
                told[i] = {"error": str(error)}
        for i, answer in zip(replies, together(list(replies.values())), strict=True):
            if isinstance(answer, UsageError):
                told[i] = {"calls": [], "text": "", REFUSED: str(answer)}
                continue
            calls = [{"name": call.name, "arguments": call.arguments} for call in answer.tool_calls]
            told[i] = {"calls": calls, "text": answer.text}
        return told

    return ask


def _ask(
    ears: Ears, tasks: Sequence[ToolTask], columns: Sequence[str], maker: str, ask: Asker, path: Path | None
) -> list[Row]:
    from rich.console import Console
    from rich.progress import track

    found, rows = predictions.read(path) if path is not None else {}, list[Row]()
    parts = [tasks[start : start + BATCH] for start in range(0, len(tasks), BATCH)]
    for part in track(parts, "asking", console=Console(stderr=True)):
        mine: list[Row] = []
        for task in part:
            row: Row = {"id": task.id, "group": task.group, "task": _digest(task), "maker": maker}
            old = found.get(task.id, {})
            mine.append(old if all(old.get(key) == row[key] for key in row) else row)
        before = [len(row) for row in mine]
        for column in columns:
            missing = [i for i, row in enumerate(mine) if column not in row]
            answers = ask([part[i] for i in missing], column, [mine[i] for i in missing]) if missing else []
            for i, answer in zip(missing, answers, strict=True):
                if "error" in answer:
                    mine[i]["error"] = answer["error"]
                    print(f"warning: task {part[i].id} was not heard: {answer['error']}", file=sys.stderr)
                else:
                    mine[i][column] = answer
        rows += mine
        if path is not None and (new := [row for row, size in zip(mine, before, strict=True) if len(row) > size]):
            predictions.append(path, new)
    return rows


def measure(rows: Sequence[Row], tasks: Sequence[ToolTask], columns: Sequence[str]) -> dict[str, Any]:
    """Of each column, over the tasks that all of them answered: ``exact`` with its 95 % ``interval``, ``f1`` of arguments,
    ``causes`` with counts, ``groups``; ``gap`` of exact from text to speech with its paired ``p_value``."""
    pairs = [(r, t) for r, t in zip(rows, tasks, strict=True) if all(c in r for c in columns)]
    if not pairs or not columns:
        raise DataError("no task could be asked in all columns")
    found: dict[str, Any] = {}
    rights: dict[str, np.ndarray] = {}
    for column in columns:
        causes = [
            REFUSED if REFUSED in row[column] else grade(row[column]["calls"], task.accepted, task.compare)
            for row, task in pairs
        ]
        right = np.array([cause == "right" for cause in causes])
        # As scoring counts words: a task is one, a hit or a substitution.
        rights[column] = np.stack([right, ~right, 0 * right, 0 * right], axis=1).astype(np.int64)
        hits, given, wanted = np.sum(
            [slots(r[column]["calls"], t.accepted, t.compare) for r, t in pairs], axis=0
        ).tolist()
        groups = {group: [bool(x) for x, (_, t) in zip(right, pairs, strict=True) if t.group == group]
                  for group in sorted({t.group for _, t in pairs})}  # fmt: skip
        found[column] = {
            "n": len(pairs),
            "exact": float(right.mean()),
            "interval": accuracy(right.tolist())["interval"],
            "f1": 2 * hits / (given + wanted) if given + wanted else 1.0,
            "causes": dict(Counter(causes).most_common()),
            "groups": {
                group: {"n": len(x), "exact": sum(x) / len(x), "interval": accuracy(x)["interval"]}
                for group, x in groups.items()
            },
        }
    metrics: dict[str, Any] = {"n": len(pairs), "unheard": len(rows) - len(pairs), "columns": found}
    if "text" in found and "speech" in found:
        metrics["gap"] = found["text"]["exact"] - found["speech"]["exact"]
        metrics["p_value"] = scoring.paired_p(rights["text"], rights["speech"])
    return metrics

"""Tables of a report: where errors come from, and what was answered right."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from . import scoring
from .collect import OWN
from .page import row, section, table
from .predictions import Row

SECONDS = (2.0, 5.0, 10.0, 20.0, 30.0)  # where durations are parted
MOST = 40  # rows of a table of speakers
EQUAL = {"logits_equal": "Same logits", "text_equal": "Same text", "batch_equal": "Same logits in a batch"}
Run = Mapping[str, Any]


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def shown(metric: str, value: float | None) -> str:
    """A metric's value: a share, a difference of two, or a probability."""
    if value is None or metric not in ("gap", "p_value"):
        return percent(value)
    return f"{value:.3f}" if metric == "p_value" else f"{100 * value:+.1f} points"


def breakdown(name: str, rows: Sequence[Row], normalizer: str) -> str:
    """Insertions, deletions and substitutions of every column; WER by duration, and by speaker where they are known."""
    normalize = scoring.normalizer(normalizer)
    # As in the rates: where the normaliser leaves no word of the reference, nothing is counted.
    heard = [r for r in rows if OWN in r and "error" not in r and normalize(r["reference"]).strip()]
    said = [normalize(r["reference"]) for r in heard]
    lines = []
    for column in heard[0]["by"] if heard else []:
        counts = scoring.count_words(said, [normalize(r[column]) for r in heard])
        lines.append(row(column, [f"{number:,}" for number in scoring.edits(counts).values()]))
    if not lines:
        return ""
    edits = table(
        f"{name}: words, after the normalizer {normalizer}.", ["", "Right", "Replaced", "Left out", "Invented"], lines
    )
    counts = scoring.count_words(said, [normalize(r[OWN]) for r in heard])
    edges = (0.0, *SECONDS, float("inf"))
    spans = [int(np.searchsorted(SECONDS, r["duration"], side="right")) for r in heard]
    lengths = [
        (f"{edges[i]:g} to {edges[i + 1]:g} s" if i < len(SECONDS) else f"over {edges[i]:g} s", [s == i for s in spans])
        for i in sorted(set(spans))
    ]
    parts = [edits, _grouped("By duration", lengths, counts)]
    speakers = sorted({str(r["speaker"]) for r in heard if r.get("speaker")})
    if len(speakers) > 1:
        by = [(speaker, [r.get("speaker") == speaker for r in heard]) for speaker in speakers]
        by.sort(key=lambda group: -sum(group[1]))
        more = f", the {MOST} with the most clips of {len(by)}" if len(by) > MOST else ""
        parts.append(_grouped(f"By speaker{more}", by[:MOST], counts))
    return section("Where the errors are", "".join(parts))


def _grouped(caption: str, groups: Sequence[tuple[str, list[bool]]], counts: np.ndarray) -> str:
    lines = []
    for name, members in groups:
        mine = counts[np.asarray(members)]
        words = int(scoring.reference_lengths(mine).sum())
        rate = percent(scoring.rate(mine)) if words else "–"
        lines.append(row(name, [f"{len(mine):,}", f"{words:,}", rate, *(f"{n:,}" for n in mine.sum(axis=0)[1:])]))
    head = ["", "Clips", "Words", "WER", "Replaced", "Left out", "Invented"]
    return table(caption + ".", head, lines)


def answers(runs: Sequence[Run], name: Callable[[Run], str]) -> str:
    """Accuracies of runs of right and wrong, whole and by kind of question."""
    lines = []
    for run in runs:
        lines.append(f'<tr class="group"><th scope="rowgroup" colspan="5"><span>{_about(run, name)}</span></th></tr>')
        own = {"n": run["n"], "accuracy": run["metrics"]["accuracy"], "interval": run["interval"]["accuracy"],
               "groups": run["groups"], "rtfx": run.get("rtfx"), "causes": run.get("failures")}  # fmt: skip
        for column, found in {"all": own, **run["columns"]}.items():
            lines.append(_accuracy(column, found, "own" if column == "all" else ""))
            lines += [_accuracy(f"{column}: {kind}", part, "") for kind, part in found["groups"].items()]
            told = [f"{cause} {n}" for cause, n in (found.get("causes") or {}).items() if n and cause != "right"]
            cells = (
                f'<th scope="row">{escape(column)}: what went wrong</th><td colspan="4">{escape(", ".join(told))}</td>'
            )
            lines += [f"<tr>{cells}</tr>"] if told else []
        lines += [row(key.replace("_", " "), ["", shown(key, value), "", ""]) for key, value in run["metrics"].items()
                  if key != "accuracy"]  # fmt: skip
    head = ["Questions", "Number", "Right", "95 % interval", "Speed"]
    return table("Answers judged right or wrong; higher is better, but for error rates.", head, lines)


def _accuracy(name: str, found: Mapping[str, Any], kind: str) -> str:
    low, high = found["interval"]
    speed = f"{found['rtfx']:.1f} x" if found.get("rtfx") else "–"
    return row(
        name, [f"{found['n']:,}", percent(found["accuracy"]), f"{100 * low:.1f} to {100 * high:.1f} %", speed], kind
    )


def _about(run: Run, name: Callable[[Run], str]) -> str:
    return escape(f"{name(run)} · {run['suite']} · {run.get('data') or 'data'}, {run['n']:,} questions")


def untouched(runs: Sequence[Run], name: Callable[[Run], str]) -> str:
    """What the text suite compared."""
    lines = [row(name(run), [str(run["n"]), *(percent(run["metrics"][key]) for key in EQUAL)]) for run in runs]
    note = "The adapter's LLM against the plain one: prompts whose logits are the same bits, whose greedy text is the same."
    return table(note, ["", "Prompts", *EQUAL.values()], lines)

"""One HTML file that shows runs of any suite: rates, curves, gates, and the worst clips to look at and listen to.

It opens by a double click and fetches nothing: pictures and audio are inside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ..errors import DataError, UsageError
from . import predictions
from .breakdown import answers, breakdown, shown, untouched
from .clips import MOST_AUDIO, WORST, Players, costliest, data_uri, worst_clips, wrong_answers
from .compare import compare
from .page import page, row, section, table
from .predictions import Row

METRICS = {"wer": "WER", "cer": "CER", "wer_raw": "WER, raw", "cer_raw": "CER, raw", "accuracy": "Accuracy"}
Picture = tuple[str, bytes] | tuple[str, bytes, bytes]


def write_report(
    path: Path,
    *,
    title: str,
    runs: Sequence[Mapping[str, Any]],
    curves: Path | None = None,
    pictures: Sequence[Picture] = (),
    clips: Sequence[Row] | None = None,
) -> Path:
    """Write the report to ``path`` (atomically) and return it.

    ``runs``: results of ``evaluate_asr``, each with a ``label`` and, if wanted, ``predictions`` (the path of its
    predictions.jsonl). Of several runs over the same data the first is "before" and the last "after". The clips of a run that
    has ``silent`` are not put into the file, as where their licence does not let them be passed on.
    ``curves``: a JSONL file of training rows. ``pictures``: (caption, PNG) or (caption, PNG, PNG for dark pages).
    ``clips``: prediction rows to show; left out, the ten of the last run with ``predictions`` that cost most.
    Raises UsageError without any run, DataError where a file holds nothing.
    """
    if not runs:
        raise UsageError("a report needs at least one run; pass the results of evaluate_asr")
    rated, judged, proved = (
        [run for run in runs if key in run["metrics"]] for key in ("wer", "accuracy", "logits_equal")
    )
    last = runs[-1]
    alike = all((run.get("suite"), run.get("data")) == (last.get("suite"), last.get("data")) for run in runs)
    parts = [_tiles(last) if alike else _as_tiles([_headline(run) for run in runs])]
    parts += [section("Error rates", _rates(rated))] if rated else []
    parts += [section("Answers", answers(judged, _name))] if judged else []
    parts += [section("Text behaviour", untouched(proved, _name))] if proved else []
    parts += _comparisons(runs)
    if curves is not None:
        parts.append(_training(curves))
    if pictures:
        parts.append(section("Routing", "\n".join(_figure(*picture, wide=True) for picture in pictures)))
    told = [(run, predictions.read_finished(Path(run["predictions"]))) for run in runs if run.get("predictions")]
    parts += [breakdown(_name(run), rows, run["normalizer"]) for run, rows in told if run in rated]
    players = Players(MOST_AUDIO)
    if clips is None and (mine := [(run, rows) for run, rows in told if run in rated and not run.get("silent")]):
        clips = worst_clips(mine[-1][1], mine[-1][0]["normalizer"])
    if clips:
        parts.append(costliest(clips[:WORST], rated[-1]["normalizer"] if rated else "none", players))
    none = Players(0)
    parts += [
        wrong_answers(_name(run), rows, none if run.get("silent") else players) for run, rows in told if run in judged
    ]
    parts += [_unheard(runs), _provenance(runs)]
    predictions.replace(path, page(title, _header(title, runs), "\n".join(filter(None, parts))))
    return path


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _speed(rtfx: float | None) -> str:
    return f"{rtfx:,.{0 if rtfx >= 100 else 1}f} x" if rtfx else "–"


def _name(run: Mapping[str, Any]) -> str:
    return str(run.get("label") or run.get("adapter") or "run")


def _header(title: str, runs: Sequence[Mapping[str, Any]]) -> str:
    run = runs[-1]
    made = run.get("provenance", {})
    told = {str(each.get("data") or "") for each in runs}
    facts = [
        f"{run['n']:,} clips" if len(told) == 1 else f"{len(runs)} runs",
        *(told if len(told) == 1 else ()),
        str(made.get("date", ""))[:10],
        str(made.get("cpu", "")),
    ]
    return f'<h1>{escape(title)}</h1><p class="soft">{escape(" · ".join(filter(None, facts)))}</p>'


def _tiles(run: Mapping[str, Any]) -> str:
    metrics = run["metrics"]
    if "wer" not in metrics:
        tiles = [(METRICS.get(key, key.replace("_", " ")), shown(key, value), "") for key, value in metrics.items()][:4]
        return _as_tiles(tiles)
    low, high = run["interval"]["wer"]
    tiles = [("WER", _percent(run["metrics"]["wer"]), f"95 % interval {_percent(low)} to {_percent(high)}"),
             ("CER", _percent(run["metrics"]["cer"]), f"normalizer: {run['normalizer']}")]  # fmt: skip
    if run.get("baseline"):
        tiles.append(("Baseline WER", _percent(run["baseline"]["wer"]), str(run["baseline"].get("name", ""))))
    if run.get("rtfx"):
        waited = f"a batch in {run['latency']['median']:.2f} s, median" if run.get("latency") else "real time"
        tiles.append(("Speed", _speed(run["rtfx"]), waited))
    return _as_tiles(tiles)


def _headline(run: Mapping[str, Any]) -> tuple[str, str, str]:
    """Of a run among others: its first number, with the interval or the other numbers under it."""
    key, value = next(iter(run["metrics"].items()))
    low, high = run.get("interval", {}).get(key, (None, None))
    sure = f", {_percent(low)} to {_percent(high)}" if low is not None else ""
    return _name(run), _percent(value), f"{METRICS.get(key, key.replace('_', ' '))}{sure}"


def _as_tiles(tiles: Sequence[tuple[str, str, str]]) -> str:
    inner = "".join(
        f'<div class="tile"><span>{escape(name)}</span><b>{escape(value)}</b><span>{escape(note)}</span></div>'
        for name, value, note in tiles
    )
    return f'<div class="tiles">{inner}</div>'


def _systems(run: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any], str]]:
    """(name, rates, kind of row) of the run itself, its columns and its baseline."""
    own = {**run["metrics"], "interval": run["interval"], "rtfx": run.get("rtfx"), "failures": run.get("failures", {})}
    found: list[tuple[str, Mapping[str, Any], str]] = [(str(run.get("adapter") or _name(run)), own, "own")]
    found += [(name, rates, "") for name, rates in run.get("columns", {}).items()]
    if run.get("baseline"):
        found.append((f"baseline: {run['baseline'].get('name', '')}", run["baseline"], ""))
    return found


def _rates(runs: Sequence[Mapping[str, Any]]) -> str:
    widest = max(rates["interval"]["wer"][1] for run in runs for _, rates, _ in _systems(run)) or 1.0
    rows = []
    for run in runs:
        about = f"{_name(run)} · {run.get('data') or 'data'}, {run['n']:,} clips, normalizer {run['normalizer']}"
        rows.append(f'<tr class="group"><th scope="rowgroup" colspan="8"><span>{escape(about)}</span></th></tr>')
        for name, rates, kind in _systems(run):
            low, high = rates["interval"]["wer"]
            failures = rates.get("failures", {})
            failed = " / ".join(str(failures.get(key, "–")) for key in ("empty", "repeated", "cut"))
            sure = f"{100 * low:.1f} to {100 * high:.1f} %{_range(low, rates['wer'], high, widest)}"
            cells = [_percent(rates["wer"]), sure, *(_percent(rates[key]) for key in ("cer", "wer_raw", "cer_raw"))]
            rows.append(row(name, [*cells, _speed(rates.get("rtfx")), failed], kind))
    drawn = f"95 % interval<br>drawn 0 to {100 * widest:.0f} %"
    head = ["Transcriber", "WER", drawn, "CER", "WER<br>raw", "CER<br>raw", "Speed", "Empty / loop<br>/ cut"]
    note = "Word and character error rates over the whole set; lower is better. Intervals: bootstrap over utterances."
    return table(note, head, rows)


def _range(low: float, value: float, high: float, widest: float) -> str:
    """The interval as a line with a dot, on one scale for the whole table."""
    a, b, c = (4 + 112 * number / widest for number in (low, value, high))
    return (
        '<svg class="range" viewBox="0 0 120 14" aria-hidden="true"><path d="M4 7h112" stroke="currentColor" '
        f'stroke-opacity=".25"/><path d="M{a:.1f} 7H{c:.1f}" stroke="currentColor" stroke-width="4" '
        f'stroke-opacity=".5" stroke-linecap="round"/><circle cx="{b:.1f}" cy="7" r="3.6" fill="currentColor"/></svg>'
    )


def _comparisons(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    groups: dict[Any, list[Mapping[str, Any]]] = {}
    for run in runs:
        groups.setdefault((run.get("suite"), run.get("data"), run["n"], run.get("normalizer")), []).append(run)
    parts = []
    for (_, data, _, normalizer), members in groups.items():
        if len(members) < 2 or not METRICS.keys() & members[0]["metrics"].keys():
            continue
        before, after = members[0], members[-1]
        rows = []
        for key, name in METRICS.items():
            if key not in before["metrics"]:
                continue
            old, new = before["metrics"][key], after["metrics"][key]
            better = new > old if key == "accuracy" else new < old
            tone = "" if new == old else "good" if better else "bad"
            change = f"{100 * (new - old):+.1f} points" + (f" ({100 * (new - old) / old:+.0f} %)" if old else "")
            rows.append(row(name, [_percent(old), _percent(new), f'<span class="{tone}">{change}</span>']))
        text = table(f"{data or 'The same data'}, before and after; relative change in brackets.",
                     ["", escape(_name(before)), escape(_name(after)), "Change"], rows)  # fmt: skip
        if before.get("predictions") and after.get("predictions") and before["suite"] != "tools":
            tested = compare(Path(before["predictions"]), Path(after["predictions"]), normalizer or "none")
            low, high = tested["interval"]
            text += (f'<p class="soft">Paired bootstrap over {tested["n"]:,} clips: the errors change by '
                     f'{100 * low:+.1f} to {100 * high:+.1f} points (95 %), p = {tested["p_value"]:.3f}.</p>')  # fmt: skip
        parts.append(section("Before and after", text))
    return parts


def _training(path: Path) -> str:
    from ..analysis import curve_panels, plot_curves

    rows = _jsonl(path)
    panels = curve_panels(rows)
    if not panels:
        return section("Training", '<p class="soft">No curve yet: the log holds no number that changes.</p>')
    lines = []
    for key in (key for members in panels.values() for key in members):
        values = [r[key] for r in rows if isinstance(r.get(key), int | float)]
        lines.append(row(key, [f"{value:.4g}" for value in (values[0], values[-1], min(values), max(values))]))
    numbers = table("Every number that the log holds.", ["", "First", "Last", "Lowest", "Highest"], lines)
    pictures = "".join(  # one each, so that a narrow page can put them below each other
        _figure(f"{name} over steps", plot_curves(rows, members), plot_curves(rows, members, dark=True))
        for name, members in panels.items()
    )
    more = f"<details><summary>The curves in numbers</summary>{numbers}</details>"
    return section("Training", f'<div class="curves">{pictures}</div>{more}')


def _jsonl(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise DataError(f"{path}: no such training log; give the metrics JSONL of the run")
    rows = []
    for line in path.read_text(encoding="utf-8").split("\n"):
        try:
            value = json.loads(line)
        except ValueError:
            continue  # the last line of a run that is still going
        if isinstance(value, dict):
            rows.append(value)
    return rows


def _figure(caption: str, light: bytes, dark: bytes | None = None, *, wide: bool = False) -> str:
    night = f'<source srcset="{data_uri("image/png", dark)}" media="(prefers-color-scheme: dark)">' if dark else ""
    text = escape(caption, quote=True)
    image = f'<picture>{night}<img src="{data_uri("image/png", light)}" alt="{text}"></picture>'
    if wide:
        image = f'<div class="scroll wide" role="region" aria-label="{text}" tabindex="0">{image}</div>'
    return f"<figure>{image}<figcaption>{text}</figcaption></figure>"


def _unheard(runs: Sequence[Mapping[str, Any]]) -> str:
    lost = {item["id"]: item["error"] for run in runs for item in run.get("undecodable", [])}
    if not lost:
        return ""
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(error)}</dd>" for name, error in lost.items())
    text = '<p class="soft">These could not be decoded and enter no rate.</p>'
    return section(f"Clips not heard: {len(lost)}", f"{text}<dl>{facts}</dl>")


def _provenance(runs: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    for run in runs:
        facts: dict[str, Any] = {"suite": run.get("suite"), "data": run.get("data"), "adapter": run.get("adapter")}
        facts |= run.get("provenance", {})
        facts["versions"] = ", ".join(
            f"{name} {number}" for name, number in (facts.get("versions") or {}).items() if number
        )
        lines = "".join(f"<dt>{escape(key)}</dt><dd>{escape(str(value))}</dd>" for key, value in facts.items() if value)
        parts.append(f"<details><summary>{escape(_name(run))}</summary><dl>{lines}</dl></details>")
    return section("How this was measured", "".join(parts))

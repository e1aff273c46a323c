"""What `steermoe evaluate` calls: an adapter or a server, a suite, a table and a report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..data import Example
from ..errors import UsageError
from ..inference.ears import Ears, load
from . import asr
from .breakdown import percent, shown
from .collect import Shard
from .listener import Adapter, Listener
from .predictions import read_run
from .suites import Options, examples_for, suite


def evaluate_ears(
    ears: Ears,
    examples: list[Example],
    data: str,
    *,
    normalizer: str = "english",
    batch_size: int = 8,
    baseline: bool = False,
    heard: bool = False,
    steering: bool = True,
    out: Path | None = None,
) -> dict[str, Any]:
    """The asr suite for an adapter in memory; see ``asr.evaluate_asr`` for what comes back."""
    options = Options(
        examples, data, normalizer=normalizer, batch_size=batch_size, baseline=baseline, heard=heard, out=out
    )
    return asr.run(Adapter(ears, batch_size, steering), options)


def evaluate(arguments: Any) -> dict[str, Any]:
    """As the command line asks; with ``--out`` also ``report.html``, with ``--against`` also the comparison."""
    shard = Shard.parse(arguments.shard) if arguments.shard else None
    if shard and arguments.out is None:
        raise UsageError(f"--shard {shard}: needs --out, the folder in which the shards meet")
    if arguments.against and arguments.out is None:
        raise UsageError(f"--against {arguments.against}: needs --out, clips are compared one by one")
    given = {"heard": arguments.heard, "baseline": arguments.baseline, "tool-choice": arguments.tool_choice != "auto"}
    for flag, suites in {"heard": ("asr",), "baseline": ("asr", "silence"), "tool-choice": ("tools",)}.items():
        if given[flag] and arguments.suite not in suites:
            raise UsageError(f"--{flag}: goes with --suite {' or '.join(suites)}, not {arguments.suite}")
    if arguments.against and arguments.suite == "tools":
        raise UsageError("--against: calls of the suite tools are not compared one by one: see the intervals")
    examples, data = examples_for(arguments.suite, arguments.data, arguments.root, arguments.limit)
    names = ("root", "limit", "normalizer", "batch_size", "baseline", "heard", "tool_choice", "out")
    options = Options(examples, data, **{name: getattr(arguments, name) for name in names}, shard=shard)
    result = suite(arguments.suite)(_listener(arguments), options)
    if arguments.out is not None and not shard:
        from .report import write_report

        folders = [arguments.against, arguments.out] if arguments.against else [arguments.out]
        title = f"{result['suite']}: {result['adapter']} on {result['data']}"
        write_report(arguments.out / "report.html", title=title, runs=[read_run(folder) for folder in folders])
    if arguments.against and not shard:
        from .compare import compare_runs

        result["against"] = compare_runs(arguments.against, arguments.out)
    return result


def _listener(arguments: Any) -> Listener:
    if arguments.endpoint is None:
        if arguments.model is not None:
            raise UsageError(f"--model {arguments.model}: is the name at an --endpoint; give an --adapter otherwise")
        return Adapter(load(arguments.adapter), arguments.batch_size, not arguments.no_steering)
    from .endpoint import Endpoint

    if arguments.model is None:
        raise UsageError(f"--endpoint {arguments.endpoint}: needs --model NAME, as the server calls it")
    for flag in ("no_steering", "baseline"):
        if getattr(arguments, flag):
            raise UsageError(f"--{flag.replace('_', '-')} looks inside the model, which a server does not show")
    return Endpoint(arguments.endpoint, arguments.model, parallel=arguments.batch_size)


def table(result: dict[str, Any]) -> str:
    """The result for a terminal."""
    made = f"{result['suite']}, {result['data']}: {result['n']} items"
    if "wer" in result["metrics"]:
        lines = [f"{made}, normaliser {result['normalizer']}", *_rates(result)]
    else:
        lines = [made, *_accuracies(result)]
    failed = ", ".join(f"{name} {count}" for name, count in result.get("failures", {}).items())
    lines.append(f"failures: {failed or 'none'}")
    if result.get("rtfx"):
        waited = result["latency"]
        lines.append(
            f"RTFx {result['rtfx']:.1f}; seconds until a batch was there: median {waited['median']:.2f}, "
            f"95 % within {waited['p95']:.2f}"
        )
    if against := result.get("against"):
        from .compare import as_text

        lines.append(as_text(against))
    return "\n".join(lines)


def _rates(result: dict[str, Any]) -> list[str]:
    rows = [("written by the LLM", result["metrics"])]
    rows += [(f"{name} (no LLM)" if name == "heard" else name, rates) for name, rates in result["columns"].items()]
    if result.get("baseline"):
        rows.append(("encoder's own decoder", result["baseline"]))
    lines = [f"{'':24}{'WER':>8}{'CER':>8}{'WER raw':>9}{'CER raw':>9}"]
    for name, rates in rows:
        cells = [(rates["wer"], 8), (rates["cer"], 8), (rates["wer_raw"], 9), (rates["cer_raw"], 9)]
        lines.append(f"{name:24}" + "".join(f"{rate:>{width}.1%}" for rate, width in cells))
    low, high = result["interval"]["wer"]
    if result["n"] < 2:
        return [*lines, "one clip: no interval"]
    return [*lines, f"95 % interval of the first WER: {low:.1%} to {high:.1%}"]


def _accuracies(result: dict[str, Any]) -> list[str]:
    lines = [f"{name:32}{shown(name, value):>12}" for name, value in result["metrics"].items() if value is not None]
    lines += [
        f"{name + ': accuracy':32}{percent(part['accuracy']):>12}" for name, part in result.get("columns", {}).items()
    ]
    for name, part in result.get("groups", {}).items():
        lines.append(f"  {name:30}{percent(part['accuracy']):>12}  of {part['n']}")
    if "interval" in result:
        low, high = result["interval"]["accuracy"]
        lines.append(f"95 % interval of the accuracy: {low:.1%} to {high:.1%}")
    return lines

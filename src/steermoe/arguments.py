"""What the command line takes: every command, its flags, and what they mean."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from .errors import UsageError


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError
    return number


_positive.__name__ = "positive int"  # as argparse names it: invalid positive int value: '0'


def _seconds(text: str) -> float:
    if not 0 < (number := float(text)) < float("inf"):
        raise ValueError
    return number


_seconds.__name__ = "number of seconds"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UsageError(f"{message} (see `{self.prog} --help`)")


def parser() -> argparse.ArgumentParser:
    """Of ``steermoe``; what is wrong raises UsageError."""
    parser = _Parser(prog="steermoe", description="Give a frozen LLM ears: train and use a few megabytes between a "
                     "frozen audio encoder and a frozen LLM.")  # fmt: skip
    parser.add_argument("--version", action="store_true", help="print the version and stop")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    def command(name: str, help: str, adapter: bool = False, as_json: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        if adapter:
            sub.add_argument(
                "--adapter", default="tiny", metavar="A", help="folder, hub id@commit, or a shipped name (tiny)"
            )
        if as_json:
            sub.add_argument("--json", action="store_true", help="one JSON value as the last line of stdout")
        return sub

    sub = command("fetch", "fetch frozen models and data, verified by SHA-256")
    sub.add_argument(
        "names", nargs="*", metavar="NAME", help="model, or source such as fotaq (default: what `tiny` needs)"
    )

    sub = command("train", "train an adapter from a recipe")
    sub.add_argument("config", help="YAML recipe; further key=value arguments override it")
    sub.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    sub.add_argument("--resume", action="store_true", help="continue from the newest checkpoint in out")
    sub.add_argument(
        "--init-from", metavar="ADAPTER", help="start from another adapter; of one for another LLM the steering is kept"
    )

    sub = command("doctor", "look a recipe over before it runs: data, prompt, what is trained, memory, time, one batch")
    sub.add_argument("config", help="YAML recipe; further key=value arguments override it")
    sub.add_argument("overrides", nargs="*", metavar="KEY=VALUE")

    sub = command("evaluate", "score an adapter, or a server, on a test set", adapter=True)
    sub.add_argument(
        "--suite", default="asr", metavar="NAME", help="asr (default), aqa, gap, robustness, silence, tools or text"
    )
    sub.add_argument("--data", metavar="SOURCE", help="NAME[:SPLIT] or a manifest")
    sub.add_argument("--root", type=Path, help="folder of a source that is not fetched")
    sub.add_argument("--normalizer", default="english", choices=["english", "basic", "chinese", "none"])
    sub.add_argument("--batch-size", type=_positive, default=8)
    sub.add_argument("--baseline", action="store_true", help="also the frozen encoder's own decoder on the same clips")
    sub.add_argument("--heard", action="store_true", help="also the lexical projector's CTC text, without the LLM")
    sub.add_argument(
        "--tool-choice", default="auto", choices=["auto", "required"], help="tools: whether a call must be made"
    )
    sub.add_argument(
        "--limit", type=_positive, help="only the first N clips, of tools N evenly spread (said in the result)"
    )
    sub.add_argument("--no-steering", action="store_true", help="with the steering disabled")
    sub.add_argument("--out", type=Path, help="folder for predictions.jsonl, metrics.json and report.html")
    sub.add_argument("--shard", metavar="I/N", help="every N-th clip; run again without it, same --out, to merge")
    sub.add_argument("--against", type=Path, metavar="RUN", help="also compare with the run in this --out folder")
    sub.add_argument("--endpoint", metavar="URL", help="measure an OpenAI-compatible server (its /v1) instead")
    sub.add_argument("--model", metavar="NAME", help="what that server calls the model")

    sub = command("compare", "do two runs over the same clips differ? paired bootstrap")
    sub.add_argument("runs", type=Path, nargs=2, metavar="RUN", help="--out folder of a `steermoe evaluate`")
    sub.add_argument("--out", type=Path, metavar="HTML", help="also a report on both")

    sub = command("report", "one page on any number of runs, of any suites", as_json=False)
    sub.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="--out folder of a `steermoe evaluate`")
    sub.add_argument("--out", type=Path, required=True, metavar="HTML")
    sub.add_argument("--title", default="Evaluation")
    sub.add_argument("--curves", type=Path, metavar="JSONL", help="metrics.jsonl of a training run, drawn on the page")
    sub.add_argument("--play", type=Path, action="append", metavar="RUN", help="put only this run's audio into the file; "
                     "may be given several times (default: all runs')")  # fmt: skip

    sub = command("transcribe", "audio to text", adapter=True)
    sub.add_argument("audio", nargs="+", help="files; `-` reads stdin; a directory means the audio files in it")
    sub.add_argument("--max-duration", type=_seconds, default=7200.0, metavar="SECONDS", help="longer audio is refused")
    sub.add_argument("--batch-size", type=_positive, default=8)
    sub.add_argument("--format", choices=["text", "srt", "vtt"], default="text", help="subtitles are of one file")

    sub = command("chat", "one question with audio, one answer, and calls of functions", adapter=True)
    sub.add_argument("text", nargs="?", default="", help="what to ask about the audio")
    sub.add_argument("--audio", action="append", default=[], help="may be given several times")
    sub.add_argument("--system", help="system prompt")
    sub.add_argument("--max-new-tokens", type=_positive, default=256)
    sub.add_argument(
        "--tools", type=Path, metavar="FILE", help="what the LLM may call. A .json has schemas as the OpenAI API takes them, "
        "no functions: a call is shown, not run. A .py registers Python functions in a steermoe.Toolbox: calls are checked "
        "and run, results fed back, and the whole exchange is shown"
    )  # fmt: skip
    sub.add_argument("--tool-choice", default="auto", metavar="HOW", help="auto, none, required, or the name of a tool")

    sub = command("serve", "an OpenAI-compatible HTTP server", as_json=False)
    sub.add_argument(
        "--adapter", nargs="+", action="extend", metavar="A", help="one or more of one pair (default: tiny); requests choose "
        "by `model`. A folder, hub id@commit, or a shipped name"
    )  # fmt: skip
    sub.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    sub.add_argument("--port", type=int, default=8000)
    sub.add_argument(
        "--max-queue", type=_positive, default=64, metavar="N", help="more waiting requests are sent away (429)"
    )
    sub.add_argument("--max-seconds", type=_seconds, default=7200.0, metavar="S", help="longer audio is refused")
    sub.add_argument("--max-mib", type=_positive, default=25, metavar="N", help="a larger request is refused (413)")
    sub.add_argument("--timeout", type=_seconds, default=900.0, metavar="S", help="what takes longer is given up (503)")
    sub.add_argument(
        "--rate", type=_positive, metavar="N", help="requests a minute of each API key (429; default: any)"
    )
    sub.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16"], help="of the frozen models (default: "
        "bfloat16 where it is fast); in float32 no answer depends on who else asks"
    )  # fmt: skip
    sub.add_argument("--vllm", metavar="URL", help="the LLM runs in the vLLM server at this URL (its /v1), not here")
    sub.add_argument("--vllm-model", metavar="NAME", help="what that server calls the LLM (default: its first model)")

    sub = command("inspect", "parameters, and how the router routes one clip", adapter=True)
    sub.add_argument("audio", nargs="?", help="with it: routing statistics, and a picture with --out")
    sub.add_argument("--out", type=Path, help="PNG of the gates under the spectrogram")
    sub.add_argument("--pair", nargs=2, metavar=("ENCODER", "LLM"), help="instead: what would be steered between these")

    sub = command("convert", "the paper authors' checkpoint to an adapter")
    sub.add_argument(
        "checkpoint", metavar="REFERENCE_CKPT", help="pytorch_model.bin, its folder, or an index of shards"
    )
    sub.add_argument("out", metavar="OUT", help="folder of the adapter")
    sub.add_argument("--encoder", metavar="E", help="its encoder: a folder or org/name@commit (default: by the shapes)")
    sub.add_argument("--llm", metavar="M", help="its LLM, likewise")
    sub.add_argument(
        "--pooling", default="max", choices=["max", "mean"], help="max as the authors' code, mean as the paper"
    )

    sub = command("quickstart", "hear the shipped adapter, train a fresh one, read the report", as_json=False)
    sub.add_argument("--minutes", type=_seconds, default=5.0, help="training time to aim for")
    sub.add_argument("--out", type=Path, default=Path("runs/quickstart"))
    return parser


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line, or ``argv``. Raises UsageError."""
    known = parser()
    arguments, rest = known.parse_known_args(argv)
    # argparse gives a list only what comes before the next flag; `train RECIPE --resume seed=1` means seed, too.
    name = {"train": "overrides", "doctor": "overrides", "transcribe": "audio", "fetch": "names"}.get(arguments.command)
    if rest and (name is None or any(word.startswith("-") for word in rest)):
        (commands,) = (action for action in known._actions if isinstance(action, argparse._SubParsersAction))
        sub = commands.choices[arguments.command] if arguments.command else known
        flag = next((word for word in rest if word.startswith("-")), rest[0]).partition("=")[0]
        near = get_close_matches(flag, sub._option_string_actions, n=1, cutoff=0.7)
        hint = f"; did you mean {near[0]}?" if near else ""
        if name == "overrides" and not near:
            hint = "; keys of the recipe are given as KEY=VALUE, stages.0.steps=100"
        sub.error(f"unrecognized arguments: {' '.join(rest)}{hint}")
    if rest and name is not None:
        getattr(arguments, name).extend(rest)
    return arguments

"""The command line: it parses and calls. Heavy imports wait inside the commands, so that --help is instant.

stdout carries results (with --json: one compact JSON value as its last line); logs and progress go to stderr.
Exit 0 done, 1 failed, 2 wrong use, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .errors import AudioError, SteerMoEError, UsageError


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


def _parser() -> argparse.ArgumentParser:
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
    sub.add_argument("--suite", default="asr", metavar="NAME", help="asr (default), aqa, gap, robustness, text ...")
    sub.add_argument("--data", metavar="SOURCE", help="NAME[:SPLIT] or a manifest")
    sub.add_argument("--root", type=Path, help="folder of a source that is not fetched")
    sub.add_argument("--normalizer", default="english", choices=["english", "basic", "chinese", "none"])
    sub.add_argument("--batch-size", type=_positive, default=8)
    sub.add_argument("--baseline", action="store_true", help="also the frozen encoder's own decoder on the same clips")
    sub.add_argument("--heard", action="store_true", help="also the lexical projector's CTC text, without the LLM")
    sub.add_argument(
        "--tool-choice", default="auto", choices=["auto", "required"], help="tools: whether a call must be made"
    )
    sub.add_argument("--limit", type=_positive, help="only the first N clips (said in the result)")
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


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    # argparse gives a list only what comes before the next flag; `train RECIPE --resume seed=1` means seed, too.
    name = {"train": "overrides", "doctor": "overrides", "transcribe": "audio", "fetch": "names"}.get(arguments.command)
    if rest and (name is None or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest and name is not None:
        getattr(arguments, name).extend(rest)
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    try:
        arguments = _parse(argv)
        if arguments.version:
            from .adapter import library_version

            print(library_version())
            return 0
        if arguments.command is None:
            _parser().print_help()
            return 2
        value = globals()[f"_{arguments.command}"](arguments)
        if getattr(arguments, "json", False):
            print(json.dumps(value, ensure_ascii=False, separators=(",", ":")))
        sys.stdout.flush()
        return 0
    except SteerMoEError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `steermoe ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a full disk, a folder that cannot be written
        print(f"error: {error.filename or 'input or output'}: {error.strerror or error}", file=sys.stderr)
        return 1


def _quiet() -> None:
    """Keep libraries' chatter off the terminal; our own lines say what happens."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _fetch(arguments: argparse.Namespace) -> Any:
    _quiet()
    from .data import SOURCES, load_source
    from .inference.find import needed_models
    from .pretrained import resolve

    found = {}
    for name in arguments.names or needed_models("tiny"):
        print(f"{name} ...", file=sys.stderr, flush=True)
        if name.partition(":")[0] in SOURCES:
            clips = load_source(name)
            found[name] = f"{len(clips)} clips"
        else:
            found[name] = str(resolve(name))
        if not arguments.json:
            print(f"{name}: {found[name]}")
    return found


def _train(arguments: argparse.Namespace) -> Any:
    _quiet()
    from .training.recipe import load_recipe

    recipe = load_recipe(arguments.config, arguments.overrides)
    from .training.run import train

    folder = train(recipe, arguments.resume, arguments.init_from)
    print(f"adapter: {folder}", file=sys.stderr)
    return {"adapter": str(folder)}


def _doctor(arguments: argparse.Namespace) -> Any:
    _quiet()
    from .training.recipe import load_recipe

    recipe = load_recipe(arguments.config, arguments.overrides)
    from .training.doctor import as_json, doctor

    said = None if arguments.json else lambda check: print(check, flush=True)
    checks = doctor(recipe, colour=sys.stdout.isatty(), say=said)
    bad = [check.name for check in checks if not check.ok]
    if bad:
        if arguments.json:
            print(json.dumps(as_json(checks), ensure_ascii=False, separators=(",", ":")))
        raise SteerMoEError(f"{arguments.config}: not right: {', '.join(bad)}")
    return as_json(checks)


def _evaluate(arguments: argparse.Namespace) -> Any:
    _quiet()
    from .evaluation.run import evaluate, table

    result = evaluate(arguments)
    if not arguments.json:
        print(table(result))
    return result


def _compare(arguments: argparse.Namespace) -> Any:
    from .evaluation.compare import as_text, compare_runs

    value = compare_runs(*arguments.runs)
    if arguments.out is not None:
        from .evaluation import write_report
        from .evaluation.predictions import read_run

        runs = [read_run(folder) for folder in arguments.runs]
        write_report(arguments.out, title="Two runs compared", runs=runs)
    if not arguments.json:
        print(as_text(value))
    return value


def _report(arguments: argparse.Namespace) -> Any:
    from .evaluation import write_report
    from .evaluation.predictions import read_run

    runs = [read_run(folder) | {"label": folder.name} for folder in arguments.runs]
    if arguments.play is not None:
        if unknown := [folder for folder in arguments.play if folder not in arguments.runs]:
            raise UsageError(f"--play {unknown[0]}: is none of the runs that are shown")
        for folder, run in zip(arguments.runs, runs, strict=True):
            run["silent"] = folder not in arguments.play
    print(write_report(arguments.out, title=arguments.title, runs=runs, curves=arguments.curves))


def _transcribe(arguments: argparse.Namespace) -> Any:
    from .audio import decode, duration, find_audio

    readable: list[tuple[str, Any]] = []
    total = 0
    for name in arguments.audio:  # complain before the models are loaded; one bad file does not cost the others
        if name == "-":
            readable.append(("-", sys.stdin.buffer.read()))
            total += 1
            continue
        try:
            found = find_audio(Path(name)) if Path(name).is_dir() else [Path(name)]
        except AudioError as error:  # a folder without audio
            if len(arguments.audio) == 1:
                raise
            print(f"error: {error}", file=sys.stderr)
            found, total = [], total + 1
        total += len(found)
        for path in found:
            try:
                if duration(path) > arguments.max_duration:
                    decode(path, max_duration=arguments.max_duration)
                readable.append((str(path), path))
            except AudioError as error:
                if len(arguments.audio) == 1 and found == [path] and not Path(name).is_dir():
                    raise
                print(f"error: {error}", file=sys.stderr)
    if not readable:
        raise AudioError(f"none of {total} files could be read")
    if arguments.format != "text" and (total > 1 or arguments.json):
        what = f"{total} files: give one" if total > 1 else "--json: leave it out"
        raise UsageError(f"--format {arguments.format}: subtitles are of one file and no JSON, but there is {what}")
    _quiet()
    from .inference.ears import load
    from .inference.subtitles import subtitles, timed

    ears = load(arguments.adapter)
    rows = []
    options = {"batch_size": arguments.batch_size, "max_duration": arguments.max_duration}
    if arguments.format != "text":
        for cue in subtitles(ears.stream(readable[0][1], **options), arguments.format):
            print(cue, flush=True)
        return []
    if total == 1 and not arguments.json:  # as it is written, however long
        for i, piece in enumerate(piece for piece in ears.stream(readable[0][1], **options) if piece.text):
            print(f"{' ' if i else ''}{piece.text}", end="", flush=True)
        print(flush=True)
        return []
    for (name, _), told in zip(readable, ears.transcripts((s for _, s in readable), **options), strict=True):
        if told.error is not None:
            print(f"error: {told.error}", file=sys.stderr)
            continue
        seconds, length = round(told.seconds, 3), round(told.duration, 3)
        segments = timed(segment for piece in told.pieces for segment in piece.segments)
        rows.append({"path": name, "text": told.text, "seconds": seconds, "duration": length, "segments": segments})
        if not arguments.json:
            print(f"{name}\t{told.text}", flush=True)
    if len(rows) < total:
        if arguments.json:
            print(json.dumps(rows, ensure_ascii=False, separators=(",", ":")))
        raise AudioError(f"{total - len(rows)} of {total} files could not be read")
    return rows


def _chat(arguments: argparse.Namespace) -> Any:
    if not arguments.audio and not arguments.text:
        raise UsageError("nothing to answer: give a text, or --audio FILE")
    from .audio import decode

    clips = [decode(Path(path)) for path in arguments.audio]
    _quiet()
    from .inference.chat import Conversation
    from .inference.ears import load
    from .inference.messages import in_lines
    from .inference.toolbox import load_tools

    tools = load_tools(arguments.tools) if arguments.tools else None
    parts: list[dict[str, Any]] = [
        {"type": "audio", "audio": clip, "sampling_rate": 16_000, "name": Path(path).name}
        for path, clip in zip(arguments.audio, clips, strict=True)
    ]
    parts += [{"type": "text", "text": arguments.text}] if arguments.text else []
    system = [{"role": "system", "content": arguments.system}] if arguments.system else []
    talk = Conversation(load(arguments.adapter), system, tools)
    options = {"max_new_tokens": arguments.max_new_tokens, "tool_choice": arguments.tool_choice}
    if tools is None:
        reply = talk.stream(parts, **options)
        for piece in reply:
            if not arguments.json:
                print(piece, end="", flush=True)
        if not arguments.json:
            print()
        return {"answer": str(reply.answer)}
    answer = talk.run(parts, **options) if talk.toolbox else talk.answer(parts, **options)
    if not arguments.json:
        print(*map(in_lines, talk.exchange()), sep="\n")
    return {"answer": answer.text, "messages": talk.exchange()}


def _serve(arguments: argparse.Namespace) -> None:
    _quiet()
    from .serving.run import serve

    told = ("host", "port", "max_queue", "max_seconds", "max_mib", "timeout", "rate", "dtype", "vllm", "vllm_model")
    serve(arguments.adapter or ["tiny"], **{name: getattr(arguments, name) for name in told})


def _inspect(arguments: argparse.Namespace) -> Any:
    _quiet()
    from .inspection import inspect, inspect_pair

    if arguments.pair and (arguments.audio or arguments.out):
        raise UsageError("--pair looks at two models, nothing is heard: leave out the audio and --out")
    value = (
        inspect_pair(*arguments.pair) if arguments.pair else inspect(arguments.adapter, arguments.audio, arguments.out)
    )
    if not arguments.json:
        print(value.pop("text"))
    return {k: v for k, v in value.items() if k != "text"}


def _convert(arguments: argparse.Namespace) -> Any:
    _quiet()
    from .convert import convert

    value = convert(arguments.checkpoint, arguments.out, arguments.encoder, arguments.llm, arguments.pooling)
    if not arguments.json:
        steered = f"{value['layers']} layers, {value['experts']} experts, " if value["layers"] else ""
        print(f"{value['kind']}: {steered}width {value['width']}, LLM width {value['llm_width']}, "
              f"{value['parameters']:,} parameters")  # fmt: skip
        for end in ("encoder", "llm"):
            print(f"{end}: {value[end]} ({value['compared'][end]} LayerNorms compared, equal)")
        print(f"adapter: {value['adapter']}")
    return value


def _quickstart(arguments: argparse.Namespace) -> Any:
    _quiet()
    from .quickstart import quickstart

    return quickstart(arguments.out, arguments.minutes)


if __name__ == "__main__":
    sys.exit(main())

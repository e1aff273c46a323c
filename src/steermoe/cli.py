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

    sub = command("evaluate", "score an adapter on a test set", adapter=True)
    sub.add_argument("--suite", default="asr", choices=["asr"])
    sub.add_argument("--data", required=True, metavar="SOURCE", help="NAME[:SPLIT] or a manifest")
    sub.add_argument("--root", type=Path, help="folder of a source that is not fetched")
    sub.add_argument("--normalizer", default="english", choices=["english", "basic", "none"])
    sub.add_argument("--batch-size", type=_positive, default=8)
    sub.add_argument("--baseline", action="store_true", help="also the frozen encoder's own decoder on the same clips")
    sub.add_argument("--heard", action="store_true", help="also the lexical projector's CTC text, without the LLM")
    sub.add_argument("--limit", type=_positive, help="only the first N clips (said in the result)")
    sub.add_argument("--no-steering", action="store_true", help="with the steering disabled")
    sub.add_argument("--out", type=Path, help="folder for predictions.jsonl, metrics.json and report.html")

    sub = command("transcribe", "audio to text", adapter=True)
    sub.add_argument("audio", nargs="+", help="files; `-` reads stdin; a directory means the audio files in it")
    sub.add_argument("--max-duration", type=_seconds, default=7200.0, metavar="SECONDS", help="longer audio is refused")
    sub.add_argument("--batch-size", type=_positive, default=8)

    sub = command("chat", "one question with audio, one answer", adapter=True)
    sub.add_argument("text", nargs="?", default="", help="what to ask about the audio")
    sub.add_argument("--audio", action="append", default=[], help="may be given several times")
    sub.add_argument("--system", help="system prompt")
    sub.add_argument("--max-new-tokens", type=_positive, default=256)

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
    from .inference.ears import needed_models
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
    from .data import load_source

    examples = load_source(arguments.data, arguments.root)
    data = arguments.data
    if arguments.limit is not None:
        examples, data = examples[: arguments.limit], f"{arguments.data}[:{arguments.limit}]"
    from .evaluation.run import evaluate

    result = evaluate(arguments.adapter, examples, data, arguments)
    if not arguments.json:
        from .evaluation.run import table

        print(table(result))
    return result


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
    _quiet()
    import time

    from .inference.ears import load

    ears = load(arguments.adapter)
    rows = []
    for name, source in readable:
        try:
            began = time.perf_counter()
            samples = decode(source, max_duration=arguments.max_duration)
            text = ears.transcribe(samples, sampling_rate=16_000, batch_size=arguments.batch_size,
                                   max_duration=arguments.max_duration)  # fmt: skip
        except AudioError as error:
            print(f"error: {error}", file=sys.stderr)
            continue
        seconds = time.perf_counter() - began
        rows.append(
            {"path": name, "text": text, "seconds": round(seconds, 3), "duration": round(len(samples) / 16_000, 3)}
        )
        if not arguments.json:
            print(text if total == 1 else f"{name}\t{text}", flush=True)
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
    from .inference.ears import load

    parts: list[dict[str, Any]] = [{"type": "audio", "audio": clip, "sampling_rate": 16_000} for clip in clips]
    parts += [{"type": "text", "text": arguments.text}] if arguments.text else []
    messages: list[dict[str, Any]] = [{"role": "user", "content": parts}]
    if arguments.system:
        messages.insert(0, {"role": "system", "content": arguments.system})
    answer = load(arguments.adapter).chat(messages, max_new_tokens=arguments.max_new_tokens)
    if not arguments.json:
        print(answer)
    return {"answer": answer}


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

"""The commands (their flags: arguments.py). Heavy imports wait inside them, so that --help is instant.

stdout carries results (with --json: one compact JSON value as its last line); logs and progress go to stderr.
Exit 0 done, 1 failed, 2 wrong use, 130 interrupted.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .arguments import parse, parser
from .errors import AudioError, SteerMoEError, UsageError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may be of any bytes
    try:
        arguments = parse(argv)
        if arguments.version:
            from .adapter import library_version

            print(library_version())
            return 0
        if arguments.command is None:
            parser().print_help()
            return 2
        value = globals()[f"_{arguments.command}"](arguments)
        if getattr(arguments, "json", False):
            _print_json(value)
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


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


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
            _print_json(as_json(checks))
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
    lost: list[dict[str, str]] = []
    total = 0

    def failed(name: Any, error: AudioError) -> None:
        print(f"error: {error}", file=sys.stderr)
        lost.append({"path": str(name), "error": str(error)})

    for name in arguments.audio:  # complain before the models are loaded; one bad file does not cost the others
        if name == "-":
            total += 1
            if said := sys.stdin.buffer.read():
                readable.append(("-", said))
            else:
                failed("-", AudioError("standard input: empty; record or send it again"))
            continue
        try:
            found = find_audio(Path(name)) if Path(name).is_dir() else [Path(name)]
        except AudioError as error:  # a folder without audio
            if len(arguments.audio) == 1:
                raise
            failed(name, error)
            found, total = [], total + 1
        total += len(found)
        for path in found:
            try:
                if duration(path) > arguments.max_duration:
                    decode(path, max_duration=arguments.max_duration)
                readable.append((str(path), path))
            except AudioError as error:
                if len(arguments.audio) == 1 and found == [path] and not (Path(name).is_dir() or arguments.json):
                    raise
                failed(path, error)
    if not readable:
        if arguments.json:
            _print_json(lost)
        raise AudioError(f"none of {total} files could be read")
    if arguments.format != "text" and (total > 1 or arguments.json):
        what = f"there are {total} files: give one" if total > 1 else "there is --json: leave it out"
        raise UsageError(f"--format {arguments.format}: subtitles are of one file and no JSON, but {what}")
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
            failed(name, told.error)
            continue
        seconds, length = round(told.seconds, 3), round(told.duration, 3)
        segments = timed(segment for piece in told.pieces for segment in piece.segments)
        rows.append({"path": name, "text": told.text, "seconds": seconds, "duration": length, "segments": segments})
        if not arguments.json:
            print(f"{name}\t{told.text}", flush=True)
    if len(rows) < total:
        if arguments.json:
            _print_json([*rows, *lost])
        raise AudioError(f"{total - len(rows)} of {total} files could not be read")
    return rows


def _chat(arguments: argparse.Namespace) -> Any:
    from .audio import SUFFIXES, decode

    if not arguments.audio and not arguments.text:
        raise UsageError("nothing to answer: give a text, or --audio FILE")
    if Path(arguments.text).suffix.lower() in SUFFIXES and Path(arguments.text).is_file():
        raise UsageError(f"{arguments.text} is an audio file: give it as --audio {arguments.text}")
    if arguments.tool_choice != "auto" and not arguments.tools:
        raise UsageError(f"--tool-choice {arguments.tool_choice}: needs --tools FILE")
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

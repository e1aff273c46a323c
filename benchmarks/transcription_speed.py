"""Transcription by batch size and by length, on the shipped adapter.

    python benchmarks/transcription_speed.py [--runs 3] [--lengths 1 5 30 120] [--long SECONDS] [--json FILE]

Batch 8 against batch 1 over the same 24 clips of fotaq:valid, medians of interleaved runs, in two ways of decoding: ``greedy``, the
paper's, in which the LLM writes token by token (all an adapter without a lexical projector has); and ``drafted``, the default, in which
it weighs 32 readings and checks a draft, so that even one clip is a batch of some 45 tokens. Then one clip of each length (the shipped recordings over and over): until its first words, and until its last, with RTFx, seconds
of speech a second of work. ``--long`` streams a FLAC file of that length, and tells time and memory as it goes on.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import soundfile

from steermoe import load
from steermoe.audio import RATE
from steermoe.data import load_source
from steermoe.inference.ears import Ears

WAYS: dict[str, tuple[int, dict[str, Any]]] = {  # readings, options: with any, the LLM writes by its own generate
    "greedy": (1, {"do_sample": False}),
    "drafted": (32, {}),
}


def clock(ears: Ears, clips: list[np.ndarray], size: int, **options: Any) -> float:
    began = time.perf_counter()
    ears.transcribe(clips, sampling_rate=RATE, batch_size=size, **options)
    return time.perf_counter() - began


def first_and_last(ears: Ears, clip: np.ndarray) -> tuple[float, float]:
    """Seconds until the first words of a clip are there, and until all are."""
    began, first = time.perf_counter(), 0.0
    for piece in ears.stream(clip, sampling_rate=RATE):
        first = first or (time.perf_counter() - began if piece.text else 0.0)
    return first, time.perf_counter() - began


def resident() -> float:
    """GB of memory that this process holds now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 1e9


def long(ears: Ears, recordings: np.ndarray, seconds: float) -> None:
    """A file of ``seconds``, streamed: time and memory at every tenth of it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "long.flac"
        with soundfile.SoundFile(path, "w", RATE, 1) as file:
            for _ in range(int(seconds * RATE / len(recordings)) + 1):
                file.write(recordings)
        print("\n| seconds of speech | time | RTFx | memory |\n|---|---|---|---|")
        began, told = time.perf_counter(), 0
        for piece in ears.stream(path, max_duration=2 * seconds + 60):
            if piece.end >= seconds * (told + 1) / 10:
                told, took = told + 1, time.perf_counter() - began
                print(f"| {piece.end:.0f} | {took:.1f} s | {piece.end / took:.1f} | {resident():.2f} GB |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--lengths", type=float, nargs="*", default=[1, 5, 30, 120])
    parser.add_argument("--long", type=float, metavar="SECONDS")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    ears = load()
    recordings = np.concatenate([example.load() for example in load_source("librivox")])
    if arguments.long:
        long(ears, recordings, arguments.long)
        return
    clips = [example.load() for example in load_source("fotaq:valid")[:24]]
    numbers: dict[str, float] = {}
    speech = sum(map(len, clips)) / RATE
    print("| | batch | RTFx |\n|---|---|---|")
    for name, (ears.config.readings, options) in WAYS.items():
        clock(ears, clips[:8], 8, **options)
        times: dict[int, list[float]] = {1: [], 8: []}
        for _ in range(arguments.runs):
            for size in times:
                times[size].append(clock(ears, clips, size, **options))
        for size, took in times.items():
            print(f"| {name} | {size} | {speech / median(took):.1f} |", flush=True)
            numbers[f"{name}_rtfx_batch{size}"] = speech / median(took)
        gain = median(one / eight for one, eight in zip(times[1], times[8], strict=True))
        numbers["batch8_vs_batch1" if name == "greedy" else f"{name}_batch8_vs_batch1"] = gain
        print(f"\n{name}: batch 8 against batch 1: {gain:.2f} x\n")
    print("| seconds of speech | first words | all | RTFx | memory |\n|---|---|---|---|---|")
    for seconds in arguments.lengths:
        clip = np.resize(recordings, int(seconds * RATE))
        runs = [first_and_last(ears, clip) for _ in range(arguments.runs if seconds <= 30 else 1)]
        first, took = (median(column) for column in zip(*runs, strict=True))
        print(f"| {seconds:g} | {first:.2f} s | {took:.2f} s | {seconds / took:.1f} | {resident():.2f} GB |")
        numbers |= {f"first_words_{seconds:g}s": first, f"rtfx_{seconds:g}s": seconds / took}
    if arguments.json:
        arguments.json.write_text(json.dumps(numbers))


if __name__ == "__main__":
    main()

"""Transcription by batch size and by length, on the shipped adapter.

    python benchmarks/transcription_speed.py [--runs 3] [--lengths 1 5 30 120] [--json FILE]

Batch 8 against batch 1 over the same 24 clips of fotaq:valid, medians of interleaved runs; then the time of one clip of
each length (the shipped recordings over and over), with RTFx, seconds of speech a second of work, and the growth of the
process meanwhile.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path
from statistics import median

import numpy as np

from steermoe import load
from steermoe.audio import RATE
from steermoe.data import load_source
from steermoe.inference.ears import Ears


def clock(ears: Ears, clips: list[np.ndarray], size: int) -> float:
    began = time.perf_counter()
    ears.transcribe(clips, sampling_rate=RATE, batch_size=size)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--lengths", type=float, nargs="*", default=[1, 5, 30, 120])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    ears = load()
    clips = [example.load() for example in load_source("fotaq:valid")[:24]]
    speech = sum(map(len, clips)) / RATE
    clock(ears, clips[:8], 8)
    times: dict[int, list[float]] = {1: [], 8: []}
    for _ in range(arguments.runs):
        for size in times:
            times[size].append(clock(ears, clips, size))
    ratio = median(one / eight for one, eight in zip(times[1], times[8], strict=True))
    print("| batch | RTFx |\n|---|---|")
    for size, took in times.items():
        print(f"| {size} | {speech / median(took):.1f} |")
    print(
        f"\nbatch 8 against batch 1: {ratio:.2f} x\n\n| seconds of speech | time | RTFx | process |\n|---|---|---|---|"
    )
    recordings = np.concatenate([example.load() for example in load_source("librivox")])
    for seconds in arguments.lengths:
        clip = np.resize(recordings, int(seconds * RATE))
        took = median(clock(ears, [clip], 8) for _ in range(arguments.runs if seconds <= 30 else 1))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(f"| {seconds:g} | {took:.2f} s | {seconds / took:.1f} | {peak:.2f} GB |")
    if arguments.json:
        arguments.json.write_text(json.dumps({"batch8_vs_batch1": ratio, "rtfx_batch8": speech / median(times[8])}))


if __name__ == "__main__":
    main()

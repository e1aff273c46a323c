"""From a cold process to text: how long `steermoe transcribe` takes for ten seconds of speech.

    python benchmarks/transcribe_speed.py [--runs 5] [--adapter tiny] [--json FILE]

Medians over ``runs`` of: `steermoe --help`; the whole `steermoe transcribe` of a 10 s clip, models in the cache;
and, within one process after loading, the real-time factor (seconds of work a second of speech), with the share of
encoder and LLM. The clip is the shipped human recordings in a row, cut at ten seconds. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import soundfile
import torch

from steermoe import load
from steermoe.audio import RATE
from steermoe.data import load_source

SECONDS = 10


def timed(runs: int, work: Callable[[], Any]) -> list[float]:
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--adapter", default="tiny")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    clip = np.concatenate([example.load() for example in load_source("librivox")])[: SECONDS * RATE]
    command = [sys.executable, "-m", "steermoe"]

    def call(*words: str) -> None:
        subprocess.run([*command, *words], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.wav"
        soundfile.write(path, clip, RATE)
        rows = {"steermoe --help": timed(arguments.runs, lambda: call("--help"))}
        whole = timed(arguments.runs, lambda: call("transcribe", "--adapter", arguments.adapter, str(path)))
        rows[f"steermoe transcribe, {SECONDS} s of speech, from start to text"] = whole
    ears = load(arguments.adapter)
    ears.transcribe(clip, sampling_rate=RATE)  # the first call warms caches
    rows["transcribe, once loaded"] = timed(arguments.runs, lambda: ears.transcribe(clip, sampling_rate=RATE))
    rows["of that, encoder and projector"] = timed(arguments.runs, lambda: ears.hear(clip, sampling_rate=RATE))
    print(
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, median (lowest to highest) of {arguments.runs}\n"
    )
    for name, times in rows.items():
        print(f"{name:58} {median(times):6.2f} s ({min(times):.2f} to {max(times):.2f})")
    print(f"\nreal-time factor once loaded: {median(rows['transcribe, once loaded']) / SECONDS:.2f}")
    if arguments.json:
        names = ("help_s", "transcribe_10s_from_start_s", "transcribe_10s_loaded_s", "hear_10s_loaded_s")
        arguments.json.write_text(json.dumps(dict(zip(names, map(median, rows.values()), strict=True))))


if __name__ == "__main__":
    main()

"""`make bench`: every question in a process of its own, one table, and benchmarks/results/latest.json.

    python benchmarks/bench.py [--out benchmarks/results/latest.json] [--only QUESTION ...]

Ratios are of medians within one run, so that they hold on a noisy machine; times are of this one. With ``--only`` the answers to the
other questions stay as they are in the file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from steermoe.evaluation.predictions import replace

FLAT = ("steering_overhead", "training_speed", "transcription_speed", "transcribe_speed")
QUESTIONS = (*FLAT, "steering_op")


def leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Names and values of everything in nested objects, joined by an underscore."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{name}_{key}".replace(" ", "_"))
    else:
        yield name, value


def machine() -> dict[str, Any]:
    cpu = platform.processor() or "unknown"
    info = Path("/proc/cpuinfo")
    if info.is_file():
        cpu = next((line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line), cpu)
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "bf16": torch.cpu._is_avx512_bf16_supported(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "python": platform.python_version(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = Path(__file__).parent
    parser.add_argument("--out", type=Path, default=here / "results" / "latest.json")
    parser.add_argument("--only", nargs="*", choices=QUESTIONS, default=QUESTIONS)
    arguments = parser.parse_args()
    numbers: dict[str, Any] = machine()
    print(" · ".join(f"{name} {value}" for name, value in numbers.items()))
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for question in arguments.only:
            print(f"\n## {question}\n", flush=True)
            answer = Path(folder) / f"{question}.json"
            subprocess.run([sys.executable, str(here / f"{question}.py"), "--json", str(answer)], check=True)
            told = json.loads(answer.read_text())
            numbers |= told if question in FLAT else dict(leaves(told, question))
    minutes = round((time.perf_counter() - began) / 60, 1)
    if set(arguments.only) == set(QUESTIONS):
        numbers["minutes"] = minutes
    elif arguments.out.is_file():
        numbers = json.loads(arguments.out.read_text()) | numbers
    replace(arguments.out, json.dumps(numbers, indent=2) + "\n")
    print(f"\n{minutes} minutes; {arguments.out}")


if __name__ == "__main__":
    main()

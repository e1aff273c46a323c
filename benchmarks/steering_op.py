"""What the fused steering operation gains over the plain equations: time, and bytes kept for the backward pass.

    python benchmarks/steering_op.py [--repeats 15] [--device cuda] [--dtype bfloat16] [--json FILE]

One layer's steering as in training (h, router, vectors and scale all learn), at the frames of four windows of 30 s of
Whisper-base and of Whisper-large-v3. Plain and fused run in turn, in pairs, after a warm-up; a ratio is the median over
the pairs, so that what else the machine does falls on both. On a GPU also the share of copy bandwidth: the time of a
plain copy of h, over that of the fused forward pass, which too reads and writes h once. There every time is of device
work alone: enough calls are queued behind a sleeping kernel that launching them does not count.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from steermoe import kernels
from steermoe.steering import Steering

SIZES = {"Whisper-base": (4 * 1500, 512, 8), "Whisper-large-v3": (4 * 1500, 1280, 8)}  # B T, D, N
COPY = (64 * 1500, 1280, 8)  # far more than any cache holds
CALLS = 10  # in one timing on a GPU
ASLEEP = 20_000_000  # clock cycles, some 10 ms: longer than launching these takes


def seconds(work: Callable[[], Any], device: str) -> float:
    if device != "cuda":
        began = time.perf_counter()
        work()
        return time.perf_counter() - began
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    torch.cuda._sleep(ASLEEP)
    start.record()
    for _ in range(CALLS):
        work()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000 / CALLS


def paired(one: Callable[[], Any], other: Callable[[], Any], device: str, repeats: int) -> dict[str, float]:
    """Medians of both, and of the ratio one / other within a pair; who goes first alternates."""
    for work in (one, other) * 3:
        work()
    pairs = []
    for i in range(repeats):
        order = (one, other) if i % 2 == 0 else (other, one)
        times = [seconds(work, device) for work in order]
        pairs.append(times if i % 2 == 0 else times[::-1])
    a, b = zip(*pairs, strict=True)
    return {"plain_s": median(a), "fused_s": median(b), "ratio": median(x / y for x, y in pairs)}


def kept(steering: Steering, work: Callable[[], Any]) -> int:
    """Bytes of the storages that wait for the backward pass, without the parameters."""
    own = {p.untyped_storage().data_ptr() for p in steering.parameters()}
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:  # unlike a number, a tensor returned stays alive, so no address comes twice
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        out = work()
    assert out.requires_grad
    return sum(size for pointer, size in sizes.items() if pointer not in own)


def compare(rows: int, width: int, experts: int, device: str, dtype: torch.dtype, repeats: int) -> dict[str, Any]:
    torch.manual_seed(0)
    steering = Steering(1, experts, width).to(device)
    h = torch.randn(rows // 1500, 1500, width, device=device, dtype=dtype, requires_grad=True)
    grad, learn = torch.randn_like(h), [h, *steering.parameters()]

    def forward(fused: bool) -> Tensor:
        with mock.patch.object(kernels, "pays", lambda *_: fused):
            return steering(h, 0)

    def both(fused: bool) -> Any:
        return torch.autograd.grad(forward(fused), learn, grad)

    plain, fused = (kept(steering, partial(forward, kind)) for kind in (False, True))
    with torch.no_grad():
        ahead = paired(partial(forward, False), partial(forward, True), device, repeats)
    return {
        "rows": rows, "width": width, "experts": experts,
        "forward": ahead,
        "forward_backward": paired(partial(both, False), partial(both, True), device, repeats),
        "saved": {"h_bytes": h.nbytes, "plain_bytes": plain, "fused_bytes": fused, "ratio": plain / fused},
    }  # fmt: skip


@torch.no_grad()
def bandwidth(device: str, dtype: torch.dtype, repeats: int) -> dict[str, float]:
    """The fused forward pass against a copy that moves as many bytes."""
    rows, width, experts = COPY
    steering = Steering(1, experts, width).to(device)
    h = torch.randn(rows, width, device=device, dtype=dtype)
    target = torch.empty_like(h)
    times = paired(lambda: target.copy_(h), lambda: steering(h, 0), device, repeats)
    moved = 2 * h.nbytes
    return {
        "copy_bytes_per_s": moved / times["plain_s"],
        "fused_bytes_per_s": moved / times["fused_s"],
        "share": times["ratio"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15, help="pairs of runs")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16"], help="of h: bfloat16 on cuda, else float32"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers there")
    arguments = parser.parse_args()
    device, repeats = arguments.device, arguments.repeats
    name = arguments.dtype or ("bfloat16" if device == "cuda" else "float32")
    dtype = getattr(torch, name)
    triton = device == "cuda" and kernels._kernels(torch.cuda.current_device()) is not None
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()} CPU",
        "torch": torch.__version__, "threads": torch.get_num_threads(), "dtype": name, "triton": triton,
        "repeats": repeats, "sizes": {},
    }  # fmt: skip
    how = "Triton kernels" if triton else "torch operations"
    print(f"{result['device']}, torch {torch.__version__}, {result['threads']} threads, {name}; fused: {how}")
    print("plain / fused, median of the pairs (above 1: the fused one is better)\n")
    print(f"| {'one layer of':16} | rows x D x N     | forward | forward + backward | kept for backward (MiB)  |")
    print("|---|---|---|---|---|")
    for model, size in SIZES.items():
        row = result["sizes"][model] = compare(*size, device, dtype, repeats)
        saved, mib = row["saved"], 2**20
        print(
            f"| {model:16} | {' x '.join(map(str, size)):16} | {row['forward']['ratio']:6.2f}x "
            f"| {row['forward_backward']['ratio']:17.2f}x "
            f"| {saved['ratio']:.2f}x ({saved['plain_bytes'] / mib:.1f} / {saved['fused_bytes'] / mib:.1f}; "
            f"h {saved['h_bytes'] / mib:.1f}) |",
            flush=True,
        )
    if device == "cuda":
        result["bandwidth"] = band = bandwidth(device, dtype, repeats)
        print(
            f"\nforward at D={COPY[1]}, {COPY[0]} rows: {band['fused_bytes_per_s'] / 1e9:.0f} GB/s, "
            f"{band['share']:.0%} of a copy's {band['copy_bytes_per_s'] / 1e9:.0f} GB/s"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

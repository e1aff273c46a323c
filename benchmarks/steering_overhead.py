"""What steering costs the encoder: time of a forward pass, and what training has to keep in memory.

    python benchmarks/steering_overhead.py [--runs 7] [--seconds 10] [--json FILE]

Whisper-base as it is, and a randomly initialised stack of Whisper-large-v3's 32 layers, every layer steered by 8 experts.
Time: medians of interleaved pairs, steered against the same hooks switched off. Memory: bytes of what autograd saves,
steered against an encoder through which the same gradient flows from its first layer, for one clip.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steermoe.encoders import wrap
from steermoe.encoders.attach import attach
from steermoe.pretrained import auto_dtype, load_encoder, load_feature_extractor
from steermoe.steering import Steering

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def large() -> Any:
    from transformers import WhisperConfig, WhisperFeatureExtractor
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    config = WhisperConfig(
        d_model=1280, encoder_layers=32, encoder_attention_heads=20, encoder_ffn_dim=5120, num_mel_bins=128
    )
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    encoder = WhisperEncoder(config).eval().requires_grad_(False).to(auto_dtype(DEVICE))
    return wrap(encoder, WhisperFeatureExtractor(feature_size=128))


def base() -> Any:
    name = "openai/whisper-base"
    return wrap(load_encoder(name, auto_dtype(DEVICE)), load_feature_extractor(name))


def clock(work: Callable[[], Any]) -> float:
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def saved_bytes(work: Any) -> int:
    """Bytes of distinct storages that autograd keeps for the backward pass of ``work()``, parameters left out."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter) and tensor.is_floating_point():
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = work()
    del out
    return sum(kept.values())


def measure(frames: Any, seconds: float, runs: int) -> dict[str, float]:
    frames = frames.to(DEVICE)
    steering = Steering(len(frames.layers), 8, frames.width).to(DEVICE)
    clip = np.random.default_rng(0).standard_normal(int(seconds * 16_000)).astype(np.float32) * 0.05
    features, lengths = (x.to(DEVICE) for x in frames.features([clip]))
    attached = attach(frames.layers, steering)
    with torch.no_grad():
        x, entered = frames.enter(features, lengths, 0)
        times: dict[str, list[float]] = {"plain": [], "steered": []}
        for run in range(runs + 1):
            for name in times:
                if name == "plain":
                    with steering.disabled():
                        took = clock(lambda: frames.leave(x, entered, 0))
                else:
                    took = clock(lambda: frames.leave(x, entered, 0))
                if run:  # the first warms caches
                    times[name].append(took)
    with steering.disabled():
        kept_plain = saved_bytes(lambda: frames.leave(x.clone().requires_grad_(), entered, 0))
    kept_steered = saved_bytes(lambda: frames.leave(x.clone().requires_grad_(), entered, 0))  # both from the same place
    attached.remove()
    overhead = median(s / p for s, p in zip(times["steered"], times["plain"], strict=True))
    return {"time": overhead, "plain": median(times["plain"]), "kept": kept_steered / kept_plain,
            "more_mb": (kept_steered - kept_plain) / 1e6, "kept_mb": kept_plain / 1e6}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    print(f"{arguments.seconds:g} s of audio, {DEVICE}, {auto_dtype(DEVICE)}, {torch.get_num_threads()} threads\n")
    print(
        "| encoder | forward | steered / plain | kept for backward | steered / plain | more |\n|---|---|---|---|---|---|"
    )
    numbers = {}
    for name, build in (("whisper-base", base), ("whisper-large-v3 shape", large)):
        row = measure(build(), arguments.seconds, arguments.runs)
        print(
            f"| {name} | {row['plain']:.3f} s | {row['time']:.3f} | {row['kept_mb']:.0f} MB | {row['kept']:.3f} | "
            f"{row['more_mb']:.1f} MB |"
        )
        suffix = "" if name == "whisper-base" else "_large"
        numbers |= {f"steering_overhead{suffix}": row["time"], f"steering_memory{suffix}": row["kept"]}
    if arguments.json:
        arguments.json.write_text(json.dumps(numbers))


if __name__ == "__main__":
    main()

"""What `steermoe evaluate` calls: an adapter, a test set, the suite, a table and a report."""

from __future__ import annotations

import hashlib
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data import Example
from ..inference.ears import Ears, load
from .asr import evaluate_asr


def adapter_digest(ears: Ears) -> str:
    """SHA-256 over the adapter's settings and its tensors, by name."""
    settings = {k: v for k, v in vars(ears.config).items() if k not in ("encoder", "llm")}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in sorted(ears.model.adapter_state().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def evaluate_ears(
    ears: Ears,
    examples: list[Example],
    data: str,
    *,
    normalizer: str = "english",
    batch_size: int = 8,
    baseline: bool = False,
    heard: bool = False,
    steering: bool = True,
    out: Path | None = None,
) -> dict[str, Any]:
    """The asr suite for an adapter in memory; see ``evaluate_asr`` for what comes back."""
    from .baseline import WhisperOwnDecoder

    def written(batch: list[np.ndarray]) -> list[str]:
        return list(ears.transcribe(batch, sampling_rate=16_000, batch_size=batch_size))

    def read(batch: list[np.ndarray]) -> list[str]:
        return list(ears.hear(batch, sampling_rate=16_000, batch_size=batch_size))

    unsteered = ears.model.steering is not None and not steering
    name = ears.adapter_name + (" without steering" if unsteered else "")
    with ears.model.steering.disabled() if unsteered and ears.model.steering else nullcontext():
        return evaluate_asr(
            written,
            examples,
            normalizer=normalizer,
            batch_size=batch_size,
            out=out,
            baseline=WhisperOwnDecoder(ears.config.encoder, device=str(ears.model.device)) if baseline else None,
            columns={"heard": read} if heard else None,
            data=data,
            adapter=name,
            fingerprint=adapter_digest(ears),
        )


def evaluate(adapter: str, examples: list[Example], data: str, arguments: Any) -> dict[str, Any]:
    """As the command line asks; with ``--out`` also ``report.html``."""
    ears = load(adapter)
    result = evaluate_ears(
        ears,
        examples,
        data,
        normalizer=arguments.normalizer,
        batch_size=arguments.batch_size,
        baseline=arguments.baseline,
        heard=arguments.heard,
        steering=not arguments.no_steering,
        out=arguments.out,
    )
    if arguments.out is not None:
        from .report import write_report

        run = {"label": adapter, "predictions": arguments.out / "predictions.jsonl", **result}
        write_report(arguments.out / "report.html", title=f"{adapter} on {data}", runs=[run])
    return result


def table(result: dict[str, Any]) -> str:
    """The result for a terminal."""
    low, high = result["interval"]["wer"]
    rows = [("written by the LLM", result["metrics"])]
    rows += [(f"{name} (no LLM)", rates) for name, rates in (result.get("columns") or {}).items()]
    if result.get("baseline"):
        rows.append(("encoder's own decoder", result["baseline"]))
    lines = [f"{result['data']}: {result['n']} clips, normaliser {result['normalizer']}"]
    lines.append(f"{'':24}{'WER':>8}{'CER':>8}{'WER raw':>9}{'CER raw':>9}")
    for name, rates in rows:
        cells = [rates.get(key) for key in ("wer", "cer", "wer_raw", "cer_raw")]
        lines.append(
            f"{name:24}"
            + "".join(f"{c:>{w}.1%}" if c is not None else " " * w for c, w in zip(cells, (8, 8, 9, 9), strict=True))
        )
    lines.append(f"95 % interval of the first WER: {low:.1%} to {high:.1%}; RTFx {result['rtfx']:.1f}")
    return "\n".join(lines)

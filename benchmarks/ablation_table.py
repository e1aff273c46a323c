"""What earns its place? Steering with 1 to 16 experts, its variants and its rivals, equal steps and data, three seeds, one table.

    python benchmarks/ablation_table.py [--steps 300] [--seeds 3] [--rows NAME ...] [--out runs/ablation] [--limit CLIPS]

`ctc` rows are trained on the lexical frame scores; what is scored is the CTC text, heard without the LLM. `ce` rows are the
paper's objective: next-token loss through the frozen LLM, fresh (`ce ...`) or from the steering that the `8 experts` row of the same
seed learned (`warm ce ...`; the lexical projector begins as that row's, too); what is scored is what the LLM writes. Trained on
fotaq:train, tested on all of fotaq:valid, Whisper's English normaliser, greedy, 95 % intervals by resampling the clips.

Every finished run is one line of OUT/rows.jsonl and is not run again; one that was stopped goes on from its last checkpoint. 300 steps
are of 40 s of audio each for `ctc`, 3 to 9 processor minutes of an EPYC with AVX512-BF16, and of 24 s for `ce`, 8 to 13. Rows of one seed
begin with the same projector and hear the same clips in the same order.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from steermoe.config import build
from steermoe.data import Example, load_source
from steermoe.evaluation.predictions import append
from steermoe.evaluation.scoring import interval, rate, score
from steermoe.inference.ears import load
from steermoe.training.metrics import whole_lines
from steermoe.training.recipe import Recipe
from steermoe.training.run import train

PAIR = {"encoder": "openai/whisper-base", "llm": "HuggingFaceTB/SmolLM2-135M-Instruct"}
DATA = {"train": ["fotaq:train"], "min_words": 2}
STATIC = {"steer": False}
WARM = "8 experts"  # the row from which the warm ones start
CTC: dict[str, dict[str, Any]] = {
    **{f"{n} expert{'s' * (n > 1)}": {"num_experts": n} for n in (1, 2, 4, 8, 16)},
    "static": STATIC,
    "LoRA, rank 8": {**STATIC, "lora_rank": 8},
    "mixture in the projector": {**STATIC, "projector_experts": 8},
    "per-layer routers": {"router": "per_layer"},
    "tied router": {"router": "tied"},
    "top-2": {"top_k": 2},
    "top-2, balanced": {"top_k": 2},
}
# What is written by the LLM. `ce` reaches no tensor of a lexical projector that reads out tokens (temperature 0): its rows are of `ctc`.
WRITTEN: dict[str, dict[str, Any]] = {
    **{f"{how}ce {projector}": {"projector": projector} for how in ("", "warm ") for projector in ("linear", "mlp")},
    **{f"{how}ctc lexical": {"projector": "lexical"} for how in ("", "warm ")},
    "ce linear, static": {**STATIC, "projector": "linear"},
}
ROWS = {**CTC, **WRITTEN}


def recipe_of(row: str, seed: int, steps: int, out: Path, **model: Any) -> Recipe:
    """One run; ``model`` and the paths may be replaced, as the smoke test does."""
    settings = {**PAIR, **ROWS[row], **model}
    lexical = settings.get("projector", "lexical") == "lexical"
    objectives: dict[str, float] = {"ctc": 1.0} if lexical else {"ce": 1.0}
    objectives |= {"balance": 0.01} if "balanced" in row else {}
    trains = ["projector", *(["steering"] if settings.get("steer", True) else []), *(["lora"] if "LoRA" in row else [])]
    rates = {"vectors": 5e-3, "router": 5e-4, "projector": 2e-3 if lexical else 5e-4, "lora": 1e-3}
    stage = {
        "objectives": objectives,
        "trains": trains,
        "steps": steps,
        "rates": rates,
        "warmup": min(50, steps),
        "batch_seconds": 24 if row in WRITTEN else 40,
    }
    return build(
        Recipe,
        {"model": settings, "data": DATA, "stages": [stage], "out": str(folder_of(out, row, seed, steps)), "seed": seed,
         "init_from": str(folder_of(out, WARM, seed, steps) / "adapter") if row.startswith("warm") else None},
    )  # fmt: skip


def folder_of(out: Path, row: str, seed: int, steps: int) -> Path:
    return out / f"{row.replace(' ', '-').replace(',', '')}-{seed}-{steps}"


def run(row: str, seed: int, steps: int, out: Path, clips: list[Example], **model: Any) -> dict[str, Any]:
    """Train and score one row of one seed."""
    recipe = recipe_of(row, seed, steps, out, **model)
    folder, began = Path(recipe.out), time.process_time()
    if not (folder / "adapter" / "adapter_model.safetensors").is_file():
        train(recipe, resume=(folder / "checkpoints").exists())
    minutes = (time.process_time() - began) / 60
    ears, texts = load(folder / "adapter"), [clip.text for clip in clips]
    audio = [clip.load() for clip in clips]
    said = list(ears.hear(audio, sampling_rate=16_000) if row in CTC else ears.transcribe(audio, sampling_rate=16_000))
    scored = score(texts, said)
    return {
        "row": row, "seed": seed, "steps": steps, "clips": len(clips), "scored": "heard" if row in CTC else "written",
        "wer": rate(scored.words), "interval": list(interval(scored.words)), "processor_minutes": minutes,
        "trained": sum(t.numel() for t in ears.model.adapter_state().values()),
    }  # fmt: skip


def finished(path: Path, steps: int, clips: int) -> list[dict[str, Any]]:
    """The rows that are done."""
    return [row for row in whole_lines(path) if (row["steps"], row["clips"]) == (steps, clips)]


def table(done: list[dict[str, Any]], steps: int) -> str:
    """Markdown: a row each, the mean of its seeds, lowest to highest, and the interval of each seed."""
    lines = [f"WER on fotaq:valid after {steps} steps\n", "| | trained | WER, mean (lowest to highest) | 95 % intervals by seed | processor minutes |",
             "|---|---|---|---|---|"]  # fmt: skip
    order = {name: number for number, name in enumerate(ROWS)}
    for name, group in groupby(sorted(done, key=lambda r: (order[r["row"]], r["seed"])), key=lambda r: r["row"]):
        runs = list(group)
        wers = [r["wer"] for r in runs]
        spans = ", ".join(f"{low:.1%} to {high:.1%}" for low, high in (r["interval"] for r in runs))
        each = f"{np.mean(wers):.1%} ({min(wers):.1%} to {max(wers):.1%}), {runs[0]['scored']}, {len(runs)} seeds"
        lines.append(
            f"| {name} | {runs[0]['trained']:,} | {each} | {spans} | {np.mean([r['processor_minutes'] for r in runs]):.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS), metavar="NAME")
    parser.add_argument("--limit", type=int, help="score only the first CLIPS of fotaq:valid")
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    arguments = parser.parse_args()
    clips = load_source("fotaq:valid")[: arguments.limit]
    rows = list(arguments.rows)
    if any(row.startswith("warm") for row in rows) and WARM not in rows:
        rows.insert(0, WARM)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "rows.jsonl"
    for seed in range(arguments.seeds):
        for row in sorted(rows, key=lambda name: name != WARM):  # the others start from it
            done = finished(path, arguments.steps, len(clips))
            if any((r["row"], r["seed"]) == (row, seed) for r in done):
                continue
            print(f"seed {seed}, {row}", file=sys.stderr, flush=True)
            result = run(row, seed, arguments.steps, arguments.out, clips)
            append(path, [result])
            shutil.rmtree(folder_of(arguments.out, row, seed, arguments.steps) / "checkpoints", ignore_errors=True)
    print(table(finished(path, arguments.steps, len(clips)), arguments.steps))


if __name__ == "__main__":
    main()

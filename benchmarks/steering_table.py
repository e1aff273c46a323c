"""Does steering earn its place? The same data and steps with and without it, three seeds, one table.

    python benchmarks/steering_table.py [--steps 300] [--seeds 3] [--out runs/steering_table]

Rows: steered (trained with steering), disabled (the same adapter, steering switched off), static (never had any).
Columns: WER of the CTC arg-max text alone, and of what the LLM writes from the same vectors. Trained on
fotaq:train, tested on all of fotaq:valid, Whisper's English normaliser, greedy. The prompt vectors are the
shipped adapter's in every row. Finished runs are kept in ``out`` and not run again.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from steermoe.adapter import load_tensors
from steermoe.config import SteerMoEConfig
from steermoe.data import load_source
from steermoe.evaluation.run import evaluate_ears
from steermoe.inference.ears import from_model, load
from steermoe.model import SteerMoEForConditionalGeneration
from steermoe.training.loop import Trainer
from steermoe.training.recipe import Data, Rates, Recipe, Stage

ROWS = ("steered", "disabled", "static")


def run(seed: int, steered: bool, steps: int, out: Path) -> dict[str, dict[str, float]]:
    """Train one adapter and score it; {row: {"heard": WER, "written": WER}}."""
    done = out / "result.json"
    if done.is_file():
        return json.loads(done.read_text())
    shipped = load("tiny")
    frames, llm = shipped.model.frames, shipped.model.llm
    if shipped.model.attached is not None:
        shipped.model.attached.remove()
    settings = {"prompt_vectors": shipped.config.prompt_vectors, "instruction": shipped.config.instruction}
    config = SteerMoEConfig(encoder=shipped.config.encoder, llm=shipped.config.llm, steer=steered, **settings)
    torch.manual_seed(seed)
    model = SteerMoEForConditionalGeneration(config, frames, llm)
    with torch.no_grad():
        model.prompt_vectors.copy_(shipped.model.prompt_vectors)
    stage = Stage(
        steps=steps, trains=["steering", "projector"], rates=Rates(projector=2e-3), batch_seconds=64, keep_frames=True
    )
    data = Data(train=["fotaq:train"], min_words=2)
    recipe = Recipe(model=config, data=data, stages=[stage], out=str(out), seed=seed)
    ears = from_model(model, "steered" if steered else "static")
    if (out / "adapter").exists():
        load_tensors(model, out / "adapter")
    else:
        Trainer(recipe, model, ears.processor).run(resume=(out / "checkpoints").exists())
    clips, result = load_source("fotaq:valid"), {}
    for row in ("steered", "disabled") if steered else ("static",):
        scores = evaluate_ears(ears, clips, "fotaq:valid", heard=True, steering=row != "disabled", out=out / row)
        result[row] = {"heard": scores["columns"]["heard"]["wer"], "written": scores["metrics"]["wer"]}
    done.write_text(json.dumps(result))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/steering_table"))
    arguments = parser.parse_args()
    results: dict[str, list[dict[str, float]]] = {row: [] for row in ROWS}
    for seed in range(arguments.seeds):
        for steered in (True, False):
            folder = arguments.out / f"{arguments.steps}-{'steered' if steered else 'static'}-{seed}"
            print(f"seed {seed}, {'steered' if steered else 'static'}", file=sys.stderr, flush=True)
            for row, rates in run(seed, steered, arguments.steps, folder).items():
                results[row].append(rates)
    print(f"fotaq:valid WER after {arguments.steps} steps, mean (lowest to highest) of {arguments.seeds} seeds\n")
    print(f"| {'':9} | heard (CTC text)        | written (by the LLM)    |\n|---|---|---|")
    for row in ROWS:
        print(f"| {row:9} | " + " | ".join(_cell([r[c] for r in results[row]]) for c in ("heard", "written")) + " |")


def _cell(values: list[Any]) -> str:
    return f"{np.mean(values):6.1%} ({min(values):.1%} to {max(values):.1%})"


if __name__ == "__main__":
    main()

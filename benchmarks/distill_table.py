"""`distill` or `ce`: after equal steps, which frozen LLM follows a spoken question better? Three seeds, one table.

    python benchmarks/distill_table.py [--steps 100] [--seeds 3] [--objectives ctc ce distill] [--out runs/distill] [--limit QUESTIONS]

All start from the adapter that ships, its words read out as mixtures (`temperature`), which pass gradients, and hear the same clips of
fotaq:train in the same order. All are taught `ctc`, without which a lexical projector finds no words; one nothing else. `ce` is also
taught the transcript, the paper's way, asked to repeat; `distill` what the LLM itself answers to the transcript, as distributions, asked
to repeat, to answer, or what it is about. Scored on the spoken questions of questions:test, of which none heard any: answers judged
right (and as the same LLM's to the text), and nats a token by which its answers to speech are off its own answers to the text.

Every finished run is one line of OUT/rows.jsonl and is not run again; one that was stopped goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from steermoe.adapter import read_config
from steermoe.config import build
from steermoe.data import Example, load_source
from steermoe.evaluation.gap import run as gap
from steermoe.evaluation.listener import Adapter
from steermoe.evaluation.predictions import append
from steermoe.evaluation.suites import Options
from steermoe.inference.ears import Ears, load
from steermoe.inference.find import find_adapter
from steermoe.training.distill import Teacher
from steermoe.training.metrics import whole_lines
from steermoe.training.objectives import divergence
from steermoe.training.recipe import Recipe
from steermoe.training.run import train

START: str | None = "tiny"
MODEL = {
    **read_config(find_adapter("tiny"))["config"],
    "temperature": 0.3,
}  # a mixture of tokens, through which `ce` has a gradient
REPEAT = "Repeat the text above word for word."
PROMPTS = {
    "ctc": [REPEAT],
    "ce": [REPEAT],
    "distill": [REPEAT, "Answer in one sentence.", "What is this about?"],
}
DATA: dict[str, Any] = {"source": "fotaq:train"}


def recipe_of(objective: str, seed: int, steps: int, out: Path) -> Recipe:
    stage = {
        "objectives": {"ctc": 1.0, objective: 1.0},
        "trains": ["steering", "projector"],
        "steps": steps,
        "rates": {"vectors": 1e-3, "router": 1e-4, "projector": 5e-4},
        "warmup": min(20, steps),
        "batch_seconds": 24,
        "response_tokens": 32,
    }
    data = {"train": [{**DATA, "prompts": PROMPTS[objective]}], "min_words": 2}
    return build(
        Recipe,
        {"model": MODEL, "data": data, "stages": [stage], "seed": seed, "init_from": START,
         "out": str(out / f"{objective}-{seed}-{steps}")},
    )  # fmt: skip


@torch.inference_mode()
def distance(ears: Ears, questions: list[Example]) -> float:
    """Mean over the tokens of the LLM's own answers to the written questions: KL of its distributions after the spoken ones."""
    teacher, total, tokens = Teacher(ears.model, ears.processor, 32), 0.0, 0
    for question in questions:
        told = teacher.batch([question.prompt or ""], [""])
        inputs = told["input_ids"], told["attention_mask"]
        taught = ears.model.answer_logits(*inputs, told["heard"], told["labels"])
        learned = ears.model.answer_logits(
            *inputs, ears.model.hear(**ears.processor.features([question.load()])), told["labels"]
        )
        total, tokens = total + float(divergence(learned, taught)), tokens + len(taught)
    return total / tokens


def run(objective: str, seed: int, steps: int, out: Path, questions: list[Example]) -> dict[str, Any]:
    """Train and score one run."""
    recipe = recipe_of(objective, seed, steps, out)
    folder = Path(recipe.out)
    if not (folder / "adapter" / "adapter_model.safetensors").is_file():
        train(recipe, resume=(folder / "checkpoints").exists())
    ears = load(folder / "adapter")
    told = gap(Adapter(ears), Options(questions, "questions:test"))
    seconds = [row.get("seconds", 0.0) for row in whole_lines(folder / "metrics.jsonl")]
    return {
        "objective": objective, "seed": seed, "steps": steps, "questions": len(questions),
        "right": told["metrics"]["accuracy"], "interval": told["interval"]["accuracy"],
        "judged_as_text": told["metrics"]["speech_judged_as_text"], "right_from_text": told["columns"]["text"]["accuracy"],
        "nats": distance(ears, questions), "minutes": sum(seconds) / 60,
    }  # fmt: skip


def table(rows: list[dict[str, Any]], steps: int) -> str:
    """Markdown: a row for each objective, means over its seeds, lowest to highest."""
    lines = [
        f"After {steps} steps, on questions:test (from their text {rows[0]['right_from_text']:.1%} are right)\n",
        "| | right | judged as from text | nats a token off | minutes |",
        "|---|---|---|---|---|",
    ]
    for objective in dict.fromkeys(row["objective"] for row in rows):
        mine = [row for row in rows if row["objective"] == objective]

        def spread(key: str, form: str, mine: list[dict[str, Any]] = mine) -> str:
            values = [row[key] for row in mine]
            return f"{np.mean(values):{form}} ({min(values):{form}} to {max(values):{form}})"

        cells = spread("right", ".1%"), spread("judged_as_text", ".1%"), spread("nats", ".2f")
        minutes = np.mean([row["minutes"] for row in mine])
        lines.append(f"| {objective}, {len(mine)} seeds | {' | '.join(cells)} | {minutes:.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--objectives", nargs="+", default=list(PROMPTS), choices=list(PROMPTS))
    parser.add_argument("--limit", type=int, help="only the first QUESTIONS")
    parser.add_argument("--out", type=Path, default=Path("runs/distill"))
    arguments = parser.parse_args()
    questions = load_source("questions:test")[: arguments.limit]
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "rows.jsonl"

    def finished() -> list[dict[str, Any]]:
        found = [r for r in whole_lines(path) if (r["steps"], r["questions"]) == (arguments.steps, len(questions))]
        return sorted(found, key=lambda row: (list(PROMPTS).index(row["objective"]), row["seed"]))

    for seed in range(arguments.seeds):
        for objective in arguments.objectives:
            if any((row["objective"], row["seed"]) == (objective, seed) for row in finished()):
                continue
            print(f"seed {seed}, {objective}", file=sys.stderr, flush=True)
            result = run(objective, seed, arguments.steps, arguments.out, questions)
            append(path, [result])
    print(table(finished(), arguments.steps))


if __name__ == "__main__":
    main()

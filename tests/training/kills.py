"""Trains a recipe to its end in forked children, which are killed at random moments; used by test_kills.py.

``python -m tests.training.kills RECIPE.json KILLS SEED``. One process imports everything, then only forks: ten starts cost one.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from steermoe.config import build
from steermoe.inference.ears import from_model
from steermoe.training.loop import Trainer
from steermoe.training.recipe import Recipe
from steermoe.training.run import new_model


def child(recipe: Recipe) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            model = new_model(recipe)
            Trainer(recipe, model, from_model(model).processor).run(resume=True)
            code = 0
        finally:
            os._exit(code)
    return pid


def steps(out: Path) -> int:
    """Rows of metrics.jsonl, whole or not."""
    path = out / "metrics.jsonl"
    return len(path.read_bytes().splitlines()) if path.is_file() else 0


def main() -> None:
    recipe = build(Recipe, json.loads(Path(sys.argv[1]).read_text()))
    out, rng = Path(recipe.out), random.Random(int(sys.argv[3]))
    total, killed = sum(stage.steps for stage in recipe.stages), []
    while len(killed) < int(sys.argv[2]):
        at = steps(out) + rng.randint(1, 4)
        pid = child(recipe)
        while steps(out) < min(at, total - 3) and os.waitpid(pid, os.WNOHANG) == (0, 0):
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.03))  # anywhere within a step, or in the midst of a checkpoint
        os.kill(pid, signal.SIGKILL)
        if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != -signal.SIGKILL:
            raise SystemExit("a child ended by itself")
        killed.append(steps(out))
    if os.waitstatus_to_exitcode(os.waitpid(child(recipe), 0)[1]) != 0:
        raise SystemExit("the last child failed")
    print(json.dumps(killed))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

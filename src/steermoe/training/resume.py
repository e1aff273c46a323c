"""Whether a run may be continued: with the recipe it began with, from a checkpoint that lies where the recipe says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .recipe import Recipe

FREE = ("out", "log_every", "valid_every", "checkpoint_every", "threads", "data.valid", "data.valid_clips",
        "gradient_checkpointing", "shard_llm")  # fmt: skip


def check_same(path: Path, recipe: Recipe) -> None:
    """A run is continued with the recipe it began with; only reports, threads and numbers of steps may differ.

    Raises UsageError that names the first key that differs.
    """
    try:
        before = json.loads(path.read_text())
    except (OSError, ValueError):
        return  # nothing to compare with
    was, now = (dict(_leaves(tree)) for tree in (before, json.loads(json.dumps(asdict(recipe)))))
    for key in {**was, **now}:
        if key not in FREE and not key.endswith(".steps") and key in was and was[key] != now.get(key):
            raise UsageError(
                f"{path} began with {key}={was[key]!r}, and this recipe says {now.get(key)!r}: resume with the "
                "same recipe, or give another out="
            )


def check_stage(recipe: Recipe, step: int, stage: int) -> None:
    """The checkpoint of ``step`` was made in ``stage``, counted from 0: so must it be under the recipe's numbers of steps.

    Raises UsageError, which says how many steps the stage may have.
    """
    before = sum(s.steps for s in recipe.stages[:stage])
    if stage >= len(recipe.stages) or not before <= step <= before + recipe.stages[stage].steps:
        raise UsageError(
            f"the newest checkpoint is of step {step}, in stages.{stage}: the stages before it must keep their numbers "
            f"of steps, and it needs {max(1, step - before)} or more"
        )


def _leaves(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of everything in nested dicts and lists; of what a recipe may have more or fewer of, what there is."""
    if not isinstance(value, (dict, list)):
        yield where, value
        return
    if isinstance(value, list):
        yield f"{where} (how many)", len(value)
    elif where.endswith(("objectives", "prompts")):  # all other keys are the library's, and a newer one has more
        yield f"{where} (which)", ", ".join(sorted(value))
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield from _leaves(item, f"{where}.{key}" if where else str(key))

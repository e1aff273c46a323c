"""Do two runs differ? Both over the same clips, resampled together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError, UsageError
from . import predictions, scoring
from .collect import OWN
from .predictions import Row


def compare(before: Path, after: Path, normalizer: str = "english") -> dict[str, Any]:
    """Two ``predictions.jsonl`` over the same clips: ``n``, both error rates, their difference, its paired p-value.

    Rows that were judged right or wrong have the share of wrong ones as their rate, others their WER.
    """
    old = {row["id"]: row for row in predictions.read_finished(before) if OWN in row}
    new = {row["id"]: row for row in predictions.read_finished(after) if OWN in row}
    shared = [key for key, row in old.items() if key in new and new[key]["reference"] == row["reference"]]
    if not shared:
        raise DataError(f"{before} and {after} share no clip of the same id and text; compare runs over the same data")
    a, b = (_counts([rows[key] for key in shared], normalizer) for rows in (old, new))
    return {"n": len(shared), "before": scoring.rate(a), "after": scoring.rate(b),
            "difference": scoring.rate(b) - scoring.rate(a), "interval": list(scoring.paired_interval(a, b)),
            "p_value": scoring.paired_p(a, b)}  # fmt: skip


def _counts(rows: Sequence[Row], normalizer: str) -> np.ndarray:
    if "right" in rows[0]:
        return scoring.verdicts([row["right"][OWN] for row in rows])
    return scoring.score([row["reference"] for row in rows], [row[OWN] for row in rows], normalizer).words


def compare_runs(before: Path, after: Path) -> dict[str, Any]:
    """Two folders of ``steermoe evaluate --out``: as ``compare``, with what was measured.

    Raises DataError where there is no finished run, UsageError for runs of two suites or normalizers.
    """
    told = [predictions.read_run(folder) for folder in (before, after)]
    for key in ("suite", "normalizer"):
        was, now = (run.get(key) for run in told)
        if was != now:
            raise UsageError(f"{before} has {key} {was}, {after} has {now}: only like runs can be compared")
    if told[0]["suite"] == "tools":
        raise UsageError(
            f"{before} and {after} are of the suite tools, whose calls are not compared one by one: see their intervals"
        )
    found = compare(told[0]["predictions"], told[1]["predictions"], told[0].get("normalizer") or "none")
    wrong = "accuracy" in told[0]["metrics"]
    return {"suite": told[0]["suite"], "measure": "wrong answers" if wrong else "WER",
            "runs": [str(before), str(after)], "adapters": [run.get("adapter") for run in told], **found}  # fmt: skip


def as_text(value: dict[str, Any]) -> str:
    """For a terminal."""
    low, high = value["interval"]
    return "\n".join([
        f"{value['suite']}, {value['measure']} over {value['n']} clips that both runs heard",
        *(f"{name:40} {value[key]:>7.1%}" for key, name in zip(("before", "after"), value["runs"], strict=True)),
        f"difference {100 * value['difference']:+.2f} points (95 % interval {100 * low:+.2f} to {100 * high:+.2f}), "
        f"p = {value['p_value']:.3f}, paired bootstrap",
    ])  # fmt: skip

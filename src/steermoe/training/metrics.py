"""What a run says of itself: ``metrics.jsonl``, TensorBoard, a line a step to the screen, and the clips it had to skip."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data import Example

SHOWN = ("loss", "ctc", "phones", "ce", "copy", "distill", "balance", "scale_mean")


class Metrics:
    """``metrics.jsonl``, TensorBoard and the screen. On resume, rows after the checkpoint are dropped."""

    def __init__(self, out: Path, start: int, total: int, active: bool) -> None:
        self.total, self.start, self.active, self.began = total, start, active, time.perf_counter()
        if not active:
            return
        path = out / "metrics.jsonl"
        rows = path.read_text().splitlines() if start and path.is_file() else []
        kept = [row for row in rows if _step(row) <= start]
        path.write_text("".join(row + "\n" for row in kept))
        self.file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed by close()
        from torch.utils.tensorboard import SummaryWriter

        self.board = SummaryWriter(out / "tensorboard", purge_step=start or None)

    def add(self, row: dict[str, Any], show: bool) -> None:
        if not self.active:
            return
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()
        for name, value in row.items():
            if name != "step" and isinstance(value, (int, float)):
                self.board.add_scalar(name, value, row["step"])
        if show:
            step = row["step"]
            spent = time.perf_counter() - self.began
            left = spent / max(1, step - self.start) * (self.total - step)
            names = [n for n in row if n in SHOWN or n.startswith("valid")]
            shown = "  ".join(f"{name} {row[name]:.3f}" for name in names)
            say(f"step {step}/{self.total}  {shown}  {spent / 60:.1f} min, {left / 60:.1f} min left")

    def close(self) -> None:
        if self.active:
            self.file.close()
            self.board.close()


class Skipped:
    """``skipped.jsonl``: the clips that could not be read, one a line, each once."""

    def __init__(self, path: Path) -> None:
        self.path, self.said = path, {row["id"] for row in whole_lines(path)}

    def add(self, clips: Sequence[tuple[Example, str]]) -> None:
        for clip, why in clips:
            if clip.id in self.said:
                continue
            self.said.add(clip.id)
            say(f"skipped {clip.id}: {why}")
            with open(self.path, "a", encoding="utf-8") as file:
                row = {"id": clip.id, "audio": str(clip.audio), "error": why}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


def whole_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines, none where there is no file; half of one, which a kill left, is cut off."""
    content = path.read_bytes() if path.is_file() else b""
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        os.truncate(path, len(whole))
    return [json.loads(line) for line in whole.splitlines()]


def _step(row: str) -> float:
    try:
        return float(json.loads(row)["step"])
    except ValueError:  # a kill or a full disk can leave half a row
        return math.inf


def say(line: str) -> None:
    """Of several processes only the first speaks."""
    if os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr, flush=True)

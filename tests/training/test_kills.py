"""SIGKILL ten times in one short run: the tensors are those of a run that nothing ever stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file


@pytest.mark.slow
def test_ten_kills_change_nothing(recipe: dict[str, Any], tmp_path: Path) -> None:
    for stage, steps in zip(recipe["stages"], (12, 24), strict=True):
        stage |= {"steps": steps, "batch_seconds": 8, "dropout": 0.1}
    recipe |= {"dtype": "float32", "checkpoint_every": 2}
    recipe["data"]["augment"] = True
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    tensors = {}
    for name, kills in (("whole", 0), ("killed", 10)):
        (tmp_path / f"{name}.json").write_text(json.dumps({**recipe, "out": str(tmp_path / name)}))
        command = [sys.executable, "-m", "tests.training.kills", str(tmp_path / f"{name}.json"), str(kills), "0"]
        root = Path(__file__).parents[2]
        done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr[-3000:]
        killed = json.loads(done.stdout.splitlines()[-1])
        assert len(killed) == kills
        tensors[name] = load_file(tmp_path / name / "adapter" / "adapter_model.safetensors")
    assert len(set(killed)) > 4 and max(killed) > 12  # at many steps, of both stages
    assert tensors["whole"].keys() == tensors["killed"].keys()
    assert all(torch.equal(tensor, tensors["killed"][name]) for name, tensor in tensors["whole"].items())
    rows = [json.loads(line) for line in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 37))

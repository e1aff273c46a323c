"""Two processes on gloo do what one does with the same batches: by the command that a user would type."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from steermoe.errors import UsageError
from steermoe.training.distributed import shard, sum_gradients, summed


def test_one_process_sums_nothing() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    sum_gradients([parameter])
    assert summed([1.5, 2], torch.device("cpu")) == [1.5, 2] and parameter.grad is None
    with pytest.raises(UsageError, match="shard_llm: there is one process; start several"):
        shard(torch.nn.Linear(2, 2), torch.device("cpu"))


def run(processes: int, recipe: Path, *overrides: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    several = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", str(port)]
    command = [sys.executable, *(several if processes > 1 else []), "-m", "steermoe", "train", str(recipe), *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-9000:]


@pytest.mark.slow
@pytest.mark.parametrize("projector", ["lexical", "linear"])
def test_two_processes_are_one_with_two_batches_a_step(recipe: dict[str, Any], tmp_path: Path, projector: str) -> None:
    lexical = projector == "lexical"
    recipe["model"]["projector"] = projector
    objectives = {"ctc": 1.0, "ce": 0.5, "balance": 0.1} if lexical else {"ce": 1.0, "distill": 0.5}
    stage = {**recipe["stages"][0], "objectives": objectives, "trains": ["steering", "projector", "prompt_vectors"]}
    stage |= {"steps": 6, "batch_seconds": 4, "dropout": 0.1, "weight_decay": 0.1, "response_tokens": 4}
    recipe |= {"stages": [stage], "dtype": "float32", "checkpoint_every": 4}
    recipe["data"]["augment"] = True
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    ways = {"one": (1, "stages.0.accumulate=2"), "ddp": (2,), "fsdp": (2, "shard_llm=true")}
    for name, (processes, *overrides) in ways.items():
        run(processes, tmp_path / "r.yaml", f"out={tmp_path / name}", *overrides)
    rows = {
        name: [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ways
    }
    tensors = {name: load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ways}
    for name in ("ddp", "fsdp"):
        for one, two in zip(rows["one"], rows[name], strict=True):
            for key in ("loss", *objectives, "grad_norm", "audio_seconds"):
                assert two[key] == pytest.approx(one[key], abs=1e-4, rel=1e-4), (name, one["step"], key)
        for key, tensor in tensors["one"].items():
            torch.testing.assert_close(tensors[name][key], tensor, atol=1e-3, rtol=1e-3)
    run(2, tmp_path / "r.yaml", f"out={tmp_path / 'fsdp'}", "shard_llm=false", "stages.0.steps=8", "--resume")
    assert len((tmp_path / "fsdp" / "metrics.jsonl").read_text().splitlines()) == 8

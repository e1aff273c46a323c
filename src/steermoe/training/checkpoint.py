"""Checkpoints that resume exactly: adapter, optimizer state and counters, absent or whole, never pickled."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..adapter import load_tensors, save
from ..errors import AdapterError
from ..model import SteerMoEForConditionalGeneration

KEEP = 2


def _names(model: SteerMoEForConditionalGeneration, optimizer: torch.optim.Optimizer) -> list[tuple[str, Tensor]]:
    by_id = {id(p): name for name, p in model.named_parameters()}
    return [(by_id[id(p)], p) for group in optimizer.param_groups for p in group["params"]]


def save_checkpoint(
    folder: Path, model: SteerMoEForConditionalGeneration, optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> Path:
    """``folder/step-NNNNNN``, built beside and renamed; the latest two are kept. Raises AdapterError on a full disk."""
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob(".building.*"):
        shutil.rmtree(stale, ignore_errors=True)
    target = folder / f"step-{state['step']:06d}"
    scratch = Path(tempfile.mkdtemp(prefix=".building.", dir=folder))
    try:
        save(model, scratch, trained=state)
        moments = {
            f"{name}/{key}": value.detach().cpu().contiguous()
            for name, parameter in _names(model, optimizer)
            for key, value in optimizer.state.get(parameter, {}).items()
        }
        save_file(moments, scratch / "optimizer.safetensors")
        (scratch / "state.json").write_text(json.dumps(state))
        if target.exists():
            shutil.rmtree(target)
        os.replace(scratch, target)
    except AdapterError:
        raise
    except Exception as error:
        raise AdapterError(f"cannot save {target}: {error}; earlier checkpoints are untouched") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    for old in sorted(folder.glob("step-*"), key=_step)[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint in ``folder``, or None."""
    found = [p for p in folder.glob("step-*") if (p / "state.json").is_file()]
    return max(found, key=_step, default=None)


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def restore(path: Path, model: SteerMoEForConditionalGeneration, optimizer: torch.optim.Optimizer | None) -> None:
    """Put a checkpoint's tensors into ``model`` and, where given, its moments into ``optimizer``."""
    load_tensors(model, path)
    if optimizer is None:
        return
    moments: dict[str, dict[str, Tensor]] = {}
    for full, tensor in load_file(path / "optimizer.safetensors").items():
        name, _, key = full.rpartition("/")
        moments.setdefault(name, {})[key] = tensor
    for name, parameter in _names(model, optimizer):
        if name in moments:
            state = {k: v.to(parameter.device) if k != "step" else v for k, v in moments[name].items()}
            optimizer.state[parameter] = state

"""Several processes, one step: what is summed between them.

What is trained is a few megabytes, so its gradients are summed by one call a step (data parallelism without wrapping the
model). Losses are divided by the labels of all processes' batches beforehand: the sums are those of one process on all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors


def summed(values: Sequence[float], device: torch.device) -> list[float]:
    """The sums of ``values`` over all processes."""
    if not (dist.is_available() and dist.is_initialized()):
        return list(values)
    total = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return total.tolist()


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Each gradient becomes its sum over all processes; what all had no use for has none."""
    if not (dist.is_available() and dist.is_initialized()):
        return
    used = summed([parameter.grad is not None for parameter in parameters], parameters[0].device)
    chosen = [parameter for parameter, count in zip(parameters, used, strict=True) if count]
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in chosen]
    flat = _flatten_dense_tensors(gradients)
    dist.all_reduce(flat)
    for parameter, total in zip(chosen, _unflatten_dense_tensors(flat, gradients), strict=True):
        parameter.grad = total

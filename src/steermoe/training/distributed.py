"""Several processes, one step: what is summed between them.

What is trained is a few megabytes, so its gradients are summed by one call a step (data parallelism without wrapping the
model). Losses are divided by the labels of all processes' batches beforehand: the sums are those of one process on all of them.
An LLM larger than a card is sharded (FSDP2): each process keeps a part of every block, and gathers a block while it computes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from ..errors import UsageError


def shard(llm: Any, device: torch.device) -> None:
    """Shard the LLM's blocks over all processes; each block is moved to ``device`` as it is sharded, never the whole.

    Embedding and head stay whole: they are looked up outside of the LLM's forward, and may be one matrix. Raises UsageError for
    an LLM that does not say what its blocks are, or where there is one process only.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if not (dist.is_available() and dist.is_initialized()):
        raise UsageError(
            "shard_llm: there is one process; start several, torchrun --nproc-per-node 2 -m steermoe train ..."
        )
    kinds = set(llm._no_split_modules or [])
    blocks = [module for module in llm.modules() if type(module).__name__ in kinds]
    if not blocks:
        raise UsageError(f"shard_llm: {type(llm).__name__} does not say what its blocks are")
    inside = {parameter for block in blocks for parameter in block.parameters()}
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for block in blocks:
        fully_shard(block, mesh=mesh)
        block.unshard()  # its buffers must not be made within inference mode, where text is written: training uses them, too
        block.reshard()
    fully_shard(llm, mesh=mesh, ignored_params={p for p in llm.parameters() if p not in inside and not _sharded(p)})


def _sharded(parameter: Tensor) -> bool:
    from torch.distributed.tensor import DTensor

    return isinstance(parameter, DTensor)


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

"""Equations (1)-(3) of ``steering.py`` as one differentiable operation: less to keep, less to move.

Written with torch's own operations, autograd keeps of every steered layer the gates (twice in bf16) and the mixture
dH (..., T, D), as large as the layer's output. Here the backward pass computes both anew from h: it keeps h and the
small parameters, nothing else. And it never forms dH at all, for with P = grad E^T (rows, N)

    d scale  = sum(gates * P)                               since grad . dH = gates . P
    d E      = scale gates^T grad
    d logits = scale gates * (P - sum_n(gates * P))         through the softmax
    d W      = d logits^T h,   d b = sum(d logits),   d h = grad + d logits W

On CUDA, where triton is installed, the passes over (rows, D) run in ``triton_steer.py``; everywhere else as the same
few products of torch. On CPUs the output has the same bits as the equations in ``steering.py``.
"""

from __future__ import annotations

import functools
import warnings
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

MOST_EXPERTS = 64  # that one block of the triton kernel holds


def pays(h: Tensor) -> bool:
    """Whether the one operation is worth it: not within ``torch.compile``, which fuses the plain equations itself and
    chooses what it keeps; nor for shapes without numbers."""
    return not (torch.compiler.is_compiling() or h.is_meta)


def steer(h: Tensor, weight: Tensor, bias: Tensor, vectors: Tensor, scale: Tensor) -> Tensor:
    """h + scale softmax(h weight^T + bias) vectors: the shape and dtype of h (..., D).

    ``weight`` and ``vectors`` (N, D), ``bias`` (N,), ``scale`` (); floating, of any dtype. Differentiable once, in all
    five.
    """
    return steer_and_gates(h, weight, bias, vectors, scale)[0]


def steer_and_gates(h: Tensor, weight: Tensor, bias: Tensor, vectors: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """As ``steer``, and the gates (..., N) in fp32, which carry no gradient."""
    return _Steer.apply(h, weight, bias, vectors, scale)


class _Steer(torch.autograd.Function):
    @staticmethod
    def forward(h: Tensor, weight: Tensor, bias: Tensor, vectors: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        fused, dtype = _fused(h, len(weight)), _product_dtype(h)
        with torch.autocast(h.device.type, enabled=False):  # its choice is in dtype
            return (fused.forward if fused else _forward)(h, weight, bias, vectors, scale, dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs)
        ctx.dtype = _product_dtype(inputs[0])  # autocast is over when the backward pass runs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)  # no zeros in the shape of the gates

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 5
        h, weight, bias, vectors, scale = ctx.saved_tensors
        need_h, need_weight, need_bias, need_vectors, need_scale = ctx.needs_input_grad
        fused, dtype = _fused(h, len(weight)), ctx.dtype
        rows, grads = h.reshape(-1, h.shape[-1]), grad.reshape(-1, h.shape[-1])
        with torch.autocast(h.device.type, enabled=False):
            gates, dlogits, inner, dh = (fused.backward if fused else _backward)(
                rows, weight, bias, vectors, scale, grads, need_h, dtype
            )
            # Tall and thin products, (N, rows) by (rows, D): the vendor's library is right for them, and repeatable.
            return (
                dh.reshape(h.shape) if dh is not None else None,
                (dlogits.to(dtype).T @ rows.to(dtype)).to(weight.dtype) if need_weight else None,
                dlogits.sum(0).to(bias.dtype) if need_bias else None,
                scale * (gates.to(dtype).T @ grads.to(dtype)).to(vectors.dtype) if need_vectors else None,
                inner.sum().to(scale.dtype).reshape(scale.shape) if need_scale else None,
            )


def _forward(
    h: Tensor, weight: Tensor, bias: Tensor, vectors: Tensor, scale: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """-> the steered h (..., D), gates (..., N)."""
    gates = _gates(h, weight, bias, dtype)
    delta = gates.to(dtype) @ vectors.to(dtype)
    # In place, which spares two more (..., D), and in this order: torch rounds a bf16 product with a number by its side.
    torch.mul(scale.to(h.dtype), delta, out=delta)
    return (delta.add_(h) if dtype == h.dtype else h + delta), gates


def _backward(
    h: Tensor,
    weight: Tensor,
    bias: Tensor,
    vectors: Tensor,
    scale: Tensor,
    grad: Tensor,
    need_h: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """From h and grad (rows, D) -> gates and d logits (rows, N), sum_n(gates * P) (rows,), d h (rows, D) if needed."""
    gates = _gates(h, weight, bias, dtype)
    product = (grad.to(dtype) @ vectors.to(dtype).T).to(gates.dtype)  # P
    inner = (gates * product).sum(-1)
    dlogits = scale.to(gates.dtype) * gates * (product - inner[:, None])
    if not need_h:
        return gates, dlogits, inner, None
    mix, table = dlogits.to(dtype), weight.to(dtype)
    return gates, dlogits, inner, torch.addmm(grad, mix, table) if grad.dtype == dtype else grad + mix @ table


def _gates(h: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    """Equation (1), never rounded to half precision; float64 stays what it is, so that gradients can be checked."""
    logits = F.linear(h.to(dtype), weight.to(dtype), bias.to(dtype))
    return logits.to(torch.promote_types(dtype, torch.float32)).softmax(dim=-1)


def _product_dtype(h: Tensor) -> torch.dtype:
    """In which the products are taken: that of h, or of the autocast around it."""
    if h.dtype == torch.float32 and torch.is_autocast_enabled(h.device.type):
        return torch.get_autocast_dtype(h.device.type)
    return h.dtype


def _fused(h: Tensor, experts: int) -> ModuleType | None:
    """The triton kernels if they can take h, else None."""
    if not h.is_cuda or not h.numel() or experts > MOST_EXPERTS or torch.compiler.is_compiling():
        return None
    return _kernels(h.device.index) if h.dtype in (torch.float32, torch.float16, torch.bfloat16) else None


@functools.cache
def _kernels(device: int) -> ModuleType | None:
    """The module, tried once: triton may be missing, or lack the C compiler it needs to start a kernel."""
    if torch.version.cuda is None or torch.cuda.get_device_capability(device) < (8, 0):  # the products are TF32's
        return None
    try:
        from . import triton_steer
    except ImportError:
        return None
    try:
        h = torch.ones(1, 16, device=f"cuda:{device}", dtype=torch.float16)
        triton_steer.forward(h, h, h[:, 0], h, h[0, 0], h.dtype)
    except Exception as error:  # of many kinds, none of which is a reason not to steer
        warnings.warn(f"triton cannot run here, so steering takes torch's own operations: {error}", stacklevel=2)
        return None
    return triton_steer

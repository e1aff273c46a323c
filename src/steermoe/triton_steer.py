"""The passes of ``kernels.py`` over (rows, D) as two Triton kernels. Imported only where a CUDA tensor is steered.

A program takes a block of rows from end to end: D in blocks to get its logits, the softmax in registers, then D in
blocks again (now from cache) for the output. So each pass reads its (rows, D) inputs once and writes one output; the
mixture dH exists only as a tile. Everything adds up in fp32 and nothing is added across programs, so that two calls
give the same bits. Half-precision tiles are multiplied as TF32, which holds every bf16 and fp16 value exactly.
"""

# A kernel's arguments are pointers and numbers whose types triton infers at the launch.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_WIDTH = 64


@triton.jit
def _times_table(x, table, row, rows, width, n, experts, precision: tl.constexpr, block_width: tl.constexpr):
    """The block's rows of x (rows, D) times the transpose of ``table`` (N, D)."""
    total = tl.zeros((row.shape[0], n.shape[0]), tl.float32)
    for start in range(0, width, block_width):
        d = start + tl.arange(0, block_width)
        inside = (row < rows)[:, None] & (d < width)[None, :]
        tile = tl.load(x + row[:, None] * width + d[None, :], mask=inside, other=0.0).to(tl.float32)
        inside = (d < width)[:, None] & (n < experts)[None, :]
        columns = tl.load(table + n[None, :] * width + d[:, None], mask=inside, other=0.0).to(tl.float32)
        total = tl.dot(tile, columns, total, input_precision=precision)
    return total


@triton.jit
def _add_mixture(
    base, mix, table, out, row, rows, width, n, experts, precision: tl.constexpr, block_width: tl.constexpr
):
    """out = base + mix ``table``: base and out (rows, D), mix the block's (rows, N), table (N, D)."""
    for start in range(0, width, block_width):
        d = start + tl.arange(0, block_width)
        inside = (n < experts)[:, None] & (d < width)[None, :]
        tile = tl.load(table + n[:, None] * width + d[None, :], mask=inside, other=0.0).to(tl.float32)
        where = row[:, None] * width + d[None, :]
        inside = (row < rows)[:, None] & (d < width)[None, :]
        total = tl.load(base + where, mask=inside, other=0.0).to(tl.float32)
        total = tl.dot(mix, tile, total, input_precision=precision)
        tl.store(out + where, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _softmax(logits, bias, n, experts):
    """Equation (1) for a block of rows; columns past the last expert get 0."""
    logits += tl.load(bias + n, mask=n < experts, other=0.0).to(tl.float32)[None, :]
    logits = tl.where((n < experts)[None, :], logits, float("-inf"))
    powers = tl.exp(logits - tl.max(logits, axis=1)[:, None])
    return powers / tl.sum(powers, axis=1)[:, None]


@triton.jit
def _forward(
    h, weight, bias, vectors, scale, out, gates_out, rows, width, experts,
    precision: tl.constexpr, block_rows: tl.constexpr, block_width: tl.constexpr, block_experts: tl.constexpr,
):  # fmt: skip
    # 64 bits: a large batch has more than 2**31 numbers.
    row = tl.program_id(0).to(tl.int64) * block_rows + tl.arange(0, block_rows)
    n = tl.arange(0, block_experts)
    logits = _times_table(h, weight, row, rows, width, n, experts, precision, block_width)
    gates = _softmax(logits, bias, n, experts)
    inside = (row < rows)[:, None] & (n < experts)[None, :]
    tl.store(gates_out + row[:, None] * experts + n[None, :], gates, mask=inside)
    mix = tl.load(scale).to(tl.float32) * gates
    _add_mixture(h, mix, vectors, out, row, rows, width, n, experts, precision, block_width)


@triton.jit
def _backward(
    h, weight, bias, vectors, scale, grad, dh, gates_out, dlogits_out, inner_out, rows, width, experts,
    need_h: tl.constexpr, precision: tl.constexpr,
    block_rows: tl.constexpr, block_width: tl.constexpr, block_experts: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * block_rows + tl.arange(0, block_rows)
    n = tl.arange(0, block_experts)
    logits = _times_table(h, weight, row, rows, width, n, experts, precision, block_width)
    gates = _softmax(logits, bias, n, experts)
    product = _times_table(grad, vectors, row, rows, width, n, experts, precision, block_width)
    inner = tl.sum(gates * product, axis=1)
    dlogits = tl.load(scale).to(tl.float32) * gates * (product - inner[:, None])
    where = row[:, None] * experts + n[None, :]
    inside = (row < rows)[:, None] & (n < experts)[None, :]
    tl.store(gates_out + where, gates, mask=inside)
    tl.store(dlogits_out + where, dlogits, mask=inside)
    tl.store(inner_out + row, inner, mask=row < rows)
    if need_h:
        _add_mixture(grad, dlogits, weight, dh, row, rows, width, n, experts, precision, block_width)


def _launch(kernel, h: Tensor, experts: int, dtype: torch.dtype, *arguments: Tensor, **more: bool) -> None:
    rows, width = h.shape
    block_experts = max(16, triton.next_power_of_2(experts))  # a product takes no less than 16
    # Fewer rows a program where many experts would spill registers, or where few rows would leave processors idle.
    block_rows = 16 if block_experts > 32 or rows <= 4096 else 32
    with torch.cuda.device_of(h):
        kernel[(triton.cdiv(rows, block_rows),)](
            h, *arguments, rows, width, experts,
            **more,
            precision="ieee" if dtype == torch.float32 else "tf32",
            block_rows=block_rows,
            block_width=BLOCK_WIDTH,
            block_experts=block_experts,
        )  # fmt: skip


def forward(
    h: Tensor, weight: Tensor, bias: Tensor, vectors: Tensor, scale: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """-> the steered h (..., D), gates (..., N) in fp32. Products in full fp32 if that is ``dtype``, else TF32."""
    experts, flat = len(weight), h.reshape(-1, h.shape[-1]).contiguous()
    out = torch.empty_like(flat)
    gates = torch.empty(len(flat), experts, dtype=torch.float32, device=h.device)
    small = (t.contiguous() for t in (weight, bias, vectors))
    _launch(_forward, flat, experts, dtype, *small, scale, out, gates)
    return out.view(h.shape), gates.view(*h.shape[:-1], experts)


def backward(
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
    h, grad, experts = h.contiguous(), grad.contiguous(), len(weight)
    dh = torch.empty_like(grad) if need_h else None
    gates = torch.empty(len(h), experts, dtype=torch.float32, device=h.device)
    dlogits, inner = torch.empty_like(gates), gates.new_empty(len(h))
    small = (t.contiguous() for t in (weight, bias, vectors))
    unused = grad if dh is None else dh  # a kernel wants some pointer
    _launch(_backward, h, experts, dtype, *small, scale, grad, unused, gates, dlogits, inner, need_h=need_h)
    return gates, dlogits, inner, dh

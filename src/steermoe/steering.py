"""The paper in one file: steering vectors in every encoder layer, mixed per frame by one shared router.

For the output H_l (B, T, D) of encoder layer l of L, with N experts a layer (arXiv 2510.13558):

    (1)  g_l  = softmax(slice_l(H_l W_router))      gates (B, T, N);  W_router (D, L N), one for all layers
    (2)  dH_l = g_l E_l                             a mixture of the layer's steering vectors E_l (N, D)
    (3)  H'_l = H_l + a_l dH_l                      a_l one learned scale a layer, 0.1 at first

Only layer l's own N logits are computed: rows l N .. (l + 1) N of the router, which is what slicing the
full product would keep.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import kernels

# By id of the Steering, and context-local: one adapter, request or thread never sees another's choice.
_STRENGTH: ContextVar[Mapping[int, float]] = ContextVar("steermoe_strength", default=MappingProxyType({}))
_RECORD: ContextVar[Mapping[int, dict[int, Tensor]]] = ContextVar("steermoe_record", default=MappingProxyType({}))


class Steering(nn.Module):
    """Trainable: ``vectors`` (L, N, D), ``router`` D -> L N with bias, ``scales`` (L,)."""

    dense = True  # every gate counts

    def __init__(self, num_layers: int, num_experts: int, width: int, scale: float = 0.1) -> None:
        super().__init__()
        self.num_layers, self.num_experts = num_layers, num_experts
        self.vectors = nn.Parameter(torch.randn(num_layers, num_experts, width) * 0.01)
        self.router = nn.Linear(width, num_layers * num_experts)
        self.scales = nn.Parameter(torch.full((num_layers,), scale))

    def router_slice(self, layer: int) -> tuple[Tensor, Tensor]:
        """The router's part for ``layer``: weight (N, D), bias (N,)."""
        rows = slice(layer * self.num_experts, (layer + 1) * self.num_experts)
        return self.router.weight[rows], self.router.bias[rows]

    def gates(self, h: Tensor, layer: int) -> Tensor:
        """Equation (1): h (..., T, D) -> (..., T, N), each row sums to one."""
        weight, bias = self.router_slice(layer)
        return F.linear(h, weight.to(h.dtype), bias.to(h.dtype)).float().softmax(dim=-1)

    def forward(self, h: Tensor, layer: int) -> Tensor:
        """Equations (2) and (3): the steered output of ``layer``, same shape and dtype as h (..., T, D)."""
        strength = _STRENGTH.get().get(id(self), 1.0)
        if strength == 0:
            return h
        scale = strength * self.scales[layer]
        if self.dense and kernels.pays(h):  # (1)-(3) as one operation, which keeps less for the backward pass
            out, gates = kernels.steer_and_gates(h, *self.router_slice(layer), self.vectors[layer], scale)
        else:
            gates = self.gates(h, layer)  # (1)
            delta = gates.to(h.dtype) @ self.vectors[layer].to(h.dtype)  # (2)
            out = h + scale.to(h.dtype) * delta  # (3)
        record = _RECORD.get().get(id(self))
        if record is not None:
            record[layer] = gates.detach()
        return out

    @contextmanager
    def scaled(self, strength: float) -> Iterator[None]:
        """Within the block every scale a_l counts ``strength`` times; 0 is the plain encoder, bit for bit."""
        token = _STRENGTH.set({**_STRENGTH.get(), id(self): float(strength)})
        try:
            yield
        finally:
            _STRENGTH.reset(token)

    def disabled(self):  # type: ignore[no-untyped-def]  # a context manager, see scaled
        """Within the block the encoder is its plain self, bit for bit."""
        return self.scaled(0.0)

    @contextmanager
    def recording(self) -> Iterator[dict[int, Tensor]]:
        """Within the block gates are kept: yields {layer: (B, T, N)}, of the latest forward."""
        record: dict[int, Tensor] = {}
        token = _RECORD.set({**_RECORD.get(), id(self): record})
        try:
            yield record
        finally:
            _RECORD.reset(token)

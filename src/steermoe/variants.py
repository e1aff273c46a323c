"""What is not the paper, for honest tables: other routers, top-k gates, a balancing term, a mixture in the projector, LoRA.

All by config (``router``, ``top_k``, ``projector_experts``, ``lora_rank``, and ``balance`` among a stage's objectives), and all
trained, saved and loaded like the paper's own. Note that the paper's shared router, of which every layer uses its own
slice, is L routers in one matrix: ``per_layer`` is the same function in other tensors, ``tied`` shares for real.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import SteerMoEConfig
from .encoders.attach import attach
from .errors import UsageError
from .steering import Steering


def make_steering(config: SteerMoEConfig, layers: int, width: int) -> Steering:
    """The paper's steering, unless the config asks for another."""
    if config.router == "sliced" and config.top_k is None:
        return Steering(layers, config.num_experts, width, config.scale)
    return VariantSteering(layers, config.num_experts, width, config.scale, config.router, config.top_k)


class VariantSteering(Steering):
    """``router``: ``sliced`` is the paper's, ``per_layer`` a module a layer, ``tied`` one D -> N for all layers.

    ``top_k``: only the k largest gates count, scaled to sum to one; None: all of them.
    """

    def __init__(
        self, num_layers: int, num_experts: int, width: int, scale: float, router: str, top_k: int | None = None
    ) -> None:
        super().__init__(num_layers, num_experts, width, scale)
        self.top_k, self.dense = top_k, top_k is None
        if router == "tied":
            self.router = nn.Linear(width, num_experts)
        elif router == "per_layer":
            self.router = nn.ModuleList(nn.Linear(width, num_experts) for _ in range(num_layers))  # type: ignore[assignment]

    def router_slice(self, layer: int) -> tuple[Tensor, Tensor]:
        if isinstance(self.router, nn.ModuleList):
            router: Any = self.router[layer]
            return router.weight, router.bias
        if len(self.router.weight) == self.num_experts:
            return self.router.weight, self.router.bias
        return super().router_slice(layer)

    def gates(self, h: Tensor, layer: int) -> Tensor:
        gates = super().gates(h, layer)
        if self.top_k is None:
            return gates
        kept, where = gates.topk(self.top_k, dim=-1)
        return torch.zeros_like(gates).scatter(-1, where, kept / kept.sum(dim=-1, keepdim=True))


@contextmanager
def routed(model: Any) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Within the block, of each steered layer in turn: all gates before any top-k, with gradient, and those in use (B, T, N)."""
    steering: Steering = model.steering
    seen: list[tuple[Tensor, Tensor]] = []

    def watch(h: Tensor, layer: int) -> Tensor:
        dense = Steering.gates(steering, h, layer)
        used = steering.gates(h, layer) if isinstance(steering, VariantSteering) else dense
        seen.append((dense, used.detach()))
        return h

    watching = attach(model.frames.layers, watch, model.steered_layers)  # before the steering itself
    try:
        yield seen
    finally:
        watching.remove()


def balance_loss(seen: list[tuple[Tensor, Tensor]], lengths: Tensor, top_k: int | None, frames: int = 0) -> Tensor:
    """Mean over layers of N sum_n f_n P_n: f_n the share of frames that use expert n (most, of all), P_n its mean gate
    (Fedus et al., 2022); 1 when all experts are used alike, N when one is. ``lengths`` (B,): frames beyond do not count, of the
    ``frames`` that leave the encoder; layers may have whole multiples of them."""
    losses = []
    for dense, used in seen:
        experts = dense.shape[-1]
        chosen = (used > 0).float() / top_k if top_k else F.one_hot(used.argmax(-1), experts).float()
        inside = torch.ones_like(dense[..., 0])
        if dense.ndim == 3 and dense.shape[1] >= int(lengths.max()):
            times = max(1, round(dense.shape[1] / frames)) if frames else 1
            inside = (torch.arange(dense.shape[1], device=dense.device) < times * lengths[:, None]).float()
        weights = inside[..., None] / inside.sum()
        flat = tuple(range(dense.ndim - 1))
        losses.append(experts * ((chosen * weights).sum(flat) * (dense * weights).sum(flat)).sum())
    return torch.stack(losses).mean()


class MixtureLinear(nn.Module):
    """In place of a linear map: N of them, mixed by a softmax router for each row. (..., D) -> (..., D_out)."""

    def __init__(self, width: int, out: int, experts: int) -> None:
        super().__init__()
        maps = [nn.Linear(width, out) for _ in range(experts)]  # each begins as one
        self.weight = nn.Parameter(torch.stack([m.weight.detach() for m in maps]))  # (N, D_out, D)
        self.bias = nn.Parameter(torch.stack([m.bias.detach() for m in maps]))
        self.router = nn.Linear(width, experts)

    def forward(self, x: Tensor) -> Tensor:
        gates = self.router(x).softmax(dim=-1)  # (..., N)
        mapped = F.linear(x, self.weight.flatten(0, 1), self.bias.flatten()).unflatten(-1, self.bias.shape)
        return (gates[..., None] * mapped).sum(dim=-2)


def mix_projector(projector: Any, experts: int) -> None:
    """Put a mixture in the place of the linear map of a ``linear`` or ``lexical`` projector."""
    if not isinstance(projector.proj, nn.Linear):
        raise UsageError(f"projector_experts={experts}: goes with projector: linear or lexical, not mlp")
    projector.proj = MixtureLinear(projector.proj.in_features, projector.proj.out_features, experts)


def add_lora(frames: Any, rank: int) -> nn.ModuleDict:
    """LoRA (Hu et al., 2022; PEFT's) on every linear map inside the encoder's layers; the modules that learn, by place.

    The encoder's own weights stay frozen, in memory and on disk; PEFT's wrappers hold what is added. Raises UsageError
    where PEFT is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UsageError("lora_rank: needs the package peft; pip install 'steermoe[lora]'") from None
    inside = {id(m) for layer in frames.layers for m in layer.modules() if isinstance(m, nn.Linear)}
    names = [name for name, module in frames.encoder.named_modules() if id(module) in inside]
    where = {module: name for name, module in frames.encoder.named_modules()}
    layers = [where[layer] for layer in frames.layers]
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names), frames.encoder)
    assert [frames.encoder.get_submodule(name) for name in layers] == list(frames.layers)  # maps inside them, not they
    added = nn.ModuleDict()
    for name in names:
        wrapped = frames.encoder.get_submodule(name)
        added[name.replace(".", "-")] = nn.ModuleList([wrapped.lora_A["default"], wrapped.lora_B["default"]]).float()
    return added

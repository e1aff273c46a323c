"""From encoder frames to LLM embeddings: the paper's linear map, and an mlp.

One contract for all projectors: ``forward(h (B, T, D), lengths (B,)) -> Projected``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class Projected:
    """Audio tokens ``embeddings`` (B, S, D_llm) with ``lengths`` (B,). Of a lexical projector also what it read, a clip
    each: ``tokens``, ids, none where it heard no word (``embeddings`` then hold one learned vector), and
    ``likeliest``, what else its frames may say, and ``phones``, which it heard, where it hears those."""

    embeddings: Tensor
    lengths: Tensor
    tokens: list[list[int]] | None = None
    likeliest: list[Any] | None = None
    phones: list[Tensor] | None = None


def pool(h: Tensor, lengths: Tensor, kernel: int, how: str) -> tuple[Tensor, Tensor]:
    """Group ``kernel`` frames: (B, T, D) -> (B, ceil(T / kernel), D), or kernel * D wide for ``stack``.

    A last group that is not full pools over the frames it has; padding never counts.
    """
    batch, time, width = h.shape
    valid = torch.arange(time, device=h.device) < lengths[:, None]  # (B, T)
    extra = -time % kernel
    fill = float("-inf") if how == "max" else 0.0
    h = F.pad(h.masked_fill(~valid[..., None], fill), (0, 0, 0, extra), value=fill)
    groups = h.view(batch, -1, kernel, width)  # (B, S, kernel, D)
    out_lengths = (lengths + kernel - 1) // kernel
    if how == "stack":
        return groups.flatten(2), out_lengths
    if how == "max":
        pooled = groups.amax(dim=2)
        return torch.where(torch.isfinite(pooled), pooled, 0), out_lengths
    counts = F.pad(valid, (0, extra)).view(batch, -1, kernel).sum(dim=2).clamp(min=1)
    return groups.sum(dim=2) / counts[..., None], out_lengths


class LinearProjector(nn.Module):
    """The paper's: pool (mean, max or stack), then one linear map with bias."""

    def __init__(self, width: int, llm_width: int, kernel: int = 4, pooling: str = "mean") -> None:
        super().__init__()
        self.kernel, self.pooling = kernel, pooling
        self.proj = nn.Linear(width * (kernel if pooling == "stack" else 1), llm_width)

    def forward(self, h: Tensor, lengths: Tensor, norm: Any = None) -> Projected:
        """``norm`` is applied after pooling: the order of converted reference checkpoints."""
        pooled, lengths = pool(h, lengths, self.kernel, self.pooling)
        if norm is not None:
            pooled = norm(pooled)
        return Projected(self.proj(pooled.to(self.proj.weight.dtype)), lengths)


class MLPProjector(nn.Module):
    """Stacked frames, two layers."""

    def __init__(self, width: int, llm_width: int, kernel: int = 4, hidden: int | None = None) -> None:
        super().__init__()
        self.kernel = kernel
        hidden = hidden or 2 * llm_width
        self.norm = nn.LayerNorm(width * kernel)
        self.proj = nn.Sequential(nn.Linear(width * kernel, hidden), nn.GELU(), nn.Linear(hidden, llm_width))

    def forward(self, h: Tensor, lengths: Tensor) -> Projected:
        pooled, lengths = pool(h, lengths, self.kernel, "stack")
        return Projected(self.proj(self.norm(pooled.to(self.norm.weight.dtype))), lengths)

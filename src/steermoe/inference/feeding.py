"""An LLM that is fed a batch piece by piece, where what was fed may turn out not to count.

Guesses are fed to see what the LLM makes of them: drafted words, readings that share their beginnings. What turns out
wrong stays in the cache, where nothing looks at it any more: a mask says who sees whom, and positions are told. So
rows need neither be of one length nor agree on what counts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache


class Fed:
    """What ``rows`` prompts have been fed so far: the cache, and which of its slots count (B, fed)."""

    def __init__(self, llm: Any, rows: int) -> None:
        self.llm = llm
        self.cache = DynamicCache()  # every layer keeps everything: a window shorter than that is not for this
        self.counts = torch.zeros(rows, 0, dtype=torch.bool, device=llm.get_input_embeddings().weight.device)

    def feed(self, embeds: Tensor, seen: Tensor, positions: Tensor, keep: int | Tensor = 0) -> Tensor:
        """embeds (B, Q, D), who sees whom among them (B, Q, Q), positions (B, Q) -> logits of those to ``keep`` (B, K, V).

        Each also sees all that counts of what was fed before.
        """
        before = self.counts[:, None].expand(-1, embeds.shape[1], -1)
        hidden = ~torch.cat([before, seen], dim=-1)[:, None]
        mask = torch.zeros(hidden.shape, dtype=embeds.dtype, device=embeds.device)
        out = self.llm(
            inputs_embeds=embeds,
            attention_mask=mask.masked_fill(hidden, torch.finfo(mask.dtype).min),
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=keep,
        )
        return out.logits

    def settle(self, counts: Tensor) -> None:
        """Of what was fed last, the first C slots stay, and ``counts`` (B, C) says which of them count."""
        if more := self.cache.get_seq_length() - self.counts.shape[1] - counts.shape[1]:
            self.cache.crop(-more)
        self.counts = torch.cat([self.counts, counts], dim=1)

    def repeat(self, rows: int) -> None:
        """One row becomes ``rows`` of the same."""
        self.cache.batch_repeat_interleave(rows)
        self.counts = self.counts.repeat(rows, 1)

    def select(self, rows: list[int]) -> None:
        """Goes on with these rows alone."""
        chosen = torch.tensor(rows, dtype=torch.long, device=self.counts.device)
        self.cache.batch_select_indices(chosen)
        self.counts = self.counts[chosen]

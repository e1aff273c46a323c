"""An LLM that is fed many texts at once, piece by piece, where what was fed may turn out not to count.

Guesses are fed to see what the LLM makes of them: drafted words, readings that share their beginnings. All texts lie in
one row, so that none is padded to another's length: a mask says who sees whom, and positions are told. What turns out
wrong stays in the cache, where nobody looks at it any more.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

ALL, NOBODY = -1, -2


class Fed:
    """What an LLM has been fed so far: its cache, and whose each slot of it is (F,), a text's number, ALL or NOBODY."""

    def __init__(self, llm: Any) -> None:
        self.llm = llm
        self.cache = DynamicCache()  # every layer keeps everything: a window shorter than that is not for this
        self.owners = torch.zeros(0, dtype=torch.long, device=llm.get_input_embeddings().weight.device)

    def feed(
        self, embeds: Tensor, owners: Tensor, seen: Tensor, positions: Tensor, keep: Tensor | None = None
    ) -> Tensor:
        """embeds (Q, D), whose they are (Q,), who sees whom among them (Q, Q), positions (Q,) -> logits (Q, V), or those of
        the places ``keep`` (K,), in float32.

        Each also sees what its owner or ALL have of what was fed before.
        """
        before = (self.owners == owners[:, None]) | (self.owners == ALL)  # (Q, F)
        hidden = ~torch.cat([before, seen], dim=1)[None, None]
        mask = torch.zeros(hidden.shape, dtype=embeds.dtype, device=embeds.device)
        out = self.llm(
            inputs_embeds=embeds[None],
            attention_mask=mask.masked_fill(hidden, torch.finfo(mask.dtype).min),
            position_ids=positions[None],
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=0 if keep is None else keep,
        )
        return out.logits[0].float()

    def settle(self, owners: Tensor) -> None:
        """Of what was fed last the first slots stay, for ``owners`` (C,) or NOBODY; the others are taken back."""
        if more := self.cache.get_seq_length() - len(self.owners) - len(owners):
            self.cache.crop(-more)
        self.owners = torch.cat([self.owners, owners])

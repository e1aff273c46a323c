"""What a frozen LLM holds of one conversation: a key/value cache, and what lies in each of its slots.

A prompt is a list of slots: a token id, or ``(digest, i)``, the i-th vector of the audio with that digest. What a new
prompt has in common with the old one is not fed again; what no longer fits is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from ..errors import UsageError
from .decoding import only_attends

Slot = int | tuple[str, int]


class Held:
    """One text, growing at its end. ``slots`` says what the cache holds, in order."""

    def __init__(self, llm: Any) -> None:
        self.llm, self.config = llm, llm.config.get_text_config()
        self.most = getattr(self.config, "max_position_embeddings", None)
        # Attention's cache can be cut back anywhere if every layer keeps everything, also those that look at a window
        # only; a recurrent state cannot: there a prompt continues the last one, or begins anew.
        self.divisible = only_attends(self.config)
        self.forget()

    def forget(self) -> None:
        self.slots: list[Slot] = []
        self.cache = DynamicCache() if self.divisible else DynamicCache(config=self.config)

    def keep(self, wanted: Sequence[Slot]) -> int:
        """Cut back to what ``wanted`` begins with, all but its last slot at most: how many slots that are.

        Raises UsageError for more than the LLM has positions.
        """
        if self.most is not None and len(wanted) > self.most:
            raise UsageError(
                f"a conversation of {len(wanted)} tokens with its audio is longer than the LLM takes ({self.most}): "
                "drop its oldest turns, or give less audio"
            )
        pairs = zip(self.slots, wanted[:-1], strict=False)
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        if same < len(self.slots):
            if self.divisible and same:
                self.cache.crop(same - len(self.slots))
                del self.slots[same:]
            else:
                self.forget()
        return len(self.slots)

    @torch.inference_mode()
    def feed(self, wanted: Sequence[Slot], audios: Mapping[str, Tensor]) -> Tensor:
        """Hold ``wanted``, feeding what is missing of it -> logits (V,) after its last slot, in float32.

        ``audios`` are vectors (S, D_llm) by digest. Raises UsageError as ``keep`` does.
        """
        new = wanted[self.keep(wanted) :]
        try:
            out = self.llm(**self.inputs(new, audios), past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        except BaseException:  # half fed: nobody knows what the layers hold
            self.forget()
            raise
        self.cache = out.past_key_values
        self.slots += new
        return out.logits[0, -1].float()

    def inputs(self, new: Sequence[Slot], audios: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``input_ids`` (1, N) as they are, so that text passes through the LLM as it always does; ``inputs_embeds``
        (1, N, D_llm) where there is audio."""
        embedding = self.llm.get_input_embeddings()
        device = embedding.weight.device
        ids = torch.tensor([slot if isinstance(slot, int) else 0 for slot in new], device=device)
        heard = [i for i, slot in enumerate(new) if not isinstance(slot, int)]
        if not heard:
            return {"input_ids": ids[None]}
        embeds = embedding(ids)
        rows = [audios[slot[0]][slot[1]] for slot in new if not isinstance(slot, int)]
        embeds[torch.tensor(heard, device=device)] = torch.stack(rows).to(embeds)
        return {"inputs_embeds": embeds[None]}

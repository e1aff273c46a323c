"""An LLM that is fed many texts at once, piece by piece, where what was fed may turn out not to count.

Guesses are fed to see what the LLM makes of them: drafted words, readings that share their beginnings. All texts lie in
one row, so that none is padded to another's length: a mask says who sees whom, and positions are told. What turns out
wrong is taken out of the cache.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from threading import Lock
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ALL = -1  # the owner of what every text sees
BEGINNINGS = 8  # kept of each LLM
APART = "steermoe_apart"


@dataclass
class _Texts:
    """C texts of one row apart from each other, padded: their places in it (C, Q'), the slots they may see (C, K'), the mask
    between them (C, 1, Q', K'), and where each of the row's places went (Q,)."""

    rows: Tensor
    slots: Tensor
    mask: Tensor
    back: Tensor

    @classmethod
    def of(cls, owners: Tensor, all_owners: Tensor, mask: Tensor) -> _Texts:
        """From whose each place (Q,) and each slot (K,) is, and the mask (1, 1, Q, K) of the whole row."""
        names = owners.unique()
        rows = [(owners == name).nonzero().flatten() for name in names]
        slots = [((all_owners == name) | (all_owners == ALL)).nonzero().flatten() for name in names]
        padded = torch.full((len(rows), 1, max(map(len, rows)), max(map(len, slots))), torch.finfo(mask.dtype).min)
        padded = padded.to(mask)
        for i, (of, to) in enumerate(zip(rows, slots, strict=True)):
            padded[i, 0, : len(of), : len(to)] = mask[0, 0, of[:, None], to]
        back = torch.empty_like(owners)
        back[torch.cat(rows)] = torch.cat(
            [torch.arange(len(of), device=owners.device) + i * padded.shape[2] for i, of in enumerate(rows)]
        )
        return cls(pad_sequence(rows, batch_first=True), pad_sequence(slots, batch_first=True), padded, back)


_TEXTS: ContextVar[_Texts | None] = ContextVar("steermoe_texts", default=None)


def _attend_apart(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any) -> Any:
    """Scaled dot products (1, H, Q, D) text by text: eight texts in a row are an eighth of the pairs. Else as ever."""
    texts = _TEXTS.get()
    if texts is None:
        return sdpa_attention_forward(module, query, key, value, mask, **options)

    def apart(x: Tensor, places: Tensor) -> Tensor:  # (C, H, S, D)
        return x[0].index_select(1, places.flatten()).unflatten(1, places.shape).transpose(0, 1)

    out = sdpa_attention_forward(
        module, apart(query, texts.rows), apart(key, texts.slots), apart(value, texts.slots), texts.mask, **options
    )[0]
    return out.flatten(0, 1).index_select(0, texts.back)[None], None


AttentionInterface.register(APART, _attend_apart)
AttentionMaskInterface.register(APART, sdpa_mask)


_LOCK, _INSIDE = Lock(), Counter[int]()


@contextmanager
def _apart(llm: Any, texts: _Texts) -> Iterator[None]:
    """Within the block the LLM's attention is computed text by text; threads that have no texts, as ever."""
    config = llm.config.get_text_config()
    token = _TEXTS.set(texts)
    with _LOCK:
        _INSIDE[id(config)] += 1
        config._attn_implementation = APART
    try:
        yield
    finally:
        with _LOCK:
            _INSIDE[id(config)] -= 1
            if not _INSIDE[id(config)]:
                del _INSIDE[id(config)]
                config._attn_implementation = "sdpa"
        _TEXTS.reset(token)


class Fed:
    """What an LLM has been fed so far: its cache, and whose each slot of it is (F,), a text's number or ALL.

    All texts go on from ``beginning`` (token ids), which is computed once for each LLM; ``after`` (V,) are then the logits
    that follow it.
    """

    _begun: ClassVar[MutableMapping[Any, dict[Any, tuple[list[tuple[Tensor, Tensor]], Tensor]]]] = WeakKeyDictionary()

    def __init__(self, llm: Any, beginning: Sequence[int] = ()) -> None:
        self.llm = llm
        self.cache = DynamicCache()  # every layer keeps everything: a window shorter than that is not for this
        table = llm.get_input_embeddings().weight
        self.owners = torch.zeros(0, dtype=torch.long, device=table.device)
        self.after = table.new_zeros(0)
        if not beginning:
            return
        known, name = self._begun.setdefault(llm, {}), (tuple(beginning), table.device, table.dtype)
        if name not in known:
            places = torch.arange(len(beginning), device=table.device)
            embeds = llm.get_input_embeddings()(torch.tensor(list(beginning), device=table.device))
            self.after = self.feed(
                embeds, torch.full_like(places, ALL), places <= places[:, None], places, places[-1:]
            )[0]
            while len(known) >= BEGINNINGS:
                known.pop(next(iter(known)), None)
            known[name] = [(layer.keys, layer.values) for layer in self.cache.layers], self.after
            return
        layers, self.after = known[name]
        for i, (keys, values) in enumerate(layers):
            self.cache.update(keys, values, i)
        self.owners = torch.full((len(beginning),), ALL, device=table.device)

    def feed(
        self, embeds: Tensor, owners: Tensor, seen: Tensor, positions: Tensor, keep: Tensor | None = None
    ) -> Tensor:
        """embeds (Q, D), whose they are (Q,), which slots each sees (Q, F + Q), its own the last Q, positions (Q,)
        -> logits (Q, V), or those of the places ``keep`` (K,)."""
        self.owners = torch.cat([self.owners, owners])
        mask = torch.zeros(1, 1, *seen.shape, dtype=embeds.dtype, device=embeds.device)
        mask = mask.masked_fill(~seen, torch.finfo(mask.dtype).min)
        several = len(owners) and bool((owners != owners[0]).any())
        usual = self.llm.config.get_text_config()._attn_implementation in ("sdpa", APART)
        with _apart(self.llm, _Texts.of(owners, self.owners, mask)) if several and usual else nullcontext():
            out = self.llm(
                inputs_embeds=embeds[None],
                attention_mask=mask,
                position_ids=positions[None],
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=0 if keep is None else keep,
            )
        return out.logits[0]

    def keep(self, slots: Tensor) -> None:
        """Of all that was fed only these slots (K,) stay, in this order."""
        self.owners = self.owners[slots]
        for layer in self.cache.layers:
            layer.keys, layer.values = layer.keys[:, :, slots], layer.values[:, :, slots]

"""What a frozen LLM holds of one conversation: a key/value cache, and what lies in each of its slots.

A prompt is a list of slots: a token id, or ``(digest, i)``, the i-th vector of the audio with that digest. What a new
prompt has in common with the old one is not fed again; what no longer fits is dropped. Several conversations take their
next tokens in one pass of the LLM, each with a cache of its own. Text that several begin with, the same tools say, is
computed once.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from itertools import takewhile
from threading import Lock
from typing import Any, ClassVar, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from ..errors import UsageError
from ..splice import border, full_attention, only_attends, takes_positions

Slot = int | tuple[str, int]
FEW = 8  # new slots: what has more is fed by itself, so that the others are not padded to its length
WORTH = 64  # tokens of a beginning that is worth keeping
BEGINNINGS = 256 << 20  # bytes that are kept of an LLM in all


def too_long(tokens: int, most: int, told: str = "") -> UsageError:
    return UsageError(
        f"a conversation of {told}{tokens} tokens with its audio is longer than the LLM takes ({most}): "
        "drop its oldest turns, or give less audio"
    )


def _alike(one: Sequence[Slot], other: Sequence[Slot]) -> int:
    """How many slots both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


class Beginnings:
    """Texts that conversations with an LLM began with, and what its layers made of them: those that were used last."""

    _of: ClassVar[MutableMapping[Any, dict[Any, Beginnings]]] = WeakKeyDictionary()

    def __init__(self) -> None:
        self.kept: dict[tuple[Slot, ...], list[tuple[Tensor, Tensor]]] = {}
        self.lock = Lock()

    @classmethod
    def of(cls, llm: Any) -> Beginnings:
        table = llm.get_input_embeddings().weight
        return cls._of.setdefault(llm, {}).setdefault((table.device, table.dtype), cls())

    def find(self, wanted: Sequence[Slot]) -> tuple[list[Slot], list[tuple[Tensor, Tensor]]]:
        """The longest beginning of ``wanted`` that is known, and each layer's keys and values (1, H, S, D) of it."""
        with self.lock:
            text = max(self.kept, key=lambda text: _alike(text, wanted), default=())
            if (same := _alike(text, wanted)) < WORTH:
                return [], []
            layers = self.kept[text] = self.kept.pop(text)  # now the last that was used
        return list(text[:same]), [(keys[:, :, :same], values[:, :, :same]) for keys, values in layers]

    def keep(self, slots: Sequence[Slot], cache: DynamicCache) -> None:
        """The text before the first audio, unless most of it is known."""
        text = tuple(takewhile(lambda slot: isinstance(slot, int), slots))
        with self.lock:
            known = max((_alike(text, known) for known in self.kept), default=0)
            shared = any(layer.keys is None for layer in cache.layers)  # a layer that uses another's
            if shared or len(text) - known < WORTH:
                return
            pairs = [(layer.keys[:, :, : len(text)], layer.values[:, :, : len(text)]) for layer in cache.layers]
            # Copies: a part of a tensor would keep all of it.
            self.kept[text] = [(keys.clone(), values.clone()) for keys, values in pairs]
            size = sum(keys.nbytes + values.nbytes for keys, values in pairs) // len(text)  # of a token
            while size * sum(map(len, self.kept)) > BEGINNINGS:
                self.kept.pop(next(iter(self.kept)))


class Held:
    """One text, growing at its end. ``slots`` says what the cache holds, in order."""

    def __init__(self, llm: Any) -> None:
        self.llm, self.config = llm, llm.config.get_text_config()
        self.most = getattr(self.config, "max_position_embeddings", None)
        # Attention's cache can be cut back anywhere if every layer keeps everything, also those that look at a window
        # only; a recurrent state cannot: there a prompt continues the last one, or begins anew.
        self.divisible, self.border = only_attends(self.config), border(self.config)
        self.forget()

    def forget(self) -> None:
        self.slots: list[Slot] = []
        self.cache = DynamicCache() if self.divisible else DynamicCache(config=self.config)

    def keep(self, wanted: Sequence[Slot]) -> int:
        """Cut back to what ``wanted`` begins with, all but its last slot at most: how many slots that are.

        Raises UsageError for more than the LLM has positions.
        """
        if self.most is not None and len(wanted) > self.most:
            raise too_long(len(wanted), self.most)
        if self.border is not None and (len(self.slots) > self.border) != (len(wanted) > self.border):
            self.forget()  # one lies past it and the other does not: other keys
        same = _alike(self.slots, wanted[:-1])
        if same < len(self.slots):
            if self.divisible and same:
                self.cache.crop(same - len(self.slots))
                del self.slots[same:]
            else:
                self.forget()
        if not self.slots and self.divisible and self.border is None:
            self.slots, layers = Beginnings.of(self.llm).find(wanted[:-1])
            for i, (keys, values) in enumerate(layers):
                self.cache.update(keys, values, i)
        return len(self.slots)

    @torch.inference_mode()
    def feed(self, wanted: Sequence[Slot], audios: Mapping[str, Tensor]) -> Tensor:
        """Hold ``wanted``, feeding what is missing of it -> logits (V,) after its last slot, in float32.

        ``audios`` are vectors (S, D_llm) by digest. Raises UsageError as ``keep`` does.
        """
        new = wanted[self.keep(wanted) :]
        # Upon a state, several tokens at once are not what they are one by one in every family (Jamba).
        size = len(new) if self.divisible or not self.slots else 1
        try:
            for start in range(0, len(new), size):
                part = new[start : start + size]
                inputs = self.inputs(part, audios)
                if not self.divisible and takes_positions(type(self.llm).forward):
                    at = torch.arange(
                        len(self.slots), len(self.slots) + len(part), device=next(iter(inputs.values())).device
                    )
                    inputs["position_ids"] = at[None]
                out = self.llm(**inputs, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
                self.cache = getattr(out, "past_key_values", None)
                self.slots += part
        except BaseException:  # half fed: nobody knows what the layers hold
            self.forget()
            raise
        if self.cache is None:  # its state is not given out (Mamba): the next time it begins anew
            self.forget()
        elif self.divisible and self.border is None and len(new) >= WORTH:
            Beginnings.of(self.llm).keep(self.slots, self.cache)
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


class Wanted(NamedTuple):
    """What is to be held, and the audios (S, D_llm) in it by digest."""

    held: Held
    slots: Sequence[Slot]
    audios: Mapping[str, Tensor]

    def few(self) -> bool:
        """Whether what is missing are a few tokens, and a mask alone says what they attend to: then others join in."""
        new = self.slots[self.held.keep(self.slots) :]
        words = len(new) <= FEW and all(isinstance(slot, int) for slot in new)
        return words and full_attention(self.held.llm, len(self.slots))


def feed(wanted: Sequence[Wanted]) -> list[Tensor]:
    """``Held.feed`` of several conversations with one LLM: a few tokens of each are fed in one pass, the rest alone."""
    together = [each for each in wanted if each.few()] if len(wanted) > 1 else []
    rows = dict(zip(map(id, together), _feed_rows(together), strict=True)) if len(together) > 1 else {}
    return [rows[id(each)] if id(each) in rows else each.held.feed(each.slots, each.audios) for each in wanted]


class _Rows(DynamicCache):
    """The caches of several texts as one batch, padded at their ends. Of what comes each keeps its own ``sizes``."""

    def __init__(self, caches: Sequence[DynamicCache], sizes: Sequence[int]) -> None:
        super().__init__()
        self.caches, self.sizes = caches, sizes

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        held = [
            cache.update(keys[i : i + 1, :, :size], values[i : i + 1, :, :size], layer)
            for i, (cache, size) in enumerate(zip(self.caches, self.sizes, strict=True))
        ]
        keys, values = (pad_sequence([x[0].transpose(0, 1) for x in each], True) for each in zip(*held, strict=True))
        return keys.transpose(1, 2), values.transpose(1, 2)


@torch.inference_mode()
def _feed_rows(wanted: Sequence[Wanted]) -> list[Tensor]:
    llm = wanted[0].held.llm
    table = llm.get_input_embeddings().weight
    new = [torch.tensor(slots[len(held.slots) :], device=table.device) for held, slots, _ in wanted]
    places = [
        torch.arange(len(held.slots), len(held.slots) + len(ids)) for (held, *_), ids in zip(wanted, new, strict=True)
    ]
    positions = pad_sequence(places, True).to(table.device)  # (B, Q)
    unseen = torch.arange(max(len(each.slots) for each in wanted), device=table.device) > positions[:, None, :, None]
    mask = torch.zeros(unseen.shape, dtype=table.dtype, device=table.device)  # (B, 1, Q, K)
    rows = _Rows([each.held.cache for each in wanted], [len(ids) for ids in new])
    try:
        logits = llm(
            input_ids=pad_sequence(new, True),
            attention_mask=mask.masked_fill(unseen, torch.finfo(mask.dtype).min),
            position_ids=positions,
            past_key_values=rows,
            use_cache=True,
        ).logits
    except BaseException:  # half fed
        for each in wanted:
            each.held.forget()
        raise
    for each in wanted:
        each.held.slots = list(each.slots)
    return [row[size - 1].float() for row, size in zip(logits, rows.sizes, strict=True)]

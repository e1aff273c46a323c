"""Greedy decoding that checks a draft instead of writing token by token.

A transcript is mostly what the lexical projector already read. So the LLM is given that reading as a draft:
one pass tells what it would have written after every drafted token; as long as the two agree the tokens are
its own, and where they first differ its token is taken and the draft is picked up behind it. The result is
the LLM's greedy text, in a few passes instead of one a token (Leviathan et al., 2023, with CTC as the
draft model).

With a margin the draft counts for something: it was chosen by sound and LLM together, and a small LLM that is
asked to repeat it also loops, answers or runs on. Then only a clear objection changes a word.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

CHUNK = 16  # drafted tokens checked in one pass: enough to pay, few enough not to waste


def full_attention(llm: Any, length: int) -> bool:
    """Whether in ``length`` tokens each attends to all before it, so that a mask alone says who attends to whom and
    the cache can be cut back: not where layers are recurrent, or their sliding window is shorter than that."""
    config = llm.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    sliding = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    return kinds <= {"full_attention", "sliding_attention"} and (not sliding or length <= sliding)


def can_draft(llm: Any, length: int) -> bool:
    """Whether the LLM's greedy text, ``length`` tokens with its prompt, is plain arg-max over what it can be shown at
    once."""
    return full_attention(llm, length) and not getattr(llm.generation_config, "suppress_tokens", None)


def realign(draft: list[int], at: int, token: int) -> list[int]:
    """What is left of the draft once ``token`` was written where ``draft[at]`` was expected.

    If the token comes soon in the draft the LLM skipped to it; else it stands for ``draft[at]``.
    """
    soon = draft[at : at + 4]
    return draft[at + soon.index(token) + 1 :] if token in soon else draft[at + 1 :]


@torch.inference_mode()
def greedy(
    llm: Any, prompt: Tensor, draft: list[int], ends: Collection[int], limit: int, margin: float = 0.0
) -> list[int]:
    """The LLM's greedy tokens after ``prompt`` (S, D_llm), at most ``limit``, without the end token.

    ``draft`` are token ids it will probably write; ``ends`` the ids that end a turn. A drafted token stands, and
    the text ends behind the draft, unless the LLM finds another token more than e^``margin`` times as likely.
    """
    embedding = llm.get_input_embeddings()
    written: list[int] = []
    fed, cache = prompt[None], None
    while len(written) < limit:
        chunk = draft[: min(CHUNK, limit - len(written))]
        if chunk:
            ids = torch.tensor([chunk], device=prompt.device)
            fed = torch.cat([fed, embedding(ids).to(fed)], dim=1)
        out = llm(inputs_embeds=fed, past_key_values=cache, use_cache=True, logits_to_keep=len(chunk) + 1)
        cache = out.past_key_values
        logits = out.logits[0].float()
        best, said = (x.tolist() for x in logits.max(dim=-1))  # after i drafted tokens
        for i, token in enumerate(draft[: len(said)]):  # the last one follows the chunk
            if logits[i, token] >= best[i] - margin:
                said[i] = token
        agreed = next((i for i, token in enumerate(chunk) if said[i] != token), len(chunk))
        if agreed == len(draft) and margin and max(logits[agreed, end] for end in ends) >= best[agreed] - margin:
            return [*written, *chunk]
        for token in [*chunk[:agreed], said[agreed]]:
            if token in ends:
                return written
            written.append(token)
        if len(chunk) > agreed:
            cache.crop(agreed - len(chunk))
        draft = realign(draft, agreed, said[agreed])
        fed = embedding(torch.tensor([[said[agreed]]], device=prompt.device)).to(prompt)
    return written[:limit]

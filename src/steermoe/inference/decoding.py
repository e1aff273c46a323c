"""Greedy decoding that checks a draft instead of writing token by token.

A transcript is mostly what the lexical projector already read. So the LLM is given that reading as a draft:
one pass tells what it would have written after every drafted token; as long as the two agree the tokens are
its own, and where they first differ its token is taken and the draft is picked up behind it. The result is
the LLM's greedy text, in a few passes instead of one a token (Leviathan et al., 2023, with CTC as the
draft model); all texts of a batch go through it together.

With a margin the draft counts for something: it was chosen by sound and LLM together, and a small LLM that is
asked to repeat it also loops, answers or runs on. Then only a clear objection changes a word.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from ..splice import full_attention
from .feeding import ALL, Fed

CHUNK = 16  # drafted tokens checked in one pass: enough to pay, few enough not to waste


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
    llm: Any,
    prompts: Sequence[Tensor],
    drafts: Sequence[list[int]],
    ends: Collection[int],
    limits: Sequence[int],
    margin: float = 0.0,
    beginning: Sequence[int] = (),
) -> list[list[int]]:
    """The LLM's greedy tokens after ``beginning`` (ids that all share) and each of ``prompts`` (S_i, D_llm), at most
    ``limits[i]``, without the end token.

    ``drafts`` are token ids it will probably write; ``ends`` the ids that end a turn. A drafted token stands, and
    the text ends behind the draft, unless the LLM finds another token more than e^``margin`` times as likely.
    """
    embedding, device = llm.get_input_embeddings(), prompts[0].device
    fed, rows = Fed(llm, beginning), [row for row, limit in enumerate(limits) if limit > 0]
    written: list[list[int]] = [[] for _ in prompts]
    left, new = [list(draft) for draft in drafts], list(prompts)  # what is drafted, and what is to be fed, of each
    lengths = [len(beginning)] * len(prompts)  # fed so far, and counting
    while rows:
        chunks = [left[row][: min(CHUNK, limits[row] - len(written[row]))] for row in rows]
        ids = [torch.tensor(chunk, dtype=torch.long, device=device) for chunk in chunks]
        pieces = [torch.cat([new[row], embedding(i).to(new[row])]) for row, i in zip(rows, ids, strict=True)]
        sizes = [len(piece) for piece in pieces]
        owners = torch.tensor(rows, device=device).repeat_interleave(torch.tensor(sizes, device=device))
        before = len(fed.owners)
        seen = torch.cat([(fed.owners == owners[:, None]) | (fed.owners == ALL), (owners == owners[:, None]).tril()], 1)
        positions = torch.cat([torch.arange(lengths[r], lengths[r] + n) for r, n in zip(rows, sizes, strict=True)])
        ends_at = torch.tensor(sizes).cumsum(0).tolist()
        asked = [torch.arange(end - len(c) - 1, end) for end, c in zip(ends_at, chunks, strict=True)]
        logits = fed.feed(torch.cat(pieces), owners, seen, positions.to(device), torch.cat(asked).to(device))
        going, wrong = [], torch.zeros(len(fed.owners), dtype=torch.bool, device=device)
        for row, chunk, end, own in zip(rows, chunks, ends_at, logits.split([len(a) for a in asked]), strict=True):
            agreed, more = _judge(own, chunk, left[row], ends, margin)
            written[row] = [*written[row], *more][: limits[row]]
            wrong[before + end - len(chunk) + agreed : before + end] = True  # drafted, but not written
            lengths[row] += len(new[row]) + agreed
            if len(more) > agreed and len(written[row]) < limits[row]:
                left[row] = realign(left[row], agreed, more[-1])
                new[row] = embedding(torch.tensor([more[-1]], device=device)).to(new[row])
                going.append(row)
        if going and wrong.any():
            fed.keep((~wrong).nonzero().flatten())
        rows = going
    return written


def _judge(
    logits: Tensor, chunk: list[int], draft: list[int], ends: Collection[int], margin: float
) -> tuple[int, list[int]]:
    """Logits (C + 1, V) of the last token before ``chunk``, the beginning of ``draft``, and of the chunk's own.

    Returns how many drafted tokens stand, and what is written: those and, unless the text ends, the LLM's own next.
    """
    best, said = (x.tolist() for x in logits.max(dim=-1))  # after i drafted tokens
    for i, token in enumerate(draft[: len(said)]):  # the last one follows the chunk
        if logits[i, token] >= best[i] - margin:
            said[i] = token
    agreed = next((i for i, token in enumerate(chunk) if said[i] != token), len(chunk))
    if agreed == len(draft) and margin and max(logits[agreed, end] for end in ends) >= best[agreed] - margin:
        return agreed, chunk
    told = [*chunk[:agreed], said[agreed]]
    cut = next((i for i, token in enumerate(told) if token in ends), len(told))
    return agreed, told[:cut]

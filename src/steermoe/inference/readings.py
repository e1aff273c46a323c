"""What may have been said, and which of it the LLM finds likely.

The arg-max path of a lexical projector is one reading of its frame scores. Prefix beam search (Graves, 2012;
Hannun et al., 2014) finds the likeliest ones, and the frozen LLM weighs them as it would any text, untrained:

    score(y) = log P_ctc(y | audio) + weight * (log P_llm(y) + bonus * tokens of y)

Readings share most of their tokens, so they are weighed as one tree: every distinct prefix is one position
that attends to its own ancestors only, and a single pass of the LLM scores them all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

NEVER = -1e30
SURE = -0.01  # a blank of at least this log-probability changes no reading


def _add(a: float, b: float) -> float:
    """log(e^a + e^b)."""
    if a < b:
        a, b = b, a
    return a if b <= NEVER else a + math.log1p(math.exp(b - a))


def prefix_beam(logits: Tensor, width: int, branches: int = 12) -> list[tuple[list[int], float]]:
    """Frame scores (T', V + 1), blank last -> at most ``width`` readings with their log-probability, best first.

    Of each frame only the ``branches`` likeliest tokens are followed. A reading's probability is the sum over all
    alignments that collapse to it: ``blank`` of those that end in a blank, ``word`` of those that end in its last token.
    """
    scores = logits.float().log_softmax(dim=-1)
    top, ids = scores[:, :-1].topk(min(branches, scores.shape[1] - 1), dim=-1)
    beam: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, NEVER)}
    for silence, chances, tokens in zip(scores[:, -1].tolist(), top.tolist(), ids.tolist(), strict=True):
        if silence >= SURE:
            beam = {prefix: (_add(blank, word) + silence, NEVER) for prefix, (blank, word) in beam.items()}
            continue
        grown: dict[tuple[int, ...], tuple[float, float]] = {}
        for prefix, (blank, word) in beam.items():
            either, last = _add(blank, word), prefix[-1] if prefix else -1
            was_blank, was_word = grown.get(prefix, (NEVER, NEVER))
            grown[prefix] = (_add(was_blank, either + silence), was_word)
            for token, chance in zip(tokens, chances, strict=True):
                start = either
                if token == last:  # goes on, unless a blank came between
                    was_blank, was_word = grown[prefix]
                    grown[prefix] = (was_blank, _add(was_word, word + chance))
                    start = blank
                if start <= NEVER:
                    continue  # nothing has come between two equal tokens
                longer = (*prefix, token)
                was_blank, was_word = grown.get(longer, (NEVER, NEVER))
                grown[longer] = (was_blank, _add(was_word, start + chance))
        best = sorted(grown.items(), key=lambda item: -_add(*item[1]))
        beam = dict(best[:width])
    return [(list(prefix), _add(*ends)) for prefix, ends in sorted(beam.items(), key=lambda item: -_add(*item[1]))]


@torch.inference_mode()
def likelihoods(llm: Any, context: Sequence[int], texts: Sequence[Sequence[int]]) -> list[float]:
    """log P_llm of each of ``texts`` (token ids) after ``context``, which holds at least one token.

    One pass over the tree of their prefixes, for an LLM whose every layer attends to everything before.
    """
    nodes: dict[tuple[int, ...], int] = {}  # prefix -> its place after the context
    parents: list[int] = []
    for text in texts:
        for end in range(1, len(text) + 1):
            prefix = tuple(text[:end])
            if prefix not in nodes:
                parents.append(nodes.get(prefix[:-1], -1))
                nodes[prefix] = len(nodes)
    if not nodes:
        return [0.0] * len(texts)
    known, size = len(context), len(context) + len(nodes)
    seen = torch.zeros(size, size, dtype=torch.bool)
    seen[:, :known] = torch.ones(size, known, dtype=torch.bool).tril()
    for place, parent in enumerate(parents):
        row = known + place
        if parent >= 0:
            seen[row] = seen[known + parent]
        seen[row, row] = True
    device, dtype = llm.get_input_embeddings().weight.device, llm.get_input_embeddings().weight.dtype
    mask = torch.zeros(size, size, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)
    depths = list(range(known)) + [known + len(prefix) - 1 for prefix in nodes]
    words = [prefix[-1] for prefix in nodes]
    out = llm(
        input_ids=torch.tensor([[*context, *words]], device=device),
        attention_mask=mask[None, None].to(device),
        position_ids=torch.tensor([depths], device=device),
        logits_to_keep=len(nodes) + 1,  # the context's last, and every prefix
        use_cache=False,
    )
    logits = out.logits[0].float()
    before = torch.tensor([parent + 1 for parent in parents], device=device)
    target = torch.tensor(words, device=device)
    steps = (logits[before, target] - logits.logsumexp(dim=-1)[before]).tolist()
    totals: list[float] = []
    for step, parent in zip(steps, parents, strict=True):
        totals.append(step + (totals[parent] if parent >= 0 else 0.0))
    return [totals[nodes[tuple(text)]] if text else 0.0 for text in texts]


def best_reading(
    llm: Any, context: Sequence[int], readings: Sequence[tuple[list[int], float]], weight: float, bonus: float
) -> list[int]:
    """The reading with the highest score (see above); the first of equals."""
    chances = likelihoods(llm, context, [tokens for tokens, _ in readings])
    scores = [
        heard + weight * (chance + bonus * len(tokens))
        for (tokens, heard), chance in zip(readings, chances, strict=True)
    ]
    return readings[max(range(len(scores)), key=scores.__getitem__)][0]

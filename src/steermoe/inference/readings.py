"""What may have been said, and which of it the LLM finds likely.

The arg-max path of a lexical projector is one reading of its frame scores. Prefix beam search (Graves, 2012;
Hannun et al., 2014) follows the likeliest ones, and the frozen LLM weighs them as it would any text, untrained:

    score(y) = log P_ctc(y | audio) + weight * (log P_llm(y) + bonus * tokens of y)

It is asked whenever the readings have grown by some tokens, so that what it finds unlikely makes room early.
Readings share most of their tokens, so they are weighed as one tree: every distinct prefix is one position
that attends to its own ancestors only, and a single pass of the LLM scores them all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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


Prefix = tuple[int, ...]
Weigh = Callable[[list[Prefix]], list[float]]


def prefix_beam(
    logits: Tensor, width: int, branches: int = 12, weigh: Weigh | None = None, every: int = 4
) -> list[tuple[Prefix, float]]:
    """Frame scores (T', V + 1), blank last -> at most ``width`` readings with their score, best first.

    The score is log P_ctc, the sum over all alignments that collapse to the reading, plus what ``weigh`` gives for
    it: asked each time the best reading has ``every`` more tokens, and at the end; in between a reading has what
    the one it grew from was given. Of each frame only the ``branches`` likeliest tokens are followed.
    """
    scores = logits.float().log_softmax(dim=-1)
    top, ids = scores[:, :-1].topk(min(branches, scores.shape[1] - 1), dim=-1)
    beam: dict[Prefix, tuple[float, float]] = {(): (0.0, NEVER)}  # log P of ending in a blank, in the last token
    priors: dict[Prefix, float] = {(): 0.0}
    weighed = 0

    def total(prefix: Prefix) -> float:
        return _add(*beam[prefix]) + priors[prefix]

    for silence, chances, tokens in zip(scores[:, -1].tolist(), top.tolist(), ids.tolist(), strict=True):
        if silence >= SURE:
            beam = {prefix: (_add(*ends) + silence, NEVER) for prefix, ends in beam.items()}
            continue
        grown: dict[Prefix, tuple[float, float]] = {}
        for prefix, (blank, word) in beam.items():
            either, last, prior = _add(blank, word), prefix[-1] if prefix else -1, priors[prefix]
            was_blank, was_word = grown.get(prefix, (NEVER, NEVER))
            grown[prefix] = (_add(was_blank, either + silence), was_word)
            for token, chance in zip(tokens, chances, strict=True):
                start = either
                if token == last:  # goes on, unless a blank came between
                    was_blank, was_word = grown[prefix]
                    grown[prefix] = (was_blank, _add(was_word, word + chance))
                    start = blank
                if start <= NEVER:
                    continue
                longer = (*prefix, token)
                was_blank, was_word = grown.get(longer, (NEVER, NEVER))
                grown[longer] = (was_blank, _add(was_word, start + chance))
                priors.setdefault(longer, prior)
        beam = grown
        best = sorted(beam, key=total, reverse=True)[:width]
        if weigh is not None and len(best[0]) - weighed >= every:
            weighed = len(best[0])
            priors = dict(zip(best, weigh(best), strict=True))
        beam, priors = {prefix: beam[prefix] for prefix in best}, {prefix: priors[prefix] for prefix in best}
    if weigh is not None:
        priors = dict(zip(beam, weigh(list(beam)), strict=True))
    return [(prefix, total(prefix)) for prefix in sorted(beam, key=total, reverse=True)]


@torch.inference_mode()
def likelihoods(llm: Any, context: Sequence[int], texts: Sequence[Sequence[int]]) -> list[float]:
    """log P_llm of each of ``texts`` (token ids) after ``context``, which holds at least one token.

    One pass over the tree of their prefixes, for an LLM whose every layer attends to everything before.
    """
    nodes: dict[Prefix, int] = {}  # prefix -> its place after the context
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
    llm: Any, context: Sequence[int], logits: Tensor, width: int, weight: float, bonus: float
) -> list[int]:
    """The reading of one clip's frame scores (T', V + 1) that has the highest score (see above)."""

    def weigh(prefixes: list[Prefix]) -> list[float]:
        chances = likelihoods(llm, context, prefixes)
        return [weight * (chance + bonus * len(p)) for p, chance in zip(prefixes, chances, strict=True)]

    return list(prefix_beam(logits, width, weigh=weigh)[0][0])

"""What may have been said, and which of it the LLM finds likely.

The arg-max path of a lexical projector is one reading of its frame scores. Prefix beam search (Graves, 2012;
Hannun et al., 2014) follows the likeliest ones, and the frozen LLM weighs them as it would any text, untrained:

    score(y) = log P_ctc(y | audio) + weight * (log P_llm(y) + bonus * tokens of y)

It is asked whenever the readings have grown by some tokens, so that what it finds unlikely makes room early.
Readings share most of their tokens, so they are weighed as one tree: every distinct prefix is one position
that attends to its own ancestors only, and a single pass of the LLM scores them all. What all of them begin with
is decided, and stays in the LLM's cache; and the trees of several clips pass together.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from typing import Any

import torch
from torch import Tensor

from .feeding import ALL, Fed

NEVER = -1e30
SURE = -0.01  # a blank of at least this log-probability changes no reading


def _add(a: float, b: float) -> float:
    """log(e^a + e^b)."""
    if a < b:
        a, b = b, a
    return a if b <= NEVER else a + math.log1p(math.exp(b - a))


Prefix = tuple[int, ...]
Beam = Generator[list[Prefix], list[float], list[tuple[Prefix, float]]]


def prefix_beam(logits: Tensor, width: int, branches: int = 12, every: int = 4) -> Beam:
    """Frame scores (T', V + 1), blank last -> at most ``width`` readings with their score, best first.

    A generator: it yields readings, wants to be sent what each is to have beside its log P_ctc, the sum over all
    alignments that collapse to it, and returns the result. It asks each time the best reading has ``every`` more
    tokens, and at the end; in between a reading has what the one it grew from was given. Of each frame only the
    ``branches`` likeliest tokens are followed.
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
        if len(best[0]) - weighed >= every:
            weighed = len(best[0])
            priors = dict(zip(best, (yield best), strict=True))
        beam, priors = {prefix: beam[prefix] for prefix in best}, {prefix: priors[prefix] for prefix in best}
    priors = dict(zip(beam, (yield list(beam)), strict=True))
    return [(prefix, total(prefix)) for prefix in sorted(beam, key=total, reverse=True)]


class Judge:
    """log P_llm of the growing readings of several clips after one context, which holds at least one token.

    For an LLM whose every layer attends to everything before.
    """

    @torch.inference_mode()
    def __init__(self, llm: Any, context: Sequence[int], clips: int) -> None:
        self.embedding, self.start = llm.get_input_embeddings(), len(context)
        self.device = self.embedding.weight.device
        self.fed = Fed(llm)
        ids, places = torch.tensor(list(context), device=self.device), torch.arange(self.start, device=self.device)
        everyone = torch.full_like(ids, ALL)
        logits = self.fed.feed(self.embedding(ids), everyone, places <= places[:, None], places, places[-1:])
        self.fed.settle(everyone)
        self.clips = list(range(clips))
        self.held: list[Prefix] = [()] * clips  # what all readings of a clip begin with: it is in the cache,
        self.sums = [0.0] * clips  # this likely,
        self.after = logits.log_softmax(dim=-1).repeat(clips, 1)  # (B, V) and this may follow

    def keep(self, rows: list[int]) -> None:
        """Goes on with the clips in these places alone."""
        self.clips, self.held = [self.clips[i] for i in rows], [self.held[i] for i in rows]
        self.sums = [self.sums[i] for i in rows]
        self.after = self.after[torch.tensor(rows, dtype=torch.long, device=self.device)]

    @torch.inference_mode()
    def weigh(self, asked: Sequence[Sequence[Prefix]]) -> list[list[float]]:
        """Of each clip's readings: log P_llm. All of them begin with what those of the last call had in common."""
        trees = [_Tree(held, texts) for held, texts in zip(self.held, asked, strict=True)]
        size = 0
        for tree, part in [
            *((t, t.chain) for t in trees),
            *((t, t.inner) for t in trees),
        ]:  # the chains first: they stay
            tree.places |= {prefix: size + i for i, prefix in enumerate(part)}
            size += len(part)
        logits = self._feed(trees, size) if size else self.after
        totals, results, owners = logits.logsumexp(dim=-1), [], []
        for row, tree in enumerate(trees):
            held, prefixes = self.held[row], [*tree.chain, *tree.inner, *tree.leaves]
            words = torch.tensor([prefix[-1] for prefix in prefixes], dtype=torch.long, device=self.device)
            parents = [tree.places.get(prefix[:-1], -1) for prefix in prefixes]
            above = torch.tensor(parents, dtype=torch.long, device=self.device)
            later = logits[above.clamp(min=0), words] - totals[above.clamp(min=0)]
            chances = {held: self.sums[row]}
            for prefix, step in zip(
                prefixes, torch.where(above < 0, self.after[row, words], later).tolist(), strict=True
            ):
                chances[prefix] = chances[prefix[:-1]] + step
            results.append([chances[text] for text in asked[row]])
            if tree.chain:
                last = tree.places[tree.common]
                self.held[row], self.sums[row] = tree.common, chances[tree.common]
                self.after[row] = logits[last] - totals[last]
                owners += [self.clips[row]] * len(tree.chain)
        if size:
            self.fed.settle(torch.tensor(owners, dtype=torch.long, device=self.device))
        return results

    def _feed(self, trees: list[_Tree], size: int) -> Tensor:
        """Every prefix that something follows, each seeing its own beginnings -> logits (size, V)."""
        ids, depths, owners = (torch.zeros(size, dtype=torch.long) for _ in range(3))
        seen = torch.eye(size, dtype=torch.bool)
        for clip, tree in zip(self.clips, trees, strict=True):
            for prefix, place in tree.places.items():  # parents before children
                ids[place], depths[place], owners[place] = prefix[-1], self.start + len(prefix) - 1, clip
                if (parent := tree.places.get(prefix[:-1])) is not None:
                    seen[place] |= seen[parent]
        ids, owners, seen, depths = (x.to(self.device) for x in (ids, owners, seen, depths))
        return self.fed.feed(self.embedding(ids), owners, seen, depths)


class _Tree:
    """One clip's readings beyond what is ``held``: a chain that all share, then branches. ``places`` says where each prefix
    lies among what is fed, parents before children; leaves are not fed, for nothing follows them."""

    def __init__(self, held: Prefix, texts: Sequence[Prefix]) -> None:
        first, last = min(texts), max(texts)  # what these two share, all between share
        shared = (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b)
        self.common: Prefix = first[: next(shared, min(len(first), len(last)))]
        beyond = {t[:end] for t in texts for end in range(len(self.common) + 1, len(t) + 1)}
        parents = {prefix[:-1] for prefix in beyond}
        self.chain = [self.common[:end] for end in range(len(held) + 1, len(self.common) + 1)]
        self.inner = sorted((p for p in beyond if p in parents), key=len)
        self.leaves = [p for p in beyond if p not in parents]
        self.places: dict[Prefix, int] = {}


def likelihoods(llm: Any, context: Sequence[int], texts: Sequence[Sequence[int]]) -> list[float]:
    """log P_llm of each of ``texts`` (token ids) after ``context``, in one pass over the tree of their prefixes."""
    return Judge(llm, context, 1).weigh([[tuple(text) for text in texts]])[0]


def best_readings(
    llm: Any, context: Sequence[int], logits: Sequence[Tensor], width: int, weight: float, bonus: float
) -> list[list[int]]:
    """Of each clip's frame scores (T'_i, V + 1) the reading that has the highest score (see above)."""
    beams = [prefix_beam(scores, width) for scores in logits]
    judge, found = Judge(llm, context, len(beams)), [[0]] * len(beams)
    rows, asked = list(range(len(beams))), [next(beam) for beam in beams]
    while rows:
        chances, going, more = judge.weigh(asked), [], []
        for place, row in enumerate(rows):
            told = [weight * (c + bonus * len(p)) for p, c in zip(asked[place], chances[place], strict=True)]
            try:
                more.append(beams[row].send(told))
                going.append(place)
            except StopIteration as done:
                found[row] = list(done.value[0][0])
        judge.keep(going)
        rows, asked = [rows[place] for place in going], more
    return found

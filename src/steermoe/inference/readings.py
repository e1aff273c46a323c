"""What may have been said, and which of it the LLM finds likely.

The arg-max path of a lexical projector is one reading of its frame scores. Prefix beam search (Graves, 2012;
Hannun et al., 2014) follows the likeliest ones, and the frozen LLM weighs them as it would any text, untrained:

    score(y) = log P_ctc(y | audio) + weight * (log P_llm(y) + bonus * tokens of y)

where P_ctc is of frames that may be made less sure than CTC trained them (`frame_scale`). It is asked whenever the readings have grown by some tokens, so that what it finds unlikely makes room early. Where phones are heard
(phones.py), a reading must also sound like them, and whole ones are compared once more at the end:

    log P_ctc(y | audio) + phone_weight * log P_phones(y | audio) + whole_weight * (log P_llm(y) + bonus * tokens of y)

As long as they grow, all but log P_ctc counts weight / whole_weight of that, and P_phones is of what the audio begins with.
Readings share most of their tokens, so they are weighed as one tree: every distinct prefix is one position
that attends to its own ancestors only, a single pass of the LLM scores them all, and what was fed once stays in the
LLM's cache for as long as a reading begins with it. The trees of several clips pass together.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..config import SteerMoEConfig
from ..lexical import Likeliest
from ..phones import NEVER, Sound
from .feeding import Fed

FAINT = -8.0  # a token of a lower log-probability is not followed
SURE = -0.01  # a blank of at least this log-probability changes no reading


def _add(a: float, b: float) -> float:
    """log(e^a + e^b)."""
    if a < b:
        a, b = b, a
    return a if b <= NEVER else a + math.log1p(math.exp(b - a))


Prefix = tuple[int, ...]
Beam = Generator[list[Prefix], list[float], list[tuple[Prefix, float]]]


def prefix_beam(frames: Likeliest, width: int, every: int = 2) -> Beam:
    """What the frames may say -> at most ``width`` readings with their score, best first.

    A generator: it yields readings, wants to be sent what each is to have beside its log P_ctc, the sum over all
    alignments that collapse to it, and returns the result. It asks each time the best reading has ``every`` more
    tokens, and at the end; in between a reading has what the one it grew from was given.
    """
    beam: dict[Prefix, tuple[float, float]] = {(): (0.0, NEVER)}  # log P of ending in a blank, in the last token
    priors: dict[Prefix, float] = {(): 0.0}
    weighed = 0

    def total(prefix: Prefix) -> float:
        return _add(*beam[prefix]) + priors[prefix]

    for silence, chances, tokens in zip(*(x.tolist() for x in (frames.blank, frames.chances, frames.ids)), strict=True):
        if silence >= SURE:
            beam = {prefix: (_add(*ends) + silence, NEVER) for prefix, ends in beam.items()}
            continue
        grown: dict[Prefix, tuple[float, float]] = {}
        for prefix, (blank, word) in beam.items():
            either, last, prior = _add(blank, word), prefix[-1] if prefix else -1, priors[prefix]
            was_blank, was_word = grown.get(prefix, (NEVER, NEVER))
            grown[prefix] = (_add(was_blank, either + silence), was_word)
            for token, chance in zip(tokens, chances, strict=True):
                if chance < FAINT:
                    break
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


class _Node:
    """A reading, or the beginning of some: ``parent`` and one more ``word``.

    ``chance`` is its log P_llm, ``slot`` where the LLM has it in its cache, ``after`` (V,) what may follow it.
    """

    __slots__ = ("after", "chance", "depth", "parent", "slot", "word")

    def __init__(self, parent: _Node | None = None, word: int = -1) -> None:
        self.parent, self.word = parent, word
        self.depth: int = parent.depth + 1 if parent else 0
        self.chance, self.slot = 0.0, -1
        self.after: Tensor | None = None

    def line(self) -> Iterator[_Node]:
        """Itself and all its beginnings, the longest first, without the empty one."""
        node = self
        while node.parent is not None:
            yield node
            node = node.parent


class Judge:
    """log P_llm of the growing readings of several clips after one context, which holds at least one token.

    For an LLM whose every layer attends to everything before.
    """

    @torch.inference_mode()
    def __init__(self, llm: Any, context: Sequence[int], clips: int) -> None:
        self.embedding, self.start = llm.get_input_embeddings(), len(context)
        self.device = self.embedding.weight.device
        self.fed = Fed(llm, context)
        empty = _Node()
        empty.after = self.fed.after.float().log_softmax(dim=-1)
        self.readings: dict[int, dict[Prefix, _Node]] = {clip: {(): empty} for clip in range(clips)}

    @torch.inference_mode()
    def weigh(self, asked: Mapping[int, Sequence[Prefix]]) -> dict[int, list[float]]:
        """Of each clip's readings: log P_llm. Every one of them goes on from one of the last call's; a clip that is not
        asked about is done."""
        grown: dict[int, list[_Node]] = {}
        last = self._ends()
        for clip, texts in asked.items():
            self.readings[clip], grown[clip] = _grow(self.readings[clip], texts)
        self.readings = {clip: self.readings[clip] for clip in asked}
        self._forget()
        fed = [
            (clip, node)
            for clip, fresh in grown.items()
            for node in dict.fromkeys(node.parent for node in fresh)  # parents before children
            if node is not None and node.after is None
        ]
        logits, places = self._feed(fed), {node: place for place, (_, node) in enumerate(fed)}
        totals = torch.cat([part.float().logsumexp(dim=-1) for part in logits.split(32)])
        new = [node for fresh in grown.values() for node in fresh]
        inner = [node for node in new if node.parent in places]
        above, words = (
            torch.tensor(numbers, dtype=torch.long, device=self.device)
            for numbers in ([places[node.parent] for node in inner], [node.word for node in inner])  # type: ignore[index]
        )
        steps = dict(zip(inner, (logits[above, words].float() - totals[above]).tolist(), strict=True))
        for node in new:
            assert node.parent is not None
            after = node.parent.after
            node.chance = node.parent.chance + (steps[node] if after is None else float(after[node.word]))
        ends = self._ends()
        for node in last - ends:
            node.after = None  # nothing more grows from there
        for node in ends & places.keys():
            node.after = logits[places[node]].float() - totals[places[node]]
        return {clip: [self.readings[clip][text].chance for text in texts] for clip, texts in asked.items()}

    def _ends(self) -> set[_Node]:
        return {node for told in self.readings.values() for node in told.values()}

    def _forget(self) -> None:
        """Takes what no reading begins with any more out of the LLM's cache."""
        held = sorted({n for end in self._ends() for n in end.line() if n.slot >= 0}, key=lambda node: node.slot)
        if self.start + len(held) < len(self.fed.owners):
            slots = [*range(self.start), *(node.slot for node in held)]
            self.fed.keep(torch.tensor(slots, device=self.device))
            for slot, node in enumerate(held, self.start):
                node.slot = slot

    def _feed(self, fed: list[tuple[int, _Node]]) -> Tensor:
        """Nodes of clips, parents before children -> logits (Q, V); each sees its own beginnings."""
        if not fed:
            return self.fed.after[None][:0]
        before = len(self.fed.owners)
        rows, slots = [], []
        for row, (_, node) in enumerate(fed):
            node.slot = before + row
            seen_by = [beginning.slot for beginning in node.line()]
            rows += [row] * len(seen_by)
            slots += seen_by
        seen = torch.zeros(len(fed), before + len(fed), dtype=torch.bool)
        seen[:, : self.start] = True
        seen[rows, slots] = True
        ids, depths, owners = (
            torch.tensor(numbers, device=self.device)
            for numbers in zip(*((n.word, self.start + n.depth - 1, clip) for clip, n in fed), strict=True)
        )
        return self.fed.feed(self.embedding(ids), owners, seen.to(self.device), depths)


def _grow(told: dict[Prefix, _Node], texts: Sequence[Prefix]) -> tuple[dict[Prefix, _Node], list[_Node]]:
    """The nodes of ``texts``, each of which goes on from one of ``told``, and those that are new, parents before children."""
    fresh: dict[tuple[_Node, int], _Node] = {}
    found = {}
    for text in texts:
        end = len(text)
        while text[:end] not in told:
            end -= 1
        node = told[text[:end]]
        for word in text[end:]:
            node = fresh.setdefault((node, word), _Node(node, word))
        found[text] = node
    return found, list(fresh.values())


def likelihoods(llm: Any, context: Sequence[int], texts: Sequence[Sequence[int]]) -> list[float]:
    """log P_llm of each of ``texts`` (token ids) after ``context``, in one pass over the tree of their prefixes."""
    return Judge(llm, context, 1).weigh({0: [tuple(text) for text in texts]})[0]


def best_readings(
    llm: Any,
    context: Sequence[int],
    frames: Sequence[Likeliest],
    config: SteerMoEConfig,
    sounds: Sequence[Sound] | None = None,
) -> list[list[int]]:
    """Of what each clip's frames may say the reading that has the highest score (see above); ``sounds``: their phones."""
    beams = [prefix_beam(clip, config.readings) for clip in frames]
    judge, found = Judge(llm, context, len(beams)), [[0]] * len(beams)
    asked = {row: next(beam) for row, beam in enumerate(beams)}
    share = config.phone_weight * config.llm_weight / config.whole_weight
    while asked:
        more = {}
        for row, chances in judge.weigh(asked).items():
            likely = [c + config.token_bonus * len(p) for p, c in zip(asked[row], chances, strict=True)]
            told = [config.llm_weight * c for c in likely]
            if sounds is not None:
                told = [t + share * s for t, s in zip(told, sounds[row].begins(asked[row]), strict=True)]
            try:
                more[row] = beams[row].send(told)
            except StopIteration as done:
                scores = dict(done.value)
                if sounds is not None:
                    for p, before, c, sound in zip(asked[row], told, likely, sounds[row].whole(), strict=True):
                        scores[p] += config.phone_weight * sound + config.whole_weight * c - before
                found[row] = list(max(scores, key=scores.__getitem__))
        asked = more
    return found

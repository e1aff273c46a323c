"""Prefix beam search against every alignment written out, and the tree of readings against plain forward passes."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from steermoe.config import SteerMoEConfig
from steermoe.inference.ears import Ears
from steermoe.inference.readings import Judge, Prefix, best_readings, likelihoods, prefix_beam
from steermoe.lexical import Likeliest
from tests.conftest import speechlike

FRAMES, VOCAB = 5, 3


def likeliest(logits: torch.Tensor) -> Likeliest:
    """Frame scores (T', V + 1), blank last, as a projector tells them."""
    chances, ids = logits.log_softmax(dim=-1)[:, :-1].sort(dim=-1, descending=True)
    return Likeliest(chances[:, :12], ids[:, :12], logits.log_softmax(dim=-1)[:, -1])


def search(
    logits: torch.Tensor, width: int, weigh: Callable[[list[Prefix]], list[float]] | None = None, every: int = 2
) -> list[tuple[Prefix, float]]:
    """The beam's result, where ``weigh`` answers it; else by sound alone."""
    beam = prefix_beam(likeliest(logits), width, every=every)
    asked = next(beam)
    while True:
        try:
            asked = beam.send(weigh(asked) if weigh else [0.0] * len(asked))
        except StopIteration as done:
            return done.value


def every_reading(logits: torch.Tensor) -> dict[tuple[int, ...], float]:
    """log P of all readings, by the sum over all alignments."""
    p, total = logits.double().softmax(-1), {}
    for path in itertools.product(range(VOCAB + 1), repeat=len(logits)):
        reading = tuple(k for k, _ in itertools.groupby(path) if k != VOCAB)
        total[reading] = total.get(reading, 0.0) + math.prod(float(p[t, v]) for t, v in enumerate(path))
    return {reading: math.log(chance) for reading, chance in total.items()}


@pytest.mark.parametrize("seed", range(6))
def test_a_wide_beam_finds_every_reading_and_its_probability(seed: int) -> None:
    logits = torch.randn(FRAMES, VOCAB + 1, generator=torch.Generator().manual_seed(seed)) * 2
    wanted = every_reading(logits)
    found = search(logits, width=10_000)
    assert {tokens for tokens, _ in found} == set(wanted)
    for tokens, chance in found:
        assert chance == pytest.approx(wanted[tokens], abs=1e-4)
    assert [chance for _, chance in found] == sorted((chance for _, chance in found), reverse=True)


def test_a_narrow_beam_keeps_the_best() -> None:
    logits = torch.randn(FRAMES, VOCAB + 1, generator=torch.Generator().manual_seed(9)) * 4
    best = max(every_reading(logits).items(), key=lambda item: item[1])[0]
    found = search(logits, width=4)
    assert len(found) == 4 and found[0][0] == best


def test_sure_silence_changes_nothing_but_parts_equal_tokens() -> None:
    word, silence = torch.tensor([6.0, 0, 0, 0]), torch.tensor([0.0, 0, 0, 30])
    assert search(torch.stack([silence] * 9), width=8)[0][0] == ()
    assert search(torch.stack([word, silence, silence, word]), width=8)[0][0] == (0, 0)
    assert search(torch.stack([word, word, silence]), width=8)[0][0] == (0,)


def test_a_tree_of_readings_scores_as_each_alone(ears: Ears) -> None:
    llm, context = ears.model.llm, [1, 5, 9]
    texts = [[7], [7, 8], [7, 8, 20], [7, 9, 20], [30, 8], [30, 8, 8, 8, 8], [], [200]]
    for text, chance in zip(texts, likelihoods(llm, context, texts), strict=True):
        with torch.inference_mode():
            logits = llm(input_ids=torch.tensor([[*context, *text]])).logits[0].log_softmax(-1)
        alone = sum(float(logits[len(context) - 1 + i, token]) for i, token in enumerate(text))
        assert chance == pytest.approx(alone, abs=1e-3)
    assert likelihoods(llm, context, [[], []]) == [0.0, 0.0]


def test_what_weighs_is_asked_in_time_and_decides() -> None:
    """Token 0 sounds a little better than 1 in every place, but 1 is what the weigher likes."""
    word, silence = torch.tensor([3.1, 3.0, -9.0, -9.0]), torch.tensor([0.0, 0, 0, 30])
    logits = torch.stack([frame for _ in range(10) for frame in (word, silence)])
    asked: list[int] = []

    def weigh(prefixes: list[tuple[int, ...]]) -> list[float]:
        asked.append(max(map(len, prefixes)))
        return [float(sum(prefix)) for prefix in prefixes]

    assert search(logits, width=4)[0][0] == (0,) * 10
    best, score = search(logits, width=16, weigh=weigh, every=2)[0]
    assert best == (1,) * 10 and score == pytest.approx(10 - 10 * math.log(1 + math.exp(0.1)), abs=0.05)
    assert asked == [2, 4, 6, 8, 10, 10]
    # Asked only at the end, a beam of sixteen has long lost what would be liked.
    assert search(logits, width=16, weigh=weigh, every=99)[0][0] != (1,) * 10


def test_the_llm_decides_between_what_sounds_alike(ears: Ears) -> None:
    llm, context = ears.model.llm, ears.processor.before_speech()
    first, second = likelihoods(llm, context, [[50, 60], [51, 60]])
    likely, other = (50, 51) if first > second else (51, 50)
    logits = torch.full((3, 301), -20.0)
    logits[0, [other, likely]], logits[1, 300], logits[2, 60] = torch.tensor([5.0, 4.9]), 9.0, 9.0
    enough = 0.11 / abs(first - second)

    class Ear:
        """To which ``other`` sounds better."""

        def __init__(self, better: float) -> None:
            self.better, self.calls = better, 0

        def begins(self, texts: list[Prefix]) -> list[float]:
            self.calls += 1
            self.told = [self.better * (text[:1] == (other,)) for text in texts]
            return self.told

        def whole(self) -> list[float]:
            return self.told

    def best(weight: float, better: float | None = None, **more: float) -> list[int]:
        how = SteerMoEConfig(readings=8, llm_weight=weight, token_bonus=0.0, **more)  # type: ignore[arg-type]
        sounds: Any = None if better is None else [Ear(better)]
        found = best_readings(llm, context, [likeliest(logits)], how, sounds)[0]
        assert sounds is None or sounds[0].calls > 1  # while readings grow, too
        return found

    assert best(0.0) == [other, 60]
    assert best(enough) == [likely, 60]
    assert best(0.0, 0.0, whole_weight=enough) == [likely, 60]  # whole readings have another weight
    assert best(enough, 0.0, whole_weight=1e-9) == [other, 60]
    assert best(enough, 0.1, phone_weight=1.0, whole_weight=enough) == [other, 60]
    assert best(enough, 0.1, phone_weight=0.05, whole_weight=enough) == [likely, 60]


@pytest.mark.parametrize("seed", range(4))
def test_growing_readings_score_as_from_the_start(ears: Ears, seed: int) -> None:
    """Several clips, some of which end early; readings grow, fork and die; what they share is in the cache."""
    llm, context, rng = ears.model.llm, [1, 5, 9], random.Random(seed)
    judge, rows = Judge(llm, context, 3), [0, 1, 2]
    readings: list[list[Prefix]] = [[()], [()], [()]]
    for _ in range(7):
        for row in rows:
            grown = [(*r, *rng.choices(range(3, 300), k=rng.randrange(3))) for r in readings[row] for _ in range(3)]
            readings[row] = sorted(set(rng.sample(grown, 2 + rng.randrange(2))))[: rng.choice((1, 3))]
        for row, chances in judge.weigh({row: readings[row] for row in rows}).items():
            for reading, chance in zip(readings[row], chances, strict=True):
                assert chance == pytest.approx(likelihoods(llm, context, [reading])[0], abs=2e-3)
        rows = [row for row in rows if len(rows) == 1 or rng.random() < 0.8] or rows[:1]


def test_clips_are_weighed_together_as_alone(ears: Ears) -> None:
    llm, context, generator = ears.model.llm, ears.processor.before_speech(), torch.Generator().manual_seed(3)
    clips = [likeliest(torch.randn(frames, 301, generator=generator) * 4) for frames in (30, 3, 17, 24)]
    how = SteerMoEConfig(readings=8)
    together = best_readings(llm, context, clips, how)
    assert together == [best_readings(llm, context, [clip], how)[0] for clip in clips]
    assert len({tuple(reading) for reading in together}) == 4


def test_one_reading_is_the_arg_max_alone(make: Callable[..., Ears]) -> None:
    clip = speechlike(3.0)
    alone, weighed = make(readings=1), make(readings=16)
    inputs = alone.processor.features([clip])
    audios, tokens, _ = alone.listen(inputs)
    assert tokens is not None and alone.processor.tokenizer.decode(tokens[0]).strip() == alone.hear(
        clip, sampling_rate=16_000
    )
    audios, tokens, _ = weighed.listen(inputs)
    assert tokens is not None and torch.equal(audios[0], weighed.model.projector.table[torch.tensor(tokens[0])])  # type: ignore[union-attr]

"""Mutual information of labels whose numbers are known, what chance gives, and the collapse alarm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steermoe.config import SteerMoEConfig
from steermoe.encoders import wrap
from steermoe.errors import UsageError
from steermoe.inference.ears import Ears, from_model
from steermoe.inspection import gates_of, picture, words_of
from steermoe.model import SteerMoEForConditionalGeneration
from steermoe.pretrained import load_llm, load_tokenizer
from steermoe.routing import against_chance, entropy, mutual_information
from steermoe.steering import Steering
from steermoe.training.alarm import CollapseAlarm
from tests.conftest import speechlike
from tests.encoders.families import FIRST, SECOND

LABELS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=40)


@settings(max_examples=50, deadline=None)
@given(LABELS)
def test_mutual_information_is_what_entropies_say(pairs: list[tuple[int, int]]) -> None:
    a, b = (np.array(side) for side in zip(*pairs, strict=True))

    def bits(labels: list) -> float:
        shares = np.array([labels.count(x) for x in set(labels)]) / len(labels)
        return float(-(shares * np.log2(shares)).sum())

    expected = bits(a.tolist()) + bits(b.tolist()) - bits(pairs)
    assert mutual_information(a, b) == pytest.approx(expected, abs=1e-9) == mutual_information(b, a)
    assert entropy(a) == pytest.approx(bits(a.tolist()), abs=1e-9)


def test_what_is_followed_is_far_above_chance_and_what_is_not_is_at_it() -> None:
    rng = np.random.default_rng(0)

    def runs() -> np.ndarray:
        return np.repeat(rng.integers(0, 5, 60), rng.integers(1, 8, 60))[:160]

    phones = [runs() for _ in range(20)]
    followed = against_chance([np.where(rng.random(len(p)) < 0.9, p, 0) for p in phones], phones)
    assert followed["p"] < 0.02 and followed["share"] > 0.5 and followed["bits"] > 5 * followed["chance"]
    alone = [against_chance([runs() for _ in phones], phones, permutations=40) for _ in range(12)]
    assert 0.25 < np.mean([found["p"] for found in alone]) < 0.75
    assert max(abs(found["share"]) for found in alone) < 0.02
    assert (
        min(found["chance"] for found in alone) > 0
    )  # the plug-in estimate never is zero: without a baseline it would look like a finding


def test_labels_of_whole_clips_change_places() -> None:
    rng = np.random.default_rng(1)
    speakers = [np.full(30, i % 4) for i in range(24)]
    habits = against_chance([np.where(rng.random(30) < 0.5, s, 5) for s in speakers], speakers)
    assert habits["p"] < 0.02
    own = [np.full(30, i) for i in range(24)]  # each clip its own expert: says everything, and means nothing
    assert against_chance(own, speakers)["p"] > 0.9
    with pytest.raises(UsageError, match="one label"):
        against_chance([np.zeros(3)], [np.zeros(4)])


def test_the_alarm_rings_once_for_an_expert_that_takes_all() -> None:
    torch.manual_seed(0)
    steering = Steering(3, 4, 8)
    alarm, h = CollapseAlarm(steering, share=0.9), torch.randn(2, 5, 8)

    def step(number: int) -> list[str]:
        with alarm.watching(number) as lines:
            for layer in range(3):
                steering(h, layer)
        return lines

    assert step(1) == []
    with torch.no_grad():
        steering.router.bias[1 * 4 + 2] = 50.0
    (line,) = step(2)
    assert "step 2: the router collapses in steered layer 2, expert 3 has a mean gate of 1.00" in line
    assert step(3) == []
    with torch.no_grad():
        steering.router.bias[1 * 4 + 2] = 0.0
    assert step(4) == []
    with torch.no_grad():
        steering.router.bias[0] = 50.0
    assert len(step(5)) == 1
    with CollapseAlarm(steering).watching(1) as lines:  # a run that goes on from such an adapter
        for layer in range(3):
            steering(h, layer)
    assert lines == ["the router has collapsed already in what this begins with: steered layer 1"]
    for silent in (CollapseAlarm(None), CollapseAlarm(Steering(2, 1, 8))):
        with silent.watching(1) as lines:
            pass
        assert lines == []


def test_words_have_their_times(ears: Ears, make: Callable[..., Ears], speech: Callable[..., np.ndarray]) -> None:
    clip = speech(2.0, seed=5)
    words = words_of(ears, clip)
    assert words and all(0 <= start < end <= 2.1 for start, end, _ in words)
    assert [start for start, _, _ in words] == sorted(start for start, _, _ in words)
    heard = str(ears.hear(clip, sampling_rate=16_000))
    assert "".join("".join(word for _, _, word in words).split()) == "".join(heard.split())
    assert words_of(make(projector="linear"), clip) == []


@pytest.mark.parametrize(
    ("family", "gates"), [("qwen2_audio", 100), ("voxtral", 100), ("seamless_m4t", 99), ("fireredasr", 50)]
)
def test_gates_are_of_the_clip_and_on_its_clock(
    family: str, gates: int, pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers may have several frames for each that leaves the encoder, and a fixed window's padding behind."""
    llm, tokenizer = load_llm(pair.llm, torch.float32), load_tokenizer(pair.llm)
    encoder, extractor = ({**FIRST, **SECOND}[family][i]() for i in (0, 1))
    frames, config = wrap(encoder.eval(), extractor), SteerMoEConfig(encoder="e", llm=pair.llm, num_experts=2)
    ears = from_model(SteerMoEForConditionalGeneration(config, frames, llm, tokenizer))
    clip, seen = speechlike(2.0), []
    assert {len(layer) for layer in gates_of(ears, clip)[0]} == {gates}
    monkeypatch.setattr("steermoe.inspection.plot_gates", lambda *_, frame_rate, **__: seen.append(frame_rate) or b"")
    picture(ears, clip)
    assert gates / seen[0] == pytest.approx(2.0)

"""Phones: their likelihoods against every alignment written out, what they teach, and what they have a say in."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from steermoe import load, pronunciation
from steermoe.errors import UsageError
from steermoe.inference.ears import Ears
from steermoe.phones import PHONES, Phones, Reading, Sound
from steermoe.spelling import Spelling
from steermoe.training.objectives import Objectives, groups
from steermoe.training.recipe import Stage, load_recipe

WRITTEN = [" cat", " hat", "s", ",", " at", " <|x|>"]
SOUNDS = [" kæt", " hæt", "s", "", " æt", ""]


@pytest.fixture
def hears() -> Phones:
    torch.manual_seed(0)
    spelling = Spelling(WRITTEN, 8, pronunciation=True)
    spelling.tell(SOUNDS)
    assert spelling.sounds is not None
    return Phones(6, 50.0, spelling.sounds, hidden=32).eval()


def test_a_text_sounds_as_its_tokens_do_without_spaces_and_marks(hears: Phones) -> None:
    k, h, s, t, ash = (1 + sorted(set("".join(SOUNDS))).index(phone) for phone in "khstæ")
    assert hears.said([0, 2, 3, 1]) == [k, ash, t, s, h, ash, t]
    assert hears.said([]) == hears.said([3, 5]) == [] and 0 not in hears.said([*range(6)]) and 1 not in hears.said([0])


OTHER = -1  # any phone that a reading has not


@pytest.mark.parametrize("seed", range(3))
def test_a_reading_is_as_likely_as_all_its_alignments(hears: Phones, seed: int) -> None:
    heard = (torch.randn(4, PHONES, generator=torch.Generator().manual_seed(seed)) * 3).log_softmax(dim=-1)
    readings: list[Reading] = [(0,), (1,), (0, 3), (), (2, 2), (4,), (0, 1), (3, 2)]
    sound = Sound(heard, hears.said)
    begins = sound.begins(readings)
    for reading, begin, whole in zip(readings, begins, sound.whole(), strict=True):
        said = hears.said(reading)
        steps = [{k: math.exp(p[k]) for k in {0, *said}} for p in heard.tolist()]
        steps = [{**step, OTHER: 1 - sum(step.values())} for step in steps]
        wanted = {True: 0.0, False: 0.0}
        for path in itertools.product(steps[0], repeat=4):
            phones = [k for k, _ in itertools.groupby(path) if k]
            for all_of_it in wanted:
                if (phones if all_of_it else phones[: len(said)]) == said:
                    wanted[all_of_it] += math.prod(step[k] for step, k in zip(steps, path, strict=True))
        assert begin == pytest.approx(math.log(wanted[False]), abs=1e-4) if wanted[False] else begin < -1e9
        assert whole == pytest.approx(math.log(wanted[True]), abs=1e-4) if wanted[True] else whole < -1e9
    assert sound.nothing == pytest.approx(sound.whole()[3]) and begins[6] < -1e9  # six phones in four steps


def test_readings_that_grow_are_as_likely_as_from_the_start(hears: Phones) -> None:
    rng, generator = random.Random(0), torch.Generator().manual_seed(5)
    heard = torch.randn(30, PHONES, generator=generator).log_softmax(dim=-1)
    sound, readings = Sound(heard, hears.said), [()]
    for _ in range(6):
        readings = [*{(*r, *rng.choices(range(6), k=rng.randrange(3))) for r in readings for _ in range(3)}][:5]
        begins, fresh = sound.begins(readings), Sound(heard, hears.said)
        assert begins == pytest.approx(fresh.begins(readings), abs=1e-6)
        assert sound.whole() == pytest.approx(fresh.whole(), abs=1e-6)
        assert all(begin >= whole - 1e-9 for begin, whole in zip(begins, sound.whole(), strict=True))


@torch.no_grad()
def test_a_clip_is_heard_the_same_in_a_batch(hears: Phones) -> None:
    generator, rng = torch.Generator().manual_seed(1), random.Random(1)
    clips = [torch.randn(rng.randrange(1, 40), 6, generator=generator) for _ in range(6)]
    lengths = torch.tensor([len(clip) for clip in clips])
    padded = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True, padding_value=7.0)
    told, counts = hears(padded, lengths)
    assert counts.tolist() == [(len(clip) + 1) // 2 for clip in clips]
    for row, clip in enumerate(clips):
        alone, _ = hears(clip[None], torch.tensor([len(clip)]))
        torch.testing.assert_close(told[row, : counts[row]], alone[0], atol=1e-5, rtol=1e-4)
    loss = hears.ctc_loss(padded, lengths, [[2]] * 6)
    each = [hears.ctc_loss(clip[None], lengths[i : i + 1], [[2]]) for i, clip in enumerate(clips)]
    assert float(loss) == pytest.approx(float(torch.stack(each).mean()), rel=1e-4)
    assert hears.ctc_loss(padded, lengths, [[]] * 6).isfinite()


def test_what_it_learned_of_some_words_it_hears_in_others(hears: Phones) -> None:
    """A phone is a frame's direction; " hat" and "s" are in training, " cat" and " at", each of the same phones, partly not."""
    generator = torch.Generator().manual_seed(2)
    directions = torch.randn(PHONES, 6, generator=generator) * 3

    def spoken(tokens: list[int]) -> torch.Tensor:
        return torch.cat([directions[[phone, phone, 0, 0]] for phone in [*hears.said(tokens), 0]])

    texts, optimizer = [[1], [2, 1], [1, 2, 2], [0, 2], [2]], torch.optim.AdamW(hears.parameters(), lr=1e-2)
    h = torch.nn.utils.rnn.pad_sequence([spoken(text) for text in texts], batch_first=True)
    lengths = torch.tensor([len(spoken(text)) for text in texts])
    for _ in range(60):
        optimizer.zero_grad()
        hears.ctc_loss(h, lengths, texts).backward()
        optimizer.step()
    with torch.no_grad():
        told = hears(spoken([4, 2, 0])[None], torch.tensor([len(spoken([4, 2, 0]))]))[0][0]
        silence = hears(directions[[0] * 12][None], torch.tensor([12]))[0][0]
    sound = Sound(told, hears.said)
    begins = sound.begins([(4, 2, 0), (1, 2, 0), (4, 0), (4, 2, 1), (), (4, 2)])
    likely = sound.whole()
    assert likely[0] == max(likely) and likely[0] > likely[1] + 2
    assert begins[5] > -1 > likely[5] and begins[1] < -2
    assert not sound.silent((4, 2, 0))  # as one of the last call's
    assert not Sound(told, hears.said).silent((4, 2, 0))
    assert Sound(silence, hears.said).silent((4,)) and not Sound(silence, hears.said).silent((3,))


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each token of the tiny pair sounds like its number."""
    monkeypatch.setattr(pronunciation, "pronounced", lambda _, size: [" " + "abcdefgh"[i % 8] for i in range(size)])


HEARS: dict[str, Any] = {"spelling": True, "pronunciation": True, "phones": True}


def test_the_reading_that_sounds_right_is_chosen(
    told: None, make: Callable[..., Ears], speech: Callable[..., np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    e = make(**HEARS, readings=8)
    inputs = e.processor.features([speech(2.0), speech(1.1, 1)])
    monkeypatch.setattr(Sound, "silent", lambda *_: False)
    monkeypatch.setattr(Sound, "begins", lambda _, texts: asked.append(texts) or [0.0] * len(texts))
    monkeypatch.setattr(Sound, "whole", lambda _: [0.0] * len(asked[-1]))
    asked: list[list[Reading]] = []
    _, plain, _ = e.listen(inputs)
    chosen: list[Reading] = []

    def longest(_: Sound) -> list[float]:
        chosen.append(max(asked[-1], key=len))
        return [1000.0 * (text == chosen[-1]) for text in asked[-1]]

    monkeypatch.setattr(Sound, "whole", longest)
    audios, tokens, _ = e.listen(inputs)
    assert plain is not None and tokens is not None and tokens != plain
    assert sorted(tokens) == sorted(list(text) for text in chosen)  # the shorter clip is done before the other
    table = e.model.projector.table  # type: ignore[union-attr]
    assert all(torch.equal(audio, table[row]) for audio, row in zip(audios, tokens, strict=True))


def test_words_without_phones_are_silence(
    told: None, make: Callable[..., Ears], speech: Callable[..., np.ndarray]
) -> None:
    for readings in (1, 8):
        e = make(**HEARS, readings=readings)
        assert e.model.phones is not None
        for blank, there in ((-30.0, True), (30.0, False)):
            with torch.no_grad():
                e.model.phones.outer.weight.zero_()
                e.model.phones.outer.bias.zero_()[0] = blank
            audios, tokens, _ = e.listen(e.processor.features([speech(1.5)]))
            assert tokens is not None and bool(tokens[0]) is there
            assert there or torch.equal(audios[0], e.model.projector.nothing[None])  # type: ignore[union-attr]
            assert bool(e.transcribe(speech(1.5), sampling_rate=16_000)) is there


def test_it_is_in_the_adapter(
    told: None, make: Callable[..., Ears], speech: Callable[..., np.ndarray], tmp_path: Path
) -> None:
    e = make(**HEARS)
    e.model.save_adapter(tmp_path / "a")
    again = load(tmp_path / "a")
    names = [name for name in again.model.adapter_state() if name.startswith("phones.")]
    assert len(names) == 8
    inputs = e.processor.features([speech(1.5)])
    one, two = (
        x.model.project(*x.model.encode(inputs["input_features"], inputs["feature_lengths"])) for x in (e, again)
    )
    assert one.phones and two.phones and torch.equal(one.phones[0], two.phones[0]) and len(one.phones[0]) > 9


def test_a_stage_teaches_them_alone(told: None, make: Callable[..., Ears]) -> None:
    e = make(**HEARS)
    stage = Stage(objectives={"phones": 1.0}, trains=["phones"])
    (group,) = groups(e.model, stage)
    assert group["lr"] == stage.rates.phones and set(e.model.trainable()) == {
        name for name in e.model.adapter_state() if name.startswith("phones.")
    }
    h, lengths = e.model.enter(
        *(e.processor.features([np.ones(16_000, np.float32)])[k] for k in ("input_features", "feature_lengths"))
    )
    losses = Objectives(e.model, stage)({"entered": (h, lengths), "targets": [[4, 9, 17]]})
    losses["loss"].backward()
    assert all(p.grad is not None and p.grad.any() for p in e.model.trainable().values())


def test_what_they_need(make: Callable[..., Ears], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="phones goes with pronunciation: true"):
        make(phones=True, spelling=True)
    with pytest.raises(UsageError, match="whole_weight=0: must be above 0"):
        make(whole_weight=0.0)
    path = tmp_path / "run.yaml"
    model = "model: {prompt_vectors: 2, spelling: true, pronunciation: true, phones: true}\n"
    for stage, message in (
        ("{objectives: {phones: 1}, trains: [phones]}", ""),
        ("{objectives: {phones: 1}, trains: [steering, phones]}", ""),
        ("{objectives: {ctc: 1, phones: 1}, trains: [steering, projector, phones]}", ""),
        ("{objectives: {phones: 1, copy: 1}, trains: [phones, prompt_vectors]}", ""),
        ("{objectives: {ctc: 1}, trains: [projector, phones]}", "no objective teaches them"),
        ("{objectives: {phones: 1}, trains: [projector, phones]}", "no gradient"),
        ("{objectives: {phones: 1}, trains: [prompt_vectors]}", "gradient"),
    ):
        path.write_text(f"{model}stages: [{stage}]")
        if message:
            with pytest.raises(UsageError, match=message):
                load_recipe(path)
        else:
            load_recipe(path)
    with pytest.raises(UsageError, match=r"phones: nothing hears them: set model.phones: true"):
        load_recipe(path, ["model.phones=false", "stages.0.trains=[phones]"])

"""Batches keep to their budget and lose nothing; loading keeps order and counts what is broken."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from steermoe.data import Example, read_manifest
from steermoe.data.batching import by_duration, load_batches, measured
from steermoe.errors import AudioError, DataError

lengths = st.lists(st.floats(0.05, 40.0, allow_nan=False), max_size=120)


@settings(max_examples=80, deadline=None)
@given(lengths, st.floats(1.0, 120.0), st.integers(0, 99), st.integers(0, 3), st.none() | st.integers(1, 9))
def test_every_index_once_within_the_budget(
    durations: list[float], budget: float, seed: int, epoch: int, most: int | None
) -> None:
    batches = by_duration(durations, budget, seed, epoch, most)
    assert sorted(i for batch in batches for i in batch) == list(range(len(durations)))
    assert batches == by_duration(durations, budget, seed, epoch, most)
    for batch in batches:
        assert len(batch) == 1 or max(durations[i] for i in batch) * len(batch) <= budget
        assert most is None or len(batch) <= most


def test_batches_are_full_alike_and_new_every_epoch() -> None:
    rng = np.random.default_rng(0)
    durations = rng.uniform(0.5, 15.0, 2_000).tolist()
    batches = by_duration(durations, 60.0, seed=1)
    padded = sum(len(b) * max(durations[i] for i in b) for b in batches)
    assert padded < 1.15 * sum(durations)  # little padding
    assert len(batches) < 1.25 * sum(durations) / 60  # few batches that are not full
    means = [np.mean([durations[i] for i in b]) for b in batches]
    assert abs(np.corrcoef(means, range(len(means)))[0, 1]) < 0.2  # not from short to long
    others = by_duration(durations, 60.0, seed=1, epoch=1), by_duration(durations, 60.0, seed=2)
    for other in others:
        assert other != batches
        assert not {tuple(sorted(b)) for b in other if len(b) > 2} & {tuple(sorted(b)) for b in batches if len(b) > 2}


@pytest.mark.parametrize(("seconds", "items"), [(0.0, None), (-1.0, None), (float("nan"), None), (9.0, 0)])
def test_a_batch_must_have_room(seconds: float, items: int | None) -> None:
    with pytest.raises(DataError, match="must have room"):
        by_duration([1.0], seconds, max_items=items)


def clips(count: int) -> list[Example]:
    return [Example(id=str(i), audio=Path(f"{i}.wav"), text="") for i in range(count)]


def test_loading_keeps_order_whatever_the_threads_do() -> None:
    examples, batches = clips(40), by_duration([1.0] * 40, 4.0, seed=3)

    def load(example: Example, batch: int) -> int:
        time.sleep(0.001 * (int(example.id) % 5))
        assert int(example.id) in batches[batch]
        return int(example.id)

    loaded = list(load_batches(examples, batches, load, workers=4))
    assert [b.items for b in loaded] == [b.indices for b in loaded] == batches
    assert [b.number for b in loaded] == list(range(len(batches)))
    resumed = list(load_batches(examples, batches[6:], lambda example, batch: load(example, batch + 6)))
    assert [b.items for b in resumed] == batches[6:]


def test_broken_files_are_skipped_and_listed() -> None:
    def load(example: Example, batch: int) -> str:
        if example.id in ("5", "6", "7"):
            raise AudioError(f"{example.audio}: broken")
        return example.id

    batches = [[i, i + 1] for i in range(0, 400, 2)]
    loader = load_batches(clips(400), batches, load)
    loaded = list(loader)
    assert loader.skipped == [(5, "5.wav: broken"), (6, "6.wav: broken"), (7, "7.wav: broken")]
    assert [b.indices for b in loaded[:5]] == [
        [0, 1],
        [2, 3],
        [4],
        [8],
        [8, 9],
    ]  # of batch 3 nothing is left: 8 stands in
    assert [b.number for b in loaded] == list(range(200))
    with pytest.raises(DataError, match=r"3 of 400 audio files cannot be read, more than 0\.5%.*7\.wav"):
        list(load_batches(clips(400), batches, load, max_skipped=0.005))


def test_other_errors_are_not_swallowed() -> None:
    def load(example: Example, batch: int) -> str:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        list(load_batches(clips(4), [[0], [1]], load))


def test_works_ahead_but_not_without_limit_and_stops_with_its_reader() -> None:
    started: list[str] = []
    before = threading.active_count()

    def load(example: Example, batch: int) -> str:
        started.append(example.id)
        return example.id

    batches = iter(load_batches(clips(100), [[i] for i in range(100)], load, workers=2))
    assert next(batches).items == ["0"]
    time.sleep(0.05)
    assert 2 <= len(started) <= 6
    batches.close()  # type: ignore[attr-defined]
    assert len(started) <= 6 and threading.active_count() == before


def test_durations_come_from_the_manifest_or_the_header(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(24_000), 16_000)
    examples = [
        Example("a", path, ""),
        Example("b", path, "", start=0.5),
        Example("c", path, "", start=0.5, end=1.0),
        Example("d", tmp_path / "absent.wav", "", duration=7.0),
    ]
    examples.append(Example("e", tmp_path / "absent.wav", ""))
    known, unreadable = measured(examples)
    assert [clip.duration for clip in known] == [1.5, 1.0, 0.5, 7.0, None]
    assert len(unreadable) == 1 and unreadable[0][0] == 4 and "absent.wav: no such file" in unreadable[0][1]


def test_nothing_that_can_be_read_ends() -> None:
    def load(example: Example, batch: int) -> str:
        raise AudioError("broken")

    with pytest.raises(DataError, match="cannot be read"):
        list(load_batches(clips(3), [[0], [1]], load, max_skipped=1.0))


@pytest.mark.parametrize("budget", [32.0, 100.0, 400.0])
def test_padding_of_audiobooks_is_at_most_a_tenth(budget: float) -> None:
    """LibriSpeech's training set: 1.4 to 17 s, 12.3 on average, most of them between 12 and 16."""
    rng = np.random.default_rng(0)
    lengths = np.where(rng.random(20_000) < 0.78, rng.triangular(9, 15.5, 17, 20_000), rng.uniform(1.4, 12, 20_000))
    assert 12 < lengths.mean() < 12.6
    batches = by_duration(lengths.tolist(), budget, seed=1)
    padded = sum(len(b) * lengths[b].max() for b in batches)
    assert lengths.sum() > 0.9 * padded


def test_memory_is_flat_over_a_long_manifest(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(1_600), 16_000)
    line = json.dumps(
        {"audio": "a.wav", "text": "what is said in a clip of usual length, more or less", "duration": 0.1}
    )
    (tmp_path / "m.jsonl").write_text((line + "\n") * 100_000)

    def resident() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

    before = resident()
    examples = read_manifest(tmp_path / "m.jsonl")
    assert resident() - before < 150  # MiB: what stays is a clip's fields
    batches = by_duration([e.duration or 0 for e in examples], 2.0)
    heard, highest = 0, 0.0
    for batch in load_batches(examples, iter(batches), lambda example, _: np.zeros(16_000, np.float32)):
        heard += len(batch.items)
        if batch.number == 500:
            before = resident()
        highest = max(highest, resident()) if batch.number % 500 == 0 else highest
    assert heard == 100_000 and highest - before < 25

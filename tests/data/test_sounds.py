"""Sounds and questions: the table, the plans, the composition and Qt's bundles; the packages themselves in the slow test."""

from __future__ import annotations

import struct
import zlib
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from steermoe.data import sounds
from steermoe.data.questions import rows, speak
from steermoe.data.sounds import KINDS, NUMBERS, compose, plan
from steermoe.errors import DataError
from steermoe.evaluation import gap
from steermoe.evaluation.grading import exact, plain


def test_every_class_is_tested_on_packages_that_it_did_not_train_on() -> None:
    sides: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for sound in sounds.sounds():
        sides[sound.label][sound.side].add(sound.package)
    assert len(sides) == 32
    for label, packages in sides.items():
        assert set(packages) == {"train", "test"}, label
        assert not packages["train"] & packages["test"], label
    assert {sound.package for sound in sounds.sounds()} == set(sounds.PACKAGES)
    assert max(Counter((s.package, s.file) for s in sounds.sounds()).values()) == 1
    assert len({plain(label) for label in sides}) == 32 and all(exact(label, [label]) for label in sides)


def test_plans_are_pure_and_their_answers_true() -> None:
    told = [plan("test", i) for i in range(400)]
    assert told == [plan("test", i) for i in range(400)] and told != [plan("train", i) for i in range(400)]
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for row in told:
        labels, question, answer = row["labels"], row["prompt"], row["text"]
        answers[row["kind"]][answer] += 1
        if row["kind"] == "what":
            assert labels == [answer]
        elif row["kind"] == "is there":
            asked = question.removeprefix("Is there the sound of: ").partition("?")[0]
            assert (asked in labels) == (answer == "yes")
        elif row["kind"] == "how many":
            assert NUMBERS[len(set(labels)) - 1] == answer
        else:
            assert answer == labels[0] and all(label in question for label in labels)
    assert set(answers) == set(KINDS) and all(count.total() == 100 for count in answers.values())
    assert 0.35 < answers["is there"]["yes"] / 100 < 0.65  # saying yes to all earns half
    named = [question_first(row["prompt"]) == row["text"] for row in told if row["kind"] == "which first"]
    assert 0.35 < np.mean(named) < 0.65  # and so does naming the first of two


def question_first(question: str) -> str:
    return question.removeprefix("Which came first: ").partition(" or ")[0]


def test_a_composition_holds_its_sounds_one_after_another_equally_loud() -> None:
    time = np.arange(sounds.RATE * 4) / sounds.RATE
    heard = {"low": [0.01 * np.sin(2 * np.pi * 200 * time)], "high": [0.9 * np.sin(2 * np.pi * 3000 * time)]}
    clip = compose(heard, ["high", "low"], seed=1)
    assert clip.dtype == np.float32 and np.array_equal(clip, compose(heard, ["high", "low"], seed=1))
    assert not np.array_equal(clip[:16_000], compose(heard, ["high", "low"], seed=2)[:16_000])
    assert np.abs(clip).max() <= 0.991 and 2 * 2.5 < len(clip) / sounds.RATE < 2 * 2.5 + 2 * 0.35 + 0.6
    first, second = clip[sounds.RATE : 2 * sounds.RATE], clip[4 * sounds.RATE : 5 * sounds.RATE]
    for part, hertz in ((first, 3000), (second, 200)):
        assert np.argmax(np.abs(np.fft.rfft(part))) == hertz
        assert np.sqrt(np.mean(part**2)) == pytest.approx(sounds.LEVEL, rel=0.05)


def test_silence_at_the_ends_is_trimmed() -> None:
    tone = np.concatenate([np.zeros(8_000), np.full(4_000, 0.5), np.zeros(9_000)]).astype(np.float32)
    assert 4_000 <= len(sounds.trimmed(tone)) <= 4_000 + 2 * 320
    assert len(sounds.trimmed(np.zeros(500, np.float32))) == 500


def bundle(files: dict[str, tuple[bytes, bool]]) -> bytes:
    """A resource bundle as Qt 5.15 writes it: one folder, version 3."""
    names, offsets, contents, nodes = b"", [], b"", b""
    for name in ("", "sounds", *files):
        offsets.append(len(names))
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
    nodes += struct.pack(">IHIIQ", offsets[0], 2, 1, 1, 0)
    nodes += struct.pack(">IHIIQ", offsets[1], 2, len(files), 2, 0)
    for (content, packed), at in zip(files.values(), offsets[2:], strict=True):
        kept = struct.pack(">I", len(content)) + zlib.compress(content) if packed else content
        nodes += struct.pack(">IHHHIQ", at, int(packed), 0, 0, len(contents), 0)
        contents += struct.pack(">I", len(kept)) + kept
    start = 24
    head = b"qres" + struct.pack(">5I", 3, start, start + len(nodes), start + len(nodes) + len(contents), 0)
    return head + nodes + contents + names


def test_bundles_are_read(tmp_path: Path) -> None:
    files = {"a.ogg": (b"plain", False), "b.wav": (b"packed" * 50, True)}
    (tmp_path / "x.rcc").write_bytes(bundle(files))
    assert sounds._bundle(tmp_path / "x.rcc") == {name: content for name, (content, _) in files.items()}
    (tmp_path / "y.rcc").write_bytes(b"no bundle")
    with pytest.raises(DataError, match="not a resource bundle"):
        sounds._bundle(tmp_path / "y.rcc")


def test_unknown_splits_are_refused() -> None:
    with pytest.raises(DataError, match="no split 'dev'"):
        sounds.load("dev")


class Beeper:
    voices = ("any",)

    def speak(self, text: str, voice: str, speed: float = 1.0) -> tuple[np.ndarray, int]:
        return np.full(240 * len(text), 0.1, np.float32), 24_000


def test_questions_have_answers_that_their_own_grading_takes(tmp_path: Path) -> None:
    told = rows()
    assert Counter(row["kind"] for row in told) == {"knowledge": 20, "arithmetic": 20, "instruction": 20}
    assert len({row["id"] for row in told}) == len({row["prompt"] for row in told}) == 60
    for row in told:
        asked = {"question": row["prompt"], "reference": row["text"], **row}
        assert gap.is_right(asked, row["text"]) and not gap.is_right(asked, "I do not know.")
        assert not gap.is_right(asked, row["prompt"]), row["prompt"]  # an echo is no answer
    speak(tmp_path, Beeper())
    assert len(list(tmp_path.glob("*.flac"))) == 60 and (tmp_path / "manifest.jsonl").is_file()


@pytest.mark.slow
def test_the_packages_hold_what_the_table_says() -> None:
    for side in ("train", "test"):
        found = sounds.recordings(side)
        assert len(found) == 32
        for label, clips in found.items():
            assert all(len(clip) > 0.15 * sounds.RATE and np.abs(clip).max() > 1e-3 for clip in clips), label
    assert len(sounds.load("test")) == 400


def _alike(a: np.ndarray, b: np.ndarray) -> float:
    """The highest correlation of the loudest second of one recording with any place of the other: 1 where it is in there."""
    long, short = (a, b) if len(a) >= len(b) else (b, a)
    size = min(len(short), sounds.RATE)
    energy = np.cumsum(np.pad(short.astype(np.float64) ** 2, (1, 0)))
    start = int((energy[size:] - energy[:-size]).argmax())
    piece = short[start : start + size].astype(np.float64)
    piece -= piece.mean()
    padded = 1 << (len(long) + size - 1).bit_length()
    products = np.fft.irfft(np.fft.rfft(long, padded) * np.conj(np.fft.rfft(piece, padded)), padded)[
        : len(long) - size + 1
    ]
    there = np.cumsum(np.pad(long.astype(np.float64) ** 2, (1, 0)))
    there = there[size:] - there[:-size]
    return float(np.max(np.abs(products) / np.sqrt(np.maximum(there, 1e-3 * there.max()) * (piece @ piece) + 1e-12)))


def test_likeness_finds_a_recording_in_another() -> None:
    rng = np.random.default_rng(0)
    whole = rng.standard_normal(4 * sounds.RATE)
    assert _alike(whole, 0.1 * whole[20_000:50_000]) > 0.99
    assert _alike(whole, rng.standard_normal(sounds.RATE)) < 0.1


@pytest.mark.slow
def test_no_recording_of_the_test_is_in_the_training_set() -> None:
    """Packages borrow from each other: the same recording under two names would be found here."""
    train, test = sounds.recordings("train"), sounds.recordings("test")
    for name, clips in test.items():
        for other, known in train.items():
            found = max(_alike(a, b) for a in clips for b in known)
            assert found < 0.6, (name, other, found)

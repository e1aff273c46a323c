"""Synthetic speech: a pure function of the utterance's number, whole shards, and splits that do not mix."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from steermoe.data import load_source, synth, voices
from steermoe.data.fotaq import line_key
from steermoe.data.texts import as_sentence, number_in_words, numbers_in_digits, simple_texts
from steermoe.errors import DataError


class Tone:
    """An engine that says a text as a tone as long as the text."""

    def speak(self, text: str, voice: str, pace: float) -> tuple[np.ndarray, int]:
        n = int(800 * len(text) / pace)
        return np.sin(np.arange(n) * 0.1).astype(np.float32) * 3, 16_000


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    said = [f"Sentence number {number_in_words(i)}." for i in range(8000)]
    monkeypatch.setenv("STEERMOE_CACHE", str(tmp_path))
    monkeypatch.setattr(synth, "SHARD", 4)
    monkeypatch.setattr(synth, "_engine", lambda _: Tone())
    monkeypatch.setattr(synth, "_texts", lambda _=synth.RECIPE: said)

    def here(shards: list[int], recipe: str, workers: int = 2) -> list[Path]:
        return [synth.make_shard(shard, recipe) for shard in shards]

    monkeypatch.setattr(synth, "make_shards", here)  # other processes would not see these texts
    return said


def test_plan_is_a_pure_function_of_the_number() -> None:
    plans = [synth.plan(i) for i in range(400)]
    assert plans == [synth.plan(i) for i in range(400)]
    assert {str(p["engine"]) for p in plans} == {"hibari", "flite", "kokoro"}
    assert all(0.85 <= p["pace"] <= 1.2 and 0.78 <= p["tract"] <= 1.25 for p in plans)
    assert not any(name in str(synth.plan(i)["voice"]) for i in range(9_000) for name in synth.HELD_OUT)
    assert all(synth.plan(i)["engine"] != "kokoro" for i in range(synth.KOKORO_UNTIL, synth.KOKORO_UNTIL + 500))
    assert all(synth.plan(i, synth.TALK)["engine"] != "kokoro" for i in range(500))
    assert all(synth.plan(i, synth.SIMPLE)["engine"] == "hibari" for i in range(50))
    blends = [synth.plan(i, recipe) for recipe in (synth.VOICES, synth.VOCABULARY, synth.SHORT) for i in range(2000)]
    assert {p["engine"] for p in blends} == {"kokoro"} and len({p["voice"] for p in blends}) > 4500
    assert not any(name in str(p["voice"]) for p in blends for name in synth.HELD_OUT)
    assert {synth.plan(i, synth.UNHEARD)["voice"] for i in range(200)} == set(synth.HELD_OUT)


def test_what_a_recipe_says_is_drawn_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STEERMOE_CACHE", str(tmp_path))
    drawn: list[int] = []
    monkeypatch.setitem(synth.TEXTS, synth.TALK, lambda: drawn.append(1) or ["Ça va?", "Yes."])
    synth._texts.cache_clear()
    assert synth._texts(synth.TALK) == ["Ça va?", "Yes."]
    synth._texts.cache_clear()  # another process
    assert synth._texts(synth.TALK) == ["Ça va?", "Yes."] and drawn == [1]
    synth._texts.cache_clear()


def test_unheard_texts_are_in_no_other_split(texts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synth, "wordnet_texts", lambda: texts)
    unheard = synth.TEXTS[synth.UNHEARD]()
    assert len(set(unheard)) == 200 and unheard[0] == texts[19 * 4]
    assert not set(unheard) & {e.text for e in load_source("synth:train/40")}


def test_a_shard_is_its_manifest_and_its_speech(texts: list[str]) -> None:
    shard = synth.make_shard(3)
    rows = [json.loads(line) for line in (shard / "manifest.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows] == texts[12:16]
    for row in rows:
        samples, rate = soundfile.read(shard / row["audio"])
        assert rate == 16_000 and len(samples) / rate == pytest.approx(row["duration"])
        assert np.abs(samples).max() <= 0.71 and not samples[:1000].any()


def test_splits_never_share_a_text(texts: list[str]) -> None:
    train, valid = load_source("synth:train/40"), load_source("synth:valid/40")
    assert len(train) == 38 * 4 and len(valid) == 2 * 4
    assert not {e.text for e in train} & {e.text for e in valid}
    assert len(load_source("synth:talk/3")) == 12 and len(load_source("synth:simple/2")) == 8
    assert [e.text for e in load_source("synth:voices/3-5")] == texts[3:5]  # a quarter of the others' shards
    assert [e.id for e in load_source("synth:train/10-40")] == [e.id for e in train[10 * 4 :]]
    assert all(e.language == "en" for e in train) and len({e.id for e in train}) == len(train)


@pytest.mark.parametrize(
    "split", ["test", "train/0", "train/9999", "train/few", "valid/19", "train/9-9", "train/-3", "valid/20-39"]
)
def test_a_wrong_split_says_what_there_is(texts: list[str], split: str) -> None:
    with pytest.raises(DataError, match=r"train, valid, simple, talk|ask for 20 or more"):
        load_source(f"synth:{split}")


def test_voices_say_no_line_of_a_test_and_nothing_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voices, "wordnet_texts", lambda seed: [f"Example {n}." for n in range(200)])
    monkeypatch.setattr(voices, "talk_texts", lambda seed, count: ["EXAMPLE 7!"] + [f"Talk {n}?" for n in range(200)])
    monkeypatch.setattr(voices, "sentences", lambda count: [f"Turn on lamp {n}." for n in range(200)])
    monkeypatch.setattr(voices, "test_lines", lambda: frozenset({"talk 3", "turn on lamp 0"}))
    monkeypatch.setattr(voices, "examples", lambda: Counter({"example": 3, "lamp": 1}))
    texts = voices.voice_texts(["example 5"], count=150)
    assert texts == voices.voice_texts(["example 5"], count=150) and len({line_key(t) for t in texts}) == 150
    assert not {"Talk 3?", "Turn on lamp 0.", "Example 5."} & set(texts)
    assert [sum(t.startswith(kind) for t in texts) > 2 for kind in ("Example", "Talk", "Turn")] == [True] * 3


@given(st.lists(st.text("abc ", max_size=9), max_size=9), st.lists(st.sampled_from("abc"), max_size=5))
def test_what_is_said_next_says_most_of_what_was_not_said(texts: list[str], before: list[str]) -> None:
    often, said = Counter({"a": 5, "b": 2, "ab": 1}), Counter(before)
    ordered = voices.by_worth(texts, said, often)
    assert sorted(ordered) == sorted(texts) and said == Counter(before)
    for i, text in enumerate(ordered):

        def worth(text: str) -> float:
            new, heard = 0.0, said.copy()
            for word in text.split():
                new += often[word] / 2 ** heard[word]
                heard[word] += 1
            return new / (30 + len(text))

        assert all(worth(text) >= worth(later) - 1e-12 for later in ordered[i:])
        said.update(text.split())


def test_numbers_in_words() -> None:
    assert number_in_words(0) == "zero" and number_in_words(13) == "thirteen" and number_in_words(40) == "forty"
    assert number_in_words(342) == "three hundred forty two"
    assert number_in_words(999_100) == "nine hundred ninety nine thousand one hundred"


@given(st.integers(10, 999_999))
def test_numbers_in_digits_undo_numbers_in_words(n: int) -> None:
    assert numbers_in_digits(f"For {number_in_words(n)} days.") == f"For {n} days."
    assert numbers_in_digits(as_sentence(number_in_words(n))) == f"{n}."


@pytest.mark.parametrize(
    ("spoken", "written"),
    [
        ("One hundred and five, two hundred thousand five hundred and six.", "105, 200506."),
        ("Add fifty three-hours to my twenty-minute timer.", "Add 53-hours to my 20-minute timer."),
        ("Forty or fifty, at ninety five °", "40 or 50, at 95 °"),
        ("Press one, two or nine: someone's tenth attention.", "Press one, two or nine: someone's tenth attention."),
        ("The twenty first, the thirty-second, the eightieth, tens.", "The twenty first, the thirty-second, the eightieth, tens."),
    ],
)  # fmt: skip
def test_numbers_in_digits(spoken: str, written: str) -> None:
    assert numbers_in_digits(spoken) == written


def test_simple_texts_need_nothing_and_differ() -> None:
    texts = simple_texts()
    assert len(texts) == len(set(texts)) == 8000 and texts == simple_texts() and texts != simple_texts(1)

"""Every suite over a tiny random model: the same for every batch size, order, shard and interruption; nothing left out."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from steermoe.data import Example
from steermoe.data.augment import RATE
from steermoe.errors import DataError, SteerMoEError, UsageError
from steermoe.evaluation import predictions, report
from steermoe.evaluation.collect import Shard
from steermoe.evaluation.compare import compare_runs
from steermoe.evaluation.listener import Adapter
from steermoe.evaluation.robustness import CONDITIONS, telephone, under
from steermoe.evaluation.suites import SUITES, Options, examples_for, suite
from steermoe.inference.ears import Ears

Speech = Callable[..., np.ndarray]
WORDS = ["very well", "quick brown fox", "the text above", "user", "yes", "no"]


class Parrot:
    """A listener that says how long a clip is, and repeats questions: instant, for what concerns no model."""

    name, fingerprint = "parrot", "0123456789abcdef"

    def transcribe(self, clips: list[np.ndarray]) -> list[str]:
        return [f"word {len(clip)}" for clip in clips]

    hear = transcribe

    def answer(self, questions: list[str], clips: list[Any]) -> list[str]:
        return [question or "yes" for question in questions]

    def own_decoder(self, language: str | None = "en") -> Any:
        return self.transcribe

    def about(self) -> dict[str, Any]:
        return {"who": "parrot"}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory, speech: Speech) -> list[Example]:
    """Six clips with a question each; also an unreadable one."""
    root = tmp_path_factory.mktemp("suites")
    found = []
    for i, text in enumerate(WORDS):
        soundfile.write(root / f"{i}.wav", speech(0.3 + 0.1 * i, seed=i), RATE)
        more = {"answers": [text, text, "maybe"], "kind": None} | ({"choices": [text, "other"]} if i == 1 else {})
        found.append(Example(f"clip-{i}", root / f"{i}.wav", text, prompt=f"what is {i}?", more=more))
    (root / "broken.wav").write_bytes(b"nothing")
    return [*found, Example("broken", root / "broken.wav", "lost", prompt="what?")]


def scores(result: dict[str, Any]) -> dict[str, Any]:
    """A result without what depends on the clock, or is allowed to differ."""
    text = json.loads(json.dumps(result, allow_nan=False))

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            clock = ("rtfx", "latency", "provenance", "shard")
            return {key: strip(item) for key, item in value.items() if key not in clock}
        return value

    stripped: dict[str, Any] = strip(text)
    return stripped


def texts(folder: Path) -> list[Any]:
    rows = predictions.read_finished(folder / "predictions.jsonl")
    return [{key: value for key, value in row.items() if key not in ("seconds", "waited")} for row in rows]


@pytest.fixture(scope="module")
def listener(ears: Ears) -> Adapter:
    return Adapter(ears)


class Cascade(Adapter):
    """The tiny encoder has no decoder that could write: a text by length stands in for one."""

    def own_decoder(self, language: str | None = "en") -> Any:
        return lambda batch: [f"heard {len(clip) % 7}" if len(clip) > 7_000 else "" for clip in batch]


@pytest.mark.parametrize("name", ["asr", "aqa", "gap", "robustness", "silence"])
def test_batch_size_order_shards_and_a_kill_change_nothing(
    name: str, ears: Ears, clips: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steermoe.evaluation.listener.MAX_ANSWER", 4)
    some = dict(list(CONDITIONS.items())[::4])  # noise, a speed, a gain
    monkeypatch.setattr("steermoe.evaluation.robustness.CONDITIONS", some)
    who, run = Cascade(ears), suite(name)
    whole = run(who, Options(clips, "mine", batch_size=3, out=tmp_path / "whole"))
    assert whole["suite"] == name and whole["n"] == 6
    assert whole["failures"]["undecodable"] == 1 and whole["undecodable"][0]["id"] == "broken"
    assert len(whole["provenance"]["adapter_sha256"]) == 64 and whole["provenance"]["pair"]["llm"]["weights"]
    assert json.loads((tmp_path / "whole" / "metrics.json").read_text()) == json.loads(json.dumps(whole))

    one = run(who, Options(clips, "mine", batch_size=1, out=tmp_path / "one"))
    assert scores(one) == scores(whole) and texts(tmp_path / "one") == texts(tmp_path / "whole")

    turned = run(who, Options(clips[::-1], "mine", out=tmp_path / "turned"))
    assert turned["metrics"] == pytest.approx(whole["metrics"])
    assert texts(tmp_path / "turned") == texts(tmp_path / "whole")[::-1]

    for number in (1, 2, 3):
        part = run(who, Options(clips, "mine", out=tmp_path / "parts", shard=Shard(number, 3)))
        assert part["shard"] == f"{number}/3" and part["n"] == 2
    silent = Cascade(ears)
    monkeypatch.setattr(silent, "transcribe", None)  # merging computes nothing
    monkeypatch.setattr(silent, "answer", None)
    merged = run(silent, Options(clips, "mine", out=tmp_path / "parts"))
    assert scores(merged) == scores(whole) and texts(tmp_path / "parts") == texts(tmp_path / "whole")
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == ["metrics.json", "predictions.jsonl"]

    calls, append = [], predictions.append

    def killed(path: Path, rows: Any) -> None:
        append(path, rows)
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(predictions, "append", killed)
    with pytest.raises(KeyboardInterrupt):
        run(who, Options(clips, "mine", batch_size=2, out=tmp_path / "killed"))
    resumed = run(who, Options(clips, "mine", batch_size=2, out=tmp_path / "killed"))
    assert scores(resumed) == scores(whole) and texts(tmp_path / "killed") == texts(tmp_path / "whole")


def test_text_is_untouched_and_a_touched_one_is_seen(
    ears: Ears, listener: Adapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steermoe.evaluation.text.NEW_TOKENS", 4)
    result = suite("text")(listener, Options(out=tmp_path))
    assert result["untouched"] and set(result["metrics"].values()) == {1.0}
    assert len(predictions.read_finished(tmp_path / "predictions.jsonl")) == result["n"] == 16
    weight = ears.model.llm.model.norm.weight.data
    kept = weight.clone()
    weight.mul_(1.0001)
    touched = suite("text")(listener, Options())
    weight.copy_(kept)
    assert not touched["untouched"] and touched["metrics"]["logits_equal"] < 1
    with pytest.raises(UsageError, match="leave out --endpoint"):
        suite("text")(Parrot(), Options())


def test_two_answering_runs_are_compared(clips: list[Example], tmp_path: Path) -> None:
    class Knowing(Parrot):
        name = "knowing"

        def answer(self, questions: list[str], clips: list[Any]) -> list[str]:
            return [WORDS[int(q.split("is ")[1][0])] for q in questions]

    known = clips[:6]
    before = suite("aqa")(Parrot(), Options(known, "mine", out=tmp_path / "a"))
    after = suite("aqa")(Knowing(), Options(known, "mine", out=tmp_path / "b"))
    assert before["metrics"]["accuracy"] == 0 and after["metrics"]["accuracy"] == after["metrics"]["any"] == 1
    assert after["metrics"]["annotators"] == pytest.approx(2 / 3)
    assert {kind: part["n"] for kind, part in after["groups"].items()} == {
        "choice": 1,
        "single word": 3,
        "yes or no": 2,
    }
    found = compare_runs(tmp_path / "a", tmp_path / "b")
    assert (found["before"], found["after"], found["n"], found["measure"]) == (1, 0, 6, "wrong answers")
    assert found["p_value"] < 0.01 and found["interval"] == [-1, -1]
    suite("asr")(Parrot(), Options(known, "mine", out=tmp_path / "c"))
    with pytest.raises(UsageError, match="has suite aqa"):
        compare_runs(tmp_path / "a", tmp_path / "c")
    with pytest.raises(DataError, match="no finished run"):
        compare_runs(tmp_path / "a", tmp_path / "nowhere")


def test_annotators_that_come_one_a_row_are_of_one_question(clips: list[Example]) -> None:
    class Sure(Parrot):
        def answer(self, questions: list[str], clips: list[Any]) -> list[str]:
            return ["yes"] * len(questions)

    said = {"is it?": ["yes", "no", "yes"], "was it?": ["no", "no", "yes"]}
    rows = [Example(f"{q}{i}", clips[0].audio, a, prompt=q) for q, told in said.items() for i, a in enumerate(told)]
    for order in (rows, rows[::-1]):
        result = suite("aqa")(Sure(), Options(order, "mine"))
        metrics = result["metrics"]
        assert (result["n"], metrics["accuracy"], metrics["any"], metrics["annotators"]) == (2, 0.5, 1.0, 0.5)
        assert metrics["unanimous"] is None


@pytest.mark.parametrize("change", [{"answers": "yes"}, {"answers": []}, {"choices": ["x", "y"]}, {"answers": ["!"]}])
def test_questions_that_cannot_be_judged_are_refused(clips: list[Example], change: dict[str, Any]) -> None:
    wrong = [replace(clips[0], more=change), *clips[1:]]
    with pytest.raises(DataError, match="clip-0"):
        suite("aqa")(Parrot(), Options(wrong, "mine"))
    with pytest.raises(DataError, match="clip-0"):
        suite("aqa")(Parrot(), Options([replace(clips[0], prompt=None)], "mine"))


def test_gap_tells_the_three_ways_apart(clips: list[Example]) -> None:
    asked = [replace(clips[4], more={"kind": "instruction"}), replace(clips[0], prompt="very well")]
    result = suite("gap")(Parrot(), Options(asked, "mine"))
    assert result["metrics"]["accuracy"] == 0.5  # "yes" to everything
    assert result["columns"]["text"]["accuracy"] == 0.5  # "very well" is the question, and the answer
    assert result["columns"]["cascade"]["accuracy"] == 0
    assert result["metrics"]["speech_equals_text"] == 0 and result["metrics"]["speech_judged_as_text"] == 0
    assert result["metrics"]["transcript_wer"] == 1


@pytest.mark.parametrize("name", CONDITIONS)
def test_conditions_are_what_they_say_and_the_same_every_time(name: str, speech: Speech) -> None:
    clip = speech(1.0, seed=3)
    changed = under(name, clip)
    assert changed.dtype == np.float32 and np.array_equal(changed, under(name, clip.copy()))
    assert np.isfinite(changed).all() and not np.array_equal(changed[: len(clip)], clip[: len(changed)])
    if name.startswith("noise"):
        noise = changed - clip
        measured = 10 * np.log10(np.mean(clip**2) / np.mean(noise**2))
        assert measured == pytest.approx(float(name.split()[1]), abs=0.1)
    if name.startswith("speed"):
        assert len(changed) == pytest.approx(RATE / float(name.split()[1]), rel=0.01)
    else:
        assert len(changed) == len(clip)
    if "gain -" in name:
        assert np.abs(changed).max() == pytest.approx(np.abs(clip).max() * 10**-1.5, rel=1e-3)
    if "clipped" in name:
        assert np.abs(changed).max() == 1


def test_a_telephone_carries_its_band_only() -> None:
    time = np.arange(RATE) / RATE
    low, middle, high = (np.sin(2 * np.pi * hertz * time).astype(np.float32) for hertz in (100, 1000, 5000))
    heard = telephone(low + middle + high)
    assert np.abs(heard - middle).max() < 1e-3


def test_words_where_none_were_said_are_invented(clips: list[Example], tmp_path: Path) -> None:
    class Dreamer(Parrot):
        said = ("", " .,", "uh", "thank you", "no " * 9)  # fillers and marks are no words

        def transcribe(self, clips: list[np.ndarray]) -> list[str]:
            return [self.said[round(len(clip) / RATE * 10) - 3] for clip in clips]  # by length

        def own_decoder(self, language: str | None = "en") -> Any:
            return lambda clips: ["you"] * len(clips)

    result = suite("silence")(Dreamer(), Options(clips[:5], "mine", baseline=True, out=tmp_path))
    assert result["metrics"]["accuracy"] == pytest.approx(3 / 5)
    assert result["failures"] == {"invented": 2, "repeated": 1, "undecodable": 0}
    assert result["columns"]["baseline"]["failures"] == {"invented": 5, "repeated": 0}
    report.write_report(tmp_path / "report.html", title="none", runs=[predictions.read_run(tmp_path)])
    assert "thank you" in (tmp_path / "report.html").read_text()


def test_a_suite_that_is_not_there_or_has_no_data_is_refused() -> None:
    for name, words in (("mmlu", "--suite mmlu: there are asr"), ("aqa", "--suite aqa needs --data")):
        with pytest.raises(UsageError, match=words):
            examples_for(name, None)
    assert examples_for("text", None) == ([], "")
    assert all(callable(suite(name)) for name in SUITES)


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2"])
def test_shards_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--shard"):
        Shard.parse(text)


def test_what_a_system_refuses_is_listed_and_the_rest_is_scored(clips: list[Example]) -> None:
    class Picky(Parrot):
        def transcribe(self, clips: list[np.ndarray]) -> list[str]:
            if any(len(clip) > 0.75 * RATE for clip in clips):
                raise UsageError("too long for me")
            return super().transcribe(clips)

    result = suite("asr")(Picky(), Options(clips[:6], "mine", batch_size=4))
    assert result["n"] == 5 and result["undecodable"] == [{"id": "clip-5", "error": "too long for me"}]

    class Broken(Parrot):
        def transcribe(self, clips: list[np.ndarray]) -> list[str]:
            raise SteerMoEError("the server is gone")

    with pytest.raises(SteerMoEError, match="gone"):
        suite("asr")(Broken(), Options(clips[:6], "mine"))


def mangled(folder: Path, count: int) -> list[Example]:
    """Files of any length (0 to 2 min), rate, channels and loudness, drawn by seed; some broken on purpose."""
    found = []
    for i in range(count):
        rng = np.random.default_rng(i)
        seconds = (
            rng.choice([0, 0.0001, 0.02, rng.uniform(0.05, 0.3), rng.uniform(0, 0.8)])
            if i % 120
            else rng.uniform(60, 120)
        )
        rate = int(rng.choice([2_000, 8_000, 11_025, 16_000, 44_100, 96_000] if i % 120 else [8_000]))
        shape = (int(seconds * rate), int(rng.choice([1, 2, 3, 8] if i % 120 else [1])))
        kind = rng.choice(["noise", "silence", "clipped", "nan", "constant", "click", "tone", "infinite"])
        samples = rng.normal(0, 0.1, shape)
        if kind in ("silence", "constant"):
            samples[:] = 0.0 if kind == "silence" else 0.7
        elif kind == "clipped":
            samples = np.sign(samples)
        elif kind == "tone":
            samples = np.sin(np.arange(shape[0]) * rng.uniform(0.01, 3))[:, None] * np.ones(shape[1])
        elif kind == "click":
            samples *= rng.random(shape) < 0.001
        elif shape[0] and kind in ("nan", "infinite"):
            samples[rng.integers(shape[0])] = np.nan if kind == "nan" else np.inf
        path = folder / f"{i}.wav"
        soundfile.write(path, samples, rate, subtype=str(rng.choice(["FLOAT", "DOUBLE"])))
        if rng.random() < 0.1:
            whole = path.read_bytes()
            path.write_bytes(whole[: rng.integers(len(whole))])
        more = {"choices": ["yes", "no"]} if i % 5 == 0 else {"answers": ["yes", "no", "yes"]}
        text = "yes" if i % 5 == 0 else str(rng.choice([*WORDS, "uh", "", "…", "今天"])) if i % 3 else "yes"
        found.append(Example(f"m{i}", path, text, prompt="is it?", more={"answers": ["yes"]} | more))
    return found


@pytest.mark.parametrize("name", ["asr", "aqa", "gap", "robustness", "silence"])
def test_two_hundred_mangled_inputs_are_each_scored_or_listed(
    name: str, make: Callable[..., Ears], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = mangled(tmp_path, 200)
    if name == "gap":
        inputs = [replace(example, text=example.text if example.text in WORDS else "yes") for example in inputs]
    monkeypatch.setattr("steermoe.evaluation.listener.MAX_ANSWER", 3)
    some = {key: CONDITIONS[key] for key in ("noise 10 dB", "speed 1.1", "telephone")}
    monkeypatch.setattr("steermoe.evaluation.robustness.CONDITIONS", some)
    result = suite(name)(Cascade(make(readings=1)), Options(inputs, "mangled", batch_size=16, out=tmp_path / "out"))
    rows = predictions.read_finished(tmp_path / "out" / "predictions.jsonl")
    assert [row["id"] for row in rows] == [example.id for example in inputs]
    assert all(("error" in row) != ("hypothesis" in row and bool(row["by"])) for row in rows)
    assert result["n"] + result["failures"]["undecodable"] == 200
    assert len(result["undecodable"]) == result["failures"]["undecodable"] > 20 and result["n"] > 50
    assert all(item["error"] for item in result["undecodable"])
    json.dumps(result, allow_nan=False)

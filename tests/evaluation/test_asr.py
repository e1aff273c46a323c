"""The asr suite: the whole set, nothing computed twice, nothing skipped in silence."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from steermoe.data import Example
from steermoe.errors import DataError, SteerMoEError, UsageError
from steermoe.evaluation import asr, collect, compare, evaluate_asr
from steermoe.evaluation.suites import Options

TEXTS = ["red green blue", "black white", "cat dog horse cow", "tree", "sun moon"]
HEARD = ["red green glue", "black white", "cat dog horse", "tree tree", "sun moon"]  # S, -, D, I, -


def samples_of(index: int) -> int:
    return 1_600 + 160 * index


@pytest.fixture
def examples(tmp_path: Path) -> list[Example]:
    """Clip i is 0.1 s + i * 10 ms long, which is how ``hear`` below knows it."""
    found = []
    for index, text in enumerate(TEXTS):
        path = tmp_path / f"{index}.wav"
        soundfile.write(path, np.full(samples_of(index), 0.1, dtype=np.float32), 16_000)
        found.append(Example(id=f"clip-{index}", audio=path, text=text))
    return found


class Hearing:
    """A transcriber that remembers which clips it was given, batch by batch."""

    def __init__(self, texts: list[str], fail_after: int | None = None) -> None:
        self.texts, self.fail_after, self.batches = texts, fail_after, []  # type: ignore[var-annotated]

    def __call__(self, audio: list[np.ndarray]) -> list[str]:
        if len(self.batches) == self.fail_after:
            raise KeyboardInterrupt
        indices = [(len(samples) - 1_600) // 160 for samples in audio]
        self.batches.append(indices)
        return [self.texts[index] for index in indices]


def test_the_result_has_the_promised_shape(examples: list[Example], tmp_path: Path) -> None:
    base = Hearing(TEXTS)
    base.name = "openai/whisper-base"  # type: ignore[attr-defined]
    result = evaluate_asr(
        Hearing(HEARD), examples, data="mine:test", adapter="tiny", baseline=base,
        columns={"ctc": Hearing([""] * 5)}, out=tmp_path / "out",
    )  # fmt: skip
    assert {key: result[key] for key in ("suite", "data", "n", "normalizer", "adapter")} == {
        "suite": "asr", "data": "mine:test", "n": 5, "normalizer": "english", "adapter": "tiny"}  # fmt: skip
    assert result["metrics"]["wer"] == result["metrics"]["wer_raw"] == pytest.approx(3 / 12)
    assert set(result["metrics"]) == {"wer", "cer", "wer_raw", "cer_raw"}
    low, high = result["interval"]["wer"]
    assert 0 <= low < 3 / 12 < high
    assert result["baseline"]["wer"] == 0.0
    assert result["baseline"]["name"] == "openai/whisper-base"
    assert 0 < result["baseline"]["p_value"] <= 1
    assert result["columns"]["ctc"]["wer"] == 1.0
    assert result["columns"]["ctc"]["failures"]["empty"] == 5
    assert result["rtfx"] > 0
    assert result["seconds"] == pytest.approx(sum(map(samples_of, range(5))) / 16_000, abs=1e-3)
    assert result["failures"] == {"empty": 0, "repeated": 0, "cut": 0, "undecodable": 0, "unscored": 0}
    made = result["provenance"]
    assert made["versions"]["jiwer"] and made["command"] and made["date"] and len(made["data_sha256"]) == 64
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == result
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_without_a_baseline_there_is_none(examples: list[Example]) -> None:
    result = evaluate_asr(Hearing(HEARD), examples, normalizer="none")
    assert result["baseline"] is None and result["columns"] == {}
    assert result["metrics"]["wer"] == result["metrics"]["wer_raw"]


def test_the_longest_come_first_but_rows_keep_the_order_of_the_data(examples: list[Example], tmp_path: Path) -> None:
    hearing = Hearing(HEARD)
    shuffled = [examples[i] for i in (2, 0, 4, 1, 3)]
    evaluate_asr(hearing, shuffled, batch_size=2, out=tmp_path / "out")
    assert hearing.batches == [[4, 3], [2, 1], [0]]
    rows = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [example.id for example in shuffled]
    assert [(row["reference"], row["hypothesis"]) for row in rows] == [(TEXTS[i], HEARD[i]) for i in (2, 0, 4, 1, 3)]


def test_a_run_cut_short_goes_on_where_it_was(examples: list[Example], tmp_path: Path) -> None:
    whole = evaluate_asr(Hearing(HEARD), examples, batch_size=2, data="d", adapter="a")
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        evaluate_asr(Hearing(HEARD, fail_after=1), examples, batch_size=2, data="d", adapter="a", out=out)
    path = out / "predictions.jsonl"
    path.write_text(path.read_text() + '{"id": "clip-2", "hypoth')  # and killed within a line
    rest = Hearing(HEARD)
    result = evaluate_asr(rest, examples, batch_size=2, data="d", adapter="a", out=out)
    assert rest.batches == [[2, 1], [0]]
    timing = {"rtfx": 0, "latency": 0, "provenance": 0}
    assert result | timing == whole | timing
    assert result["provenance"]["data_sha256"] == whole["provenance"]["data_sha256"]
    again = Hearing(HEARD)
    assert evaluate_asr(again, examples, data="d", adapter="a", out=out)["rtfx"] == result["rtfx"]
    assert again.batches == []


@pytest.mark.parametrize("change", [{"adapter": "other"}, {"data": "other"}, {"fingerprint": "0123"}])
def test_what_another_adapter_heard_is_not_reused(
    examples: list[Example], tmp_path: Path, change: dict[str, str]
) -> None:
    same = {"data": "d", "adapter": "a", "out": tmp_path / "out"}
    evaluate_asr(Hearing(HEARD), examples, **same)  # type: ignore[arg-type]
    hearing = Hearing(TEXTS)
    result = evaluate_asr(hearing, examples, **(same | change))  # type: ignore[arg-type]
    assert sum(map(len, hearing.batches)) == 5
    assert result["metrics"]["wer"] == 0.0


def test_a_changed_reference_or_clip_is_heard_anew(examples: list[Example], tmp_path: Path) -> None:
    evaluate_asr(Hearing(HEARD), examples, out=tmp_path / "out")
    changed = [Example(id="clip-0", audio=examples[0].audio, text="another text"), *examples[1:]]
    hearing = Hearing(HEARD)
    evaluate_asr(hearing, changed, out=tmp_path / "out")
    assert hearing.batches == [[0]]


def test_a_new_column_is_all_that_is_computed(examples: list[Example], tmp_path: Path) -> None:
    evaluate_asr(Hearing(HEARD), examples, out=tmp_path / "out")
    own, ctc = Hearing(HEARD), Hearing(TEXTS)
    result = evaluate_asr(own, examples, out=tmp_path / "out", columns={"ctc": ctc})
    assert own.batches == []
    assert sum(map(len, ctc.batches)) == 5
    assert result["columns"]["ctc"]["wer"] == 0.0


def test_a_clip_that_cannot_be_decoded_is_listed_counted_and_named(
    examples: list[Example], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.wav").write_bytes(b"no audio at all")
    broken = [
        Example(id="broken", audio=tmp_path / "broken.wav", text="many words that are never heard"),
        Example(id="absent", audio=tmp_path / "absent.wav", text="x"),
    ]
    result = evaluate_asr(Hearing(HEARD), [*broken, *examples], out=tmp_path / "out")
    assert result["n"] == 5
    assert result["metrics"]["wer"] == pytest.approx(3 / 12)
    assert result["failures"]["undecodable"] == 2
    assert [item["id"] for item in result["undecodable"]] == ["broken", "absent"]
    assert "absent.wav" in result["undecodable"][1]["error"]
    printed = capsys.readouterr()
    assert "broken" in printed.err and "absent" in printed.err
    assert printed.out == ""
    rows = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 7 and "hypothesis" not in rows[0]
    soundfile.write(tmp_path / "absent.wav", np.full(samples_of(3), 0.1), 16_000)  # it is there now
    assert evaluate_asr(Hearing(HEARD), [*broken, *examples], out=tmp_path / "out")["n"] == 6
    with pytest.raises(DataError, match="none of the 1 clips"):
        evaluate_asr(Hearing(HEARD), broken[:1])


def test_speed_is_audio_seconds_per_second_of_transcribing(
    examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(collect, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def slow(audio: list[np.ndarray]) -> list[str]:
        now[0] += 2 * sum(len(samples) for samples in audio) / 16_000  # half as fast as real time
        return ["tree"] * len(audio)

    load = Example.load

    def load_slowly(example: Example) -> np.ndarray:
        now[0] += 1.0  # decoding is not transcribing
        return load(example)

    monkeypatch.setattr(Example, "load", load_slowly)
    assert evaluate_asr(slow, examples, batch_size=2)["rtfx"] == pytest.approx(0.5, rel=1e-3)


def never(audio: list[np.ndarray]) -> list[str]:
    raise AssertionError("must be refused before anything is computed")


@pytest.mark.parametrize(
    ("options", "change", "error", "words"),
    [
        ({"normalizer": "klingon"}, lambda e: e, UsageError, "klingon"),
        ({"batch_size": 0}, lambda e: e, UsageError, "batch size 0"),
        ({"columns": {"reference": never}}, lambda e: e, UsageError, "'reference'"),
        ({"data": "mine"}, lambda e: [], DataError, "mine holds no clip"),
        ({}, lambda e: [*e, e[2]], DataError, "clip-2"),
        ({}, lambda e: [Example(id="x", audio=e[0].audio, text="uh")], DataError, "no word of reference"),
    ],
)
def test_what_would_spoil_the_end_is_refused_at_the_start(
    examples: list[Example], options: dict, change: Callable, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        evaluate_asr(never, change(examples), **options)


def test_a_transcriber_that_loses_clips_is_refused(examples: list[Example]) -> None:
    with pytest.raises(SteerMoEError, match="'hypothesis' gave 1 texts for 5 clips"):
        evaluate_asr(lambda audio: ["one"], examples)


def test_the_data_digest_knows_texts_and_lengths_but_no_order(examples: list[Example]) -> None:
    def digest(some: list[Example]) -> str:
        return evaluate_asr(Hearing(HEARD), some)["provenance"]["data_sha256"]

    first = digest(examples)
    assert digest(examples[::-1]) == first
    assert digest(examples[:4]) != first
    assert digest([Example(id="clip-0", audio=examples[0].audio, text="other"), *examples[1:]]) != first
    assert digest([Example(id="clip-0", audio=examples[1].audio, text=TEXTS[0]), *examples[1:]]) != first


def test_two_runs_are_compared_clip_by_clip(examples: list[Example], tmp_path: Path) -> None:
    evaluate_asr(Hearing([""] * 5), examples, out=tmp_path / "a")
    evaluate_asr(Hearing(HEARD), examples[:4], out=tmp_path / "b")
    found = compare(tmp_path / "a" / "predictions.jsonl", tmp_path / "b" / "predictions.jsonl")
    assert (found["n"], found["before"]) == (4, 1.0)
    assert found["after"] == pytest.approx(3 / 10)
    assert found["difference"] == pytest.approx(-0.7)
    assert found["p_value"] < 0.05
    with pytest.raises(DataError, match="holds no predictions"):
        compare(tmp_path / "a" / "predictions.jsonl", tmp_path / "none.jsonl")


def test_rows_that_were_there_are_said(
    examples: list[Example], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate_asr(Hearing(HEARD), examples, out=tmp_path)
    assert "earlier run" not in capsys.readouterr().err
    evaluate_asr(never, examples, out=tmp_path)
    assert "5 of 5 clips were answered by an earlier run" in capsys.readouterr().err


def test_a_manifests_own_columns_are_no_results(examples: list[Example], tmp_path: Path) -> None:
    more = {"hypothesis": "red green blue", "error": "none", "right": True, "by": "me", "scene": "park"}
    told = [replace(example, more=more) for example in examples]
    plain = evaluate_asr(Hearing(HEARD), examples)
    assert evaluate_asr(Hearing(HEARD), told, out=tmp_path)["metrics"] == plain["metrics"]
    row = json.loads((tmp_path / "predictions.jsonl").read_text().splitlines()[0])
    assert row["hypothesis"] == HEARD[0] and row["scene"] == "park" and "error" not in row


def test_the_baseline_writes_the_language_of_the_clips(examples: list[Example]) -> None:
    chinese = [replace(example, language="zh-CN") for example in examples]
    assert asr.spoken(Options(examples)) == "en" and asr.spoken(Options(examples, normalizer="basic")) is None
    assert (
        asr.spoken(Options(chinese)) == "zh"
        and asr.spoken(Options([*chinese, replace(examples[0], language="en")])) is None
    )


def test_what_cannot_be_heard_is_said_before_anything_is(examples: list[Example]) -> None:
    class Linear:
        name = fingerprint = ""

        def hear(self, clips: list[np.ndarray]) -> list[str]:
            raise UsageError("hear() reads a lexical projector")

        transcribe = never

    with pytest.raises(UsageError, match="lexical"):
        asr.run(Linear(), Options(examples, heard=True))

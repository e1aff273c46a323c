"""The report: one file that needs nothing else, says the numbers, and takes no text for markup."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from steermoe.data import Example
from steermoe.errors import DataError, UsageError
from steermoe.evaluation import evaluate_asr, write_report
from steermoe.evaluation.clips import worst_clips
from steermoe.evaluation.page import SCRIPT

PNG = b"\x89PNG\r\n\x1a\n" + b"0" * 20
EVIL = '<script>alert("1")</script> & <b>bold</b>'


class Outline(HTMLParser):
    """Tags that were opened and closed, and attributes that could fetch something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.count: dict[str, int] = {}
        self.sources: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
        if tag not in ("meta", "img", "source", "path", "circle", "br", "!doctype"):
            self.open.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "srcset", "href", "data", "action")]
        if tag == "img":
            assert dict(attrs)["alt"]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes nothing"


@pytest.fixture
def run(tmp_path: Path) -> dict[str, Any]:
    """Twelve clips, each with one error more than the last; one that is broken."""
    examples, texts = [], {}
    for index in range(12):
        path = tmp_path / f"{index}.wav"
        soundfile.write(path, np.full(1_600 + index, 0.1), 16_000)
        examples.append(Example(id=f"clip-{index}", audio=path, text="word " * 12 + "<i>"))
        texts[1_600 + index] = "word " * (12 - index) + EVIL * (index == 11)
    examples.append(Example(id="broken", audio=tmp_path / "absent.wav", text="x"))
    out = tmp_path / "out"
    result = evaluate_asr(
        lambda audio: [texts[len(samples)] for samples in audio], examples, out=out, data="mine:test", adapter="tiny",
        normalizer="none", baseline=lambda audio: ["word"] * len(audio),
    )  # fmt: skip
    return result | {"label": "after", "predictions": out / "predictions.jsonl"}


def test_the_whole_report(run: dict[str, Any], tmp_path: Path) -> None:
    curves = tmp_path / "log.jsonl"
    rows = [
        {"step": i, "loss": 5 - i * 0.4, "note": "x"} | ({"valid_wer": 0.5 - i / 20} if i % 2 else {}) for i in range(6)
    ]
    curves.write_text("\n".join(map(json.dumps, rows)) + '\n{"step": 6, "lo')
    before = run | {"label": "before", "metrics": dict.fromkeys(run["metrics"], 0.9)}
    path = write_report(
        tmp_path / "new" / "report.html", title=f"Title {EVIL}", runs=[before, run], curves=curves,
        pictures=[("Gates <1>", PNG), ("Use", PNG, PNG)],
    )  # fmt: skip
    text = path.read_text(encoding="utf-8")
    outline = Outline(text)
    assert outline.open == []
    assert outline.sources and all(source.startswith("data:") for source in outline.sources)
    assert not re.search(r"https?:|url\(|@import|<link", text)
    assert text.count("<script") == 1 and f"<script>{SCRIPT}</script>" in text
    assert "default-src 'none'" in text and "prefers-color-scheme: dark" in text
    assert outline.count["audio"] == 10  # of eleven with errors, the worst
    assert outline.count["img"] == 2 + 2  # loss and wer, and the two pictures
    for words in (
        "Before and after",
        "Worst clips",
        "Clips not heard: 1",
        "absent.wav",
        "Gates &lt;1&gt;",
        "valid_wer",
    ):
        assert words in text
    wer = run["metrics"]["wer"]
    assert f"{100 * wer:.1f} %" in text and f"{100 * (wer - 0.9):+.1f} points" in text
    assert text.index("clip-11") < text.index("clip-10") < text.index("clip-9")
    assert "clip-1<" not in text  # the best of them does not fit
    assert [item.name for item in path.parent.iterdir()] == ["report.html"]  # nothing half written is left


def test_a_report_of_one_run_has_only_what_there_is(run: dict[str, Any], tmp_path: Path) -> None:
    del run["predictions"]
    text = write_report(tmp_path / "r.html", title="One", runs=[run]).read_text(encoding="utf-8")
    assert Outline(text).open == []
    for words in ("Before and after", "Worst clips", "Training", "Routing"):
        assert words not in text


def test_silent_runs_show_their_words_and_no_audio(run: dict[str, Any], tmp_path: Path) -> None:
    judged = {
        "label": "answers",
        "suite": "aqa",
        "n": 1,
        "metrics": {"accuracy": 0.0},
        "interval": {"accuracy": [0.0, 0.1]},
        "groups": {},
        "columns": {},
    }
    judged["predictions"] = tmp_path / "judged.jsonl"
    row = {
        "id": "asked",
        "audio": str(tmp_path / "3.wav"),
        "question": "Who?",
        "reference": "a cat",
        "hypothesis": "a dog",
    }
    judged["predictions"].write_text(json.dumps(row | {"right": {"hypothesis": False}, "by": {}}) + "\n")
    for silent, players in (((), 11), ((run,), 1), ((judged,), 10), ((run, judged), 0)):
        runs = [each | {"silent": each in silent} for each in (run, judged)]
        text = write_report(tmp_path / "r.html", title="Licences", runs=runs).read_text(encoding="utf-8")
        assert Outline(text).count.get("audio", 0) == players
        assert "a dog" in text and ("Worst clips" in text) == (run not in silent)
        assert f"<span>out</span><b>{100 * run['metrics']['wer']:.1f} %</b>" in text.replace(
            "after", "out"
        )  # a tile a run
        assert "<span>answers</span><b>0.0 %</b>" in text


def test_audio_that_is_gone_or_too_long_is_said(run: dict[str, Any], tmp_path: Path) -> None:
    clips = [
        {"id": "gone", "audio": str(tmp_path / "gone.wav"), "reference": "a b", "hypothesis": "a"},
        {"id": "long", "audio": str(tmp_path / "long.wav"), "reference": "a b", "hypothesis": "b a c"},
        {
            "id": "part",
            "audio": str(tmp_path / "long.wav"),
            "start": 1.0,
            "end": 2.0,
            "reference": "",
            "hypothesis": "a",
        },
    ]
    soundfile.write(tmp_path / "long.wav", np.zeros(8_000 * 121), 8_000)
    text = write_report(tmp_path / "r.html", title="Clips", runs=[run], clips=clips).read_text(encoding="utf-8")
    assert "not on this machine" in text and "121 s of audio: too long" in text
    assert Outline(text).count["audio"] == 1
    assert "1 error, 2 words said" in text and "1 error, 0 words said" in text


def test_worst_is_what_costs_most() -> None:
    rows = [
        {"id": "short", "reference": "red", "hypothesis": "blue"},
        {"id": "long", "reference": "red green blue black", "hypothesis": "black"},
        {"id": "right", "reference": "Red!", "hypothesis": "red"},
        {"id": "broken", "reference": "red", "error": "unreadable"},
    ]
    assert [row["id"] for row in worst_clips(rows)] == ["long", "short"]
    assert [row["id"] for row in worst_clips(rows, count=1)] == ["long"]


def test_what_is_missing_is_named(run: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least one run"):
        write_report(tmp_path / "r.html", title="None", runs=[])
    with pytest.raises(DataError, match=r"gone\.jsonl: no such training log"):
        write_report(tmp_path / "r.html", title="No log", runs=[run], curves=tmp_path / "gone.jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    text = write_report(tmp_path / "r.html", title="Young", runs=[run], curves=tmp_path / "empty.jsonl").read_text()
    assert "No curve yet" in text

"""The commands that make tables of training runs: every row is a valid recipe; some run, on the tiny pair, and are not run twice."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from steermoe.data import load_source

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def command(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module: Any = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module


@pytest.fixture
def bench(pair: Any, manifest: Path, monkeypatch: Any) -> Any:
    module = command("ablation_table")
    monkeypatch.setattr(module, "PAIR", {"encoder": pair.encoder, "llm": pair.llm})
    monkeypatch.setattr(module, "DATA", {"train": [str(manifest)]})
    monkeypatch.setattr(module, "load_source", lambda _: __import__("steermoe.data").data.load_source(str(manifest)))
    return module


def test_every_row_is_a_recipe_of_its_own(bench: Any, tmp_path: Path) -> None:
    recipes = {row: bench.recipe_of(row, 0, 5, tmp_path) for row in bench.ROWS}
    assert len({r.out for r in recipes.values()}) == len(recipes) >= 19
    assert {r.stages[0].steps for r in recipes.values()} == {5}
    assert recipes["warm ce mlp"].init_from == recipes["8 experts"].out + "/adapter"
    assert recipes["ce linear"].stages[0].objectives == {"ce": 1.0} and recipes["ce linear"].init_from is None
    assert recipes["ctc lexical"].stages[0].objectives == {"ctc": 1.0}
    assert recipes["static"].stages[0].trains == ["projector"]


def test_rows_are_run_once_and_make_a_table(bench: Any, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    rows = ["top-2, balanced", "LoRA, rank 8", "warm ce linear"]
    argv = ["x", "--steps", "2", "--seeds", "1", "--limit", "3", "--out", str(tmp_path), "--rows", *rows]
    monkeypatch.setattr(sys, "argv", argv)
    bench.main()
    done = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["row"] for row in done] == ["8 experts", *rows]
    assert all(row["interval"][0] <= row["wer"] <= row["interval"][1] for row in done)
    assert done[3]["scored"] == "written" and done[0]["scored"] == "heard"
    said = capsys.readouterr().out
    assert said.splitlines()[0] == "WER on fotaq:valid after 2 steps" and said.count("1 seeds") == 4
    with open(tmp_path / "rows.jsonl", "a") as file:
        file.write('{"row": "half')
    monkeypatch.setattr(bench, "run", None)
    bench.main()
    assert capsys.readouterr().out == said


def test_distill_is_held_against_ce(pair: Any, manifest: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    module = command("distill_table")
    spoken = [replace(clip, prompt=clip.text) for clip in load_source(str(manifest))[:2]]
    scores: dict[str, Any] = {
        "metrics": {"accuracy": 0.5, "speech_judged_as_text": 1.0},
        "interval": {"accuracy": [0.2, 0.8]},
    }
    scores["columns"] = {"text": {"accuracy": 0.25}}
    for name, value in {
        "MODEL": {"encoder": pair.encoder, "llm": pair.llm, "temperature": 0.3}, "START": None,
        "DATA": {"source": str(manifest)}, "load_source": lambda _: spoken, "gap": lambda *_: scores,
    }.items():  # fmt: skip
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(sys, "argv", ["x", "--steps", "3", "--seeds", "1", "--out", str(tmp_path)])
    module.main()
    done = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["objective"] for row in done] == ["ctc", "ce", "distill"] and all(row["nats"] > 0 for row in done)
    said = capsys.readouterr().out
    assert "from their text 25.0% are right" in said and said.count("1 seeds") == 3
    monkeypatch.setattr(module, "run", None)
    module.main()
    assert capsys.readouterr().out == said

"""doctor says what a recipe will do, names what is wrong, and leaves nothing behind."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from steermoe.cli import main
from steermoe.config import build
from steermoe.training.doctor import Check, doctor, histogram
from steermoe.training.recipe import Recipe
from steermoe.training.run import train

Values = dict[str, Any]


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_all_lines_of_a_good_recipe(recipe: Values) -> None:
    recipe["stages"][0]["objectives"] = {"ctc": 1.0, "ce": 0.1}
    recipe["stages"][1] = {**recipe["stages"][1], "objectives": {"copy": 1.0}, "steps": 120}
    said: list[Check] = []
    checks = by_name(doctor(build(Recipe, recipe), overfit=40, say=said.append))
    assert all(check.ok for check in checks.values()), [str(c) for c in checks.values() if not c.ok]
    assert said == list(checks.values())
    assert "12 clips" in checks["data"].text and "█" in checks["data"].text
    assert checks["sampling rates"].text == "16000 Hz (12)"
    assert "steering.vectors" in checks["stages.0 trains"].text and "prompt_vectors" in checks["stages.1 trains"].text
    prompt = checks["stages.0 ce prompt"].text
    assert "<|im_start|>user⏎<audio>⏎Repeat the text above word for word.<|im_end|>" in prompt
    assert prompt.rstrip().endswith("<|im_end|>«") and prompt.count("»") == 1  # the answer alone is labelled
    assert "min for 120 steps" in checks["stages.1 cost"].text and "went from" in checks["stages.1 overfit"].text
    assert not Path(recipe["out"]).exists()


def test_what_is_wrong_is_named(recipe: Values, manifest: Path, tmp_path: Path, capsys: Any) -> None:
    recipe["data"]["valid"] = (
        f"{manifest.parent}/../{manifest.parent.name}/{manifest.name}"  # the same, spelled otherwise
    )
    for stage in recipe["stages"]:
        stage["rates"] = dict.fromkeys(stage["rates"], 0.0)
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["doctor", str(tmp_path / "r.yaml"), "--json"]) == 1
    said = capsys.readouterr()
    value = json.loads(said.out.splitlines()[-1])
    bad = {check["name"]: check["text"] for check in value["checks"] if not check["ok"]}
    assert not value["ok"] and set(bad) == {"validation", "stages.0 overfit", "stages.1 overfit"}
    assert "12 are trained on" in bad["validation"] and "look at the rates" in bad["stages.0 overfit"]
    assert "error:" in said.err and "not right: validation, stages.0 overfit" in said.err
    assert main(["doctor", str(tmp_path / "r.yaml"), "data.train=[no.jsonl]"]) == 1
    assert "BAD  stopped: data.train: no.jsonl: no such manifest" in capsys.readouterr().out


def test_it_begins_where_training_would(recipe: Values) -> None:
    recipe["stages"] = [{**recipe["stages"][0], "steps": 30}]
    fresh = by_name(doctor(build(Recipe, recipe), overfit=2))["stages.0 overfit"].text
    adapter = str(train(build(Recipe, recipe)))
    begun = by_name(doctor(build(Recipe, {**recipe, "init_from": adapter}), overfit=2))["stages.0 overfit"].text
    before, after = (float(re.search(r"from ([\d.]+)", text)[1]) for text in (fresh, begun))  # type: ignore[index]
    assert after < 0.9 * before


def test_histogram() -> None:
    lines = histogram([0.5, 1.5, 1.6, 70.0]).splitlines()
    assert [line.split()[-1] for line in lines] == ["1", "2", "1"] and lines[1].count("█") == 30


@pytest.mark.parametrize("rate", [8_000, 16_000])
def test_mixed_rates_are_said(recipe: Values, manifest: Path, tmp_path: Path, rate: int) -> None:
    import numpy as np
    import soundfile

    from steermoe.data import load_source
    from steermoe.training.doctor import _rates

    soundfile.write(tmp_path / "a.wav", np.zeros(rate), rate)
    (tmp_path / "m.jsonl").write_text(json.dumps({"audio": "a.wav", "text": "x"}))
    text = _rates([*load_source(str(tmp_path / "m.jsonl")), *load_source(str(manifest))]).text
    assert text == ("16000 Hz (13)" if rate == 16_000 else "mixed rates, all resampled to 16000 Hz: 8000 Hz (1), "
                    "16000 Hz (12) (below 16000 Hz nothing is above half the rate)")  # fmt: skip

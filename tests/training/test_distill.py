"""distill: responses are the frozen LLM's own, kept; its loss is the divergence at their positions and falls."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from steermoe.config import build
from steermoe.data import load_source
from steermoe.inference.ears import Ears, from_model
from steermoe.model import by_rows
from steermoe.splice import IGNORED
from steermoe.training.distill import Teacher
from steermoe.training.kept import Entered
from steermoe.training.loop import Trainer
from steermoe.training.objectives import Objectives
from steermoe.training.recipe import Recipe, Stage
from steermoe.training.run import new_model

Make = Callable[..., Ears]


def test_responses_are_what_the_llm_writes_to_the_text(make: Make, tmp_path: Path) -> None:
    e = make(projector="linear")
    teacher = Teacher(e.model, e.processor, 9, tmp_path / "responses.jsonl")
    batch = teacher.batch(["very well", "the fox", "very well"], [None, "Say it.", None])
    for i, (text, prompt) in enumerate([("very well", None), ("the fox", "Say it.")]):
        asked = e.processor.transcription(np.zeros(1, np.float32), prompt).ids
        at = asked.index(e.model.audio_token_id)
        ids = torch.tensor([asked[:at] + e.processor.tokens(text) + asked[at + 1 :]])
        own = e.model.llm.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=9
        )
        answer = own[0, ids.shape[1] :].tolist()
        labels = batch["labels"][i][batch["labels"][i] != IGNORED].tolist()
        assert labels == answer[: len(labels)] and (len(labels) == 9 or labels[-1] in teacher.ends)
        assert batch["input_ids"][i][: len(asked)].tolist() == asked
    assert torch.equal(batch["labels"][0], batch["labels"][2])
    rows = [json.loads(line) for line in (tmp_path / "responses.jsonl").read_text().splitlines()]
    assert [(row["text"], row["prompt"]) for row in rows] == [("very well", None), ("the fox", "Say it.")]
    with open(tmp_path / "responses.jsonl", "a") as file:
        file.write('{"text": "half of a li')
    again = Teacher(e.model, e.processor, 9, tmp_path / "responses.jsonl")
    again._write = None  # type: ignore[assignment,method-assign]  # nothing is written anew
    assert torch.equal(again.batch(["the fox"], ["Say it."])["labels"][0], torch.tensor(
        [IGNORED] * len(asked) + rows[1]["tokens"]))  # fmt: skip


def test_the_loss_is_zero_where_it_hears_the_very_text(make: Make, manifest: Path, monkeypatch: Any) -> None:
    e = make(projector="linear")
    examples = load_source(str(manifest))[:3]
    batch: dict[str, Any] = {"distill": Teacher(e.model, e.processor, 6).batch([x.text for x in examples], [None] * 3)}
    batch["entered"] = Entered(e.model, e.processor, keep=False)(examples, [x.load() for x in examples])
    batch["targets"] = [[]] * 3
    objectives = Objectives(e.model, Stage(objectives={"distill": 1.0}))
    labels = batch["distill"]["labels"]
    assert objectives.counts(batch) == {"distill": int((labels != IGNORED).sum())}
    with torch.no_grad():
        heard = objectives(batch)["distill"]
        monkeypatch.setattr(e.model, "hear_frames", lambda *_: batch["distill"]["heard"])
        text = objectives(batch)["distill"]
    assert heard > 0.01 and text == pytest.approx(0, abs=1e-5)


def test_rows_at_a_time_are_the_whole(monkeypatch: Any) -> None:
    monkeypatch.setattr("steermoe.model.ROWS", 3)
    rows, tokens = torch.randn(8, 5, requires_grad=True), torch.randint(5, (8,))
    loss = by_rows(lambda r, t: F.cross_entropy(r, t, reduction="sum"), rows, tokens)
    whole = F.cross_entropy(rows, tokens, reduction="sum")
    torch.testing.assert_close(loss, whole)
    torch.testing.assert_close(*(torch.autograd.grad(x, rows)[0] for x in (loss, whole)))


def test_it_learns_to_answer_what_it_hears(recipe: dict[str, Any], capsys: Any) -> None:
    recipe["model"] |= {"projector": "linear", "pooling": "stack"}
    recipe["data"]["prompts"] = {"": ["Repeat.", "Say the words."]}
    rates = {"vectors": 1e-2, "router": 1e-2, "projector": 1e-2, "prompt": 1e-2}
    stage = {
        "objectives": {"distill": 1.0, "ce": 0.1},
        "steps": 25,
        "batch_seconds": 20,
        "rates": rates,
        "response_tokens": 6,
    }
    made = build(Recipe, {**recipe, "stages": [stage], "log_every": 5})
    model = new_model(made)
    Trainer(made, model, from_model(model).processor).run()
    rows = [json.loads(line) for line in Path(recipe["out"], "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["distill"] < 0.8 * rows[0]["distill"] and "distill" in capsys.readouterr().err
    responses = [
        json.loads(line) for line in (Path(recipe["out"]) / "responses-0-rank-0.jsonl").read_text().splitlines()
    ]
    assert {row["prompt"] for row in responses} == {"Repeat.", "Say the words."}

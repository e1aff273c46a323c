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
from steermoe.errors import UsageError
from steermoe.inference.chat import Conversation
from steermoe.inference.ears import Ears, from_model
from steermoe.inference.tools import parse_calls
from steermoe.model import by_rows
from steermoe.splice import IGNORED
from steermoe.training.distill import Offer, Teacher
from steermoe.training.kept import Entered
from steermoe.training.loop import Trainer
from steermoe.training.objectives import Objectives
from steermoe.training.recipe import Recipe, Source, Stage
from steermoe.training.run import new_model

Make = Callable[..., Ears]
CHOICES: list[Any] = ["auto", "required"]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "light",
            "description": "Switch it.",
            "parameters": {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]},
        },
    }
]


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


def test_calls_are_what_the_llm_writes_to_the_text(make: Make, tmp_path: Path) -> None:
    """Shown functions, it answers the transcript as in any conversation; where one must be called, it is, by its schema."""
    e = make(projector="linear")
    assert e.processor.tokenizer.chat_template is not None
    (tmp_path / "tools.json").write_text(json.dumps(TOOLS))
    offers = [Offer.of(Source("x", tools=str(tmp_path / "tools.json"), tool_choice=choice)) for choice in CHOICES]
    teacher = Teacher(e.model, e.processor, 12, tmp_path / "responses.jsonl")
    texts = ["the quick brown fox", "very well"]
    batch = teacher.batch([*texts, *texts], ["Do it.", None] * 2, [*offers[:1] * 2, *offers[1:] * 2])
    written = []
    for i, (text, choice) in enumerate(zip(texts * 2, [CHOICES[0]] * 2 + [CHOICES[1]] * 2, strict=True)):
        asked = ["Do it.", e.config.instruction][i % 2]
        said = Conversation(e, tools=TOOLS).answer(f"{text}\n{asked}", tool_choice=choice, max_new_tokens=12)
        labels = batch["labels"][i][batch["labels"][i] != IGNORED].tolist()
        answer = e.processor.tokenizer.decode(labels, skip_special_tokens=True)
        words, calls = parse_calls(answer, e.dialect)
        written.append(calls)
        assert calls == [(call.name, call.arguments) for call in said.tool_calls]
        assert calls or words.strip() == said.text
        read = batch["input_ids"][i].tolist()
        at = read.index(e.model.audio_token_id)
        assert "light" in e.processor.tokenizer.decode(read[:at])  # the functions are shown when it hears, too
    assert all(calls and calls[0][0] == "light" and set(calls[0][1]) == {"on"} for calls in written[2:])
    again = Teacher(e.model, e.processor, 12, tmp_path / "responses.jsonl")
    again._write_calls = again._write = None  # type: ignore[assignment,method-assign]
    assert torch.equal(again.batch(texts, ["Do it.", None], offers[1:] * 2)["labels"][:, -9:], batch["labels"][2:, -9:])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data": {"train": [{"source": "x", "tools": "t.json"}]}}, "distill alone shows them"),
        ({"data": {"train": [{"source": "x", "tool_choice": "required"}]}}, "x: tool_choice: required, but no tools"),
        (
            {"data": {"train": [{"source": "x", "tools": "t.json"}]}, "shard_llm": True,
             "stages": [{"objectives": {"distill": 1.0, "ctc": 1.0}}]},
            "not written by an LLM that is shared out",
        ),
    ],
)  # fmt: skip
def test_tools_that_no_run_could_use(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        build(Recipe, changes)


def test_tools_without_a_template(make: Make, tmp_path: Path) -> None:
    e = make(projector="linear", prompt_mode="raw")
    with pytest.raises(UsageError, match="tools are shown by a chat template"):
        Teacher(e.model, e.processor, 12).batch(["very well"], [None], [Offer(TOOLS)])
    with pytest.raises(UsageError, match="no such file of tools"):
        Offer.of(Source("x", tools=str(tmp_path / "none.json")))


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


def test_a_run_begun_anew_writes_its_own_responses(recipe: dict[str, Any]) -> None:
    recipe["model"] |= {"projector": "linear", "pooling": "stack"}
    stage = {"objectives": {"distill": 1.0}, "steps": 1, "batch_seconds": 20, "response_tokens": 3}
    made, path = build(Recipe, {**recipe, "stages": [stage]}), Path(recipe["out"]) / "responses-0-rank-0.jsonl"
    path.parent.mkdir(parents=True)
    texts = {clip.text for clip in load_source(made.data.sources[0].source)}
    rows = [{"text": text, "prompt": None, "response": "of another LLM", "tokens": [1, 2, 3, 4, 5]} for text in texts]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))  # and it died before its first checkpoint
    model = new_model(made)
    Trainer(made, model, from_model(model).processor).run()
    assert all(len(json.loads(line)["tokens"]) <= 3 for line in path.read_text().splitlines())


def test_a_clip_without_words_is_answered_too(make: Make) -> None:
    ears = make()
    batch = Teacher(ears.model, ears.processor, 2).batch(["", "very well"], [None, None])
    assert [len(heard) for heard in batch["heard"]] == [0, len(ears.processor.tokens("very well"))]


def test_it_is_taught_to_call(recipe: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "tools.json").write_text(json.dumps(TOOLS))
    recipe["model"] |= {"projector": "linear", "pooling": "stack"}
    heard = recipe["data"]["train"][0]
    recipe["data"]["train"] = [
        heard,
        {"source": heard, "tools": str(tmp_path / "tools.json"), "tool_choice": "required"},
    ]
    stage = {"objectives": {"distill": 1.0}, "steps": 24, "batch_seconds": 20, "response_tokens": 6}
    made = build(Recipe, {**recipe, "stages": [{**stage, "rates": dict.fromkeys(("vectors", "projector"), 1e-2)}]})
    model = new_model(made)
    Trainer(made, model, from_model(model).processor).run()
    rows = [json.loads(line) for line in Path(recipe["out"], "metrics.jsonl").read_text().splitlines()]
    assert sum(row["distill"] for row in rows[-3:]) < 0.9 * sum(row["distill"] for row in rows[:3])
    responses = [
        json.loads(line) for line in (Path(recipe["out"]) / "responses-0-rank-0.jsonl").read_text().splitlines()
    ]
    assert {"light" in row["response"] for row in responses if "tools" in row} == {True}

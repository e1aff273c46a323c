"""The tools suite: grading as BFCL grades, F1 of slots, and what is kept of a run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from steermoe.data.tool_tasks import Accepted, ToolTask, load_tasks, tool
from steermoe.errors import DataError, UsageError
from steermoe.evaluation import run, suites
from steermoe.evaluation import tools as suite
from steermoe.evaluation.collect import Shard
from steermoe.evaluation.endpoint import Endpoint
from steermoe.evaluation.listener import Adapter
from steermoe.evaluation.predictions import read, read_run
from steermoe.evaluation.report import write_report
from steermoe.evaluation.suites import Options
from steermoe.inference.ears import Ears
from tests.conftest import speechlike


def call(name: str = "f", **arguments: Any) -> list[dict[str, Any]]:
    return [{"name": name, "arguments": arguments}]


RIGHT = Accepted("f", {"city": ["New York, NY", "NYC"], "days": [5], "unit": ["", "celsius"]})


@pytest.mark.parametrize(
    ("calls", "cause"),
    [
        (call(city="new york ny", days=5), "right"),
        (call(city="N.Y.C", days=5.0, unit="Celsius"), "right"),
        (call(city="NYC", days=True), "wrong value"),
        (call(city="NYC", days="5"), "wrong value"),
        (call(city="Boston", days=5), "wrong value"),
        (call(city="NYC", days=5, unit="kelvin"), "wrong value"),
        (call(days=5), "missing argument"),
        (call(city="NYC", days=5, fast=True), "added argument"),
        (call("g", city="NYC", days=5), "wrong function"),
        (call(city="NYC", days=5) * 2, "wrong function"),
        ([], "no call"),
    ],
)
def test_graded_as_bfcl_grades(calls: list[dict[str, Any]], cause: str) -> None:
    assert suite.grade(calls, RIGHT, "bfcl") == cause
    assert suite.grade(calls, None) == ("needless call" if calls else "right")


def test_nested_values() -> None:
    accepted = Accepted("f", {"items": [["A b", 2]], "at": [{"x": [1, 2], "y": ["", 3]}], "flag": [True]})
    assert suite.grade(call(items=["ab", 2], at={"x": 2}, flag=True), accepted, "bfcl") == "right"
    for wrong in (
        {"items": [2, "ab"]},
        {"items": ["ab"]},
        {"at": {"x": 3}},
        {"at": {"y": 3}},
        {"at": {"x": 1, "z": 0}},
        {"flag": 1},
    ):
        given = {"items": ["ab", 2], "at": {"x": 2}, "flag": True} | wrong
        assert suite.grade(call(**given), accepted, "bfcl") == "wrong value", wrong


def test_words_are_compared_after_numbers_and_white_space() -> None:
    accepted = Accepted("order", {"size": ["twelve ounce"], "milk": ["a bit of  milk"]})
    assert suite.grade(call("order", size="12 ounce", milk=" A bit of milk"), accepted) == "right"
    assert suite.grade(call("order", size="20 ounce", milk="a bit of milk"), accepted) == "wrong value"
    assert suite.slots(call("order", size="12 ounce", roast="dark"), accepted) == (1, 2, 2)
    assert suite.slots(call("other", size="12 ounce"), accepted) == (0, 1, 2)
    assert suite.slots([], accepted) == (0, 0, 2)
    assert suite.slots(call(city="NYC", days=4, unit="celsius"), RIGHT, "bfcl") == (1, 2, 2)


@pytest.fixture
def orders(tmp_path: Path) -> Path:
    rows = []
    for i in range(4):
        soundfile.write(tmp_path / f"{i}.wav", speechlike(0.5, i), 16_000)
        row = {"audio": f"{i}.wav", "intent": "orderDrink", "slots": {"size": ["small", " large"][i % 2]}}
        rows.append(row | {"duration": 0.5})
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_spoken_orders_are_read(orders: Path) -> None:
    tasks = load_tasks("spoken_orders", orders)
    assert [task.accepted for task in tasks[:2]] == [Accepted("orderDrink", {"size": [v]}) for v in ("small", "large")]
    schema = tasks[0].tools[0]["function"]["parameters"]
    assert schema["properties"]["size"]["enum"] == ["large", "small"] and tasks[0].text is None
    assert len(tasks[0].load()) == 8000
    for spec, root in (("spoken_orders", None), ("spoken_orders:train", orders), ("spokn_orders", orders)):
        with pytest.raises(DataError, match="spoken_orders"):
            load_tasks(spec, root)


def test_a_run_is_kept_and_not_asked_again(
    ears: Ears, orders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    real = suite._asker

    def asker(*given: Any) -> Any:
        ask = real(*given)
        return lambda tasks, column, rows: asked.extend(task.id for task in tasks) or ask(tasks, column, rows)

    monkeypatch.setattr(suite, "_asker", asker)
    options: Any = {
        "columns": ("text", "speech"),
        "tool_choice": "required",
        "max_new_tokens": 24,
        "out": tmp_path / "out",
    }
    rows, metrics = suite.ask_all(ears, "spoken_orders", orders, limit=2, **options)
    assert asked == ["0", "2"] and metrics["data"] == "spoken_orders[2 of 4]" and metrics["n"] == 2
    assert set(metrics["columns"]) == {"speech"} and "gap" not in metrics  # there is no text to read
    assert all(row["speech"]["calls"][0]["name"] == "orderDrink" for row in rows)
    again, metrics = suite.ask_all(ears, "spoken_orders", orders, **options)
    assert sorted(asked[2:]) == ["1", "3"] and [row["id"] for row in again] == ["0", "1", "2", "3"]
    column = metrics["columns"]["speech"]
    assert sum(column["causes"].values()) == 4 and column["exact"] == column["causes"].get("right", 0) / 4
    suite.ask_all(ears, "spoken_orders", orders, limit=1, **options | {"tool_choice": "auto"})  # another way of asking
    assert len(asked) == 5
    with pytest.raises(UsageError, match="'sound'"):
        suite.ask_all(ears, "spoken_orders", orders, columns=["sound"])


def test_it_is_one_of_the_suites(ears: Ears, orders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked, tabled and reported as the others are; a server shows too little, and shards are refused."""
    monkeypatch.setattr(suite, "COLUMNS", ("speech",))  # the tiny encoder has no decoder of its own
    monkeypatch.setattr(suite.ask_all, "__kwdefaults__", {**suite.ask_all.__kwdefaults__, "columns": ("speech",)})
    options = Options(data="spoken_orders", root=orders, limit=2, tool_choice="required", out=tmp_path / "out")
    result = suites.suite("tools")(Adapter(ears), options)
    rows = read(tmp_path / "out" / "predictions.jsonl")
    right = [
        suite.grade(row["speech"]["calls"], task.accepted)
        for row, task in zip(rows.values(), load_tasks("spoken_orders", orders)[::2], strict=True)
    ]
    assert result["metrics"]["accuracy"] == right.count("right") / 2 and result["n"] == 2
    assert sum(result["failures"].values()) == 2 - right.count("right")
    assert "tools, spoken_orders[2 of 4]: 2 items" in run.table(result)
    write_report(tmp_path / "report.html", title="tools", runs=[read_run(tmp_path / "out")])
    page = (tmp_path / "report.html").read_text()
    assert "spoken_orders" in page
    assert all(f"{cause} {right.count(cause)}" in page for cause in set(right) - {"right"})
    with pytest.raises(UsageError, match="not sharded"):
        suites.suite("tools")(Adapter(ears), replace(options, shard=Shard(1, 2)))
    with pytest.raises(UsageError, match="--endpoint"):
        suites.suite("tools")(Endpoint("http://localhost:1", "m"), options)


def test_the_gap_is_text_less_speech_on_the_same_tasks(
    ears: Ears, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = [tool("f", "", {"type": "object", "properties": {"n": {"type": "integer"}}})]
    tasks = [ToolTask(str(i), tools, Accepted("f", {"n": [i]}), "say", group="ab"[i % 2]) for i in range(8)]
    rows: list[dict[str, Any]] = [
        {"id": t.id, "text": {"calls": call(n=i)}, "speech": {"calls": call(n=i if i < 2 else 0)}}
        for i, t in enumerate(tasks)
    ]
    rows[7] = {"id": "7", "text": {"calls": call(n=7)}, "error": "not heard"}
    rows[6]["text"] = {"calls": [], "refused": "why"}
    metrics = suite.measure(rows, tasks, ["text", "speech"])
    assert (metrics["n"], metrics["unheard"]) == (7, 1)
    assert metrics["columns"]["text"]["exact"] == 6 / 7 and metrics["columns"]["text"]["causes"] == {
        "right": 6,
        "refused": 1,
    }
    assert metrics["columns"]["speech"]["causes"] == {"right": 2, "wrong value": 5}
    assert metrics["gap"] == 6 / 7 - 2 / 7 and 0 < metrics["p_value"] < 0.2
    groups = metrics["columns"]["speech"]["groups"]
    assert {g: (v["n"], v["exact"]) for g, v in groups.items()} == {"a": (4, 0.25), "b": (3, 1 / 3)}
    assert all(v["interval"][0] <= v["exact"] <= v["interval"][1] for v in groups.values())
    assert np.isclose(metrics["columns"]["speech"]["f1"], 2 * 2 / 14)

    def asker(*_: Any) -> Any:
        return lambda told, column, _: [
            {"calls": call(n=int(t.id) if column == "text" else 0), "text": ""} for t in told
        ]

    for name, value in (("_asker", asker), ("load_tasks", lambda *_: tasks), ("COLUMNS", ("text", "speech"))):
        monkeypatch.setattr(suite, name, value)
    monkeypatch.setattr(suite.ask_all, "__kwdefaults__", {**suite.ask_all.__kwdefaults__, "columns": suite.COLUMNS})
    result = suite.run(Adapter(ears), Options(data="these", out=tmp_path))
    assert result["metrics"]["accuracy"] == 1 / 8 and result["metrics"]["gap"] == 7 / 8
    page = write_report(tmp_path / "report.html", title="tools", runs=[read_run(tmp_path)]).read_text()
    assert "text: a" in page and "speech: what went wrong" not in page and "wrong value 7" in page


@pytest.mark.slow
def test_bfcl_prompts_can_be_kept_to_and_are_on_one_side(ears: Ears) -> None:
    test, train = load_tasks("bfcl:test"), load_tasks("bfcl:train")
    assert {t.group for t in test} == {"simple", "multiple", "irrelevance"} and len(test) > 700
    assert not {t.text for t in test} & {t.text for t in train}
    refused = 0
    for task in test:
        assert (task.accepted is None) == (task.group == "irrelevance")
        for told in task.tools:
            try:
                ears.vocabulary.check(told["function"]["parameters"], task.id)
            except UsageError:
                refused += 1
    assert refused <= 1


@pytest.mark.slow
def test_every_command_for_a_house_has_an_answer_within_its_schema() -> None:
    from jsonschema import Draft202012Validator

    test, train = load_tasks("home"), load_tasks("home:train")
    assert len(test) > 400 and not {t.text for t in test} & {t.text for t in train}
    for task in test:
        assert task.accepted is not None and len(task.tools) == 4
        (right,) = (t["function"] for t in task.tools if t["function"]["name"] == task.accepted.name)
        arguments = {slot: values[0] for slot, values in task.accepted.arguments.items()}
        assert list(Draft202012Validator(right["parameters"]).iter_errors(arguments)) == [], task
        assert set(arguments) <= set(right["parameters"]["properties"])

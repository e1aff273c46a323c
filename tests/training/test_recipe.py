"""Recipes: overrides, and errors that name the file, the key and the fix."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from steermoe.config import SteerMoEConfig
from steermoe.data import Example
from steermoe.errors import DataError, UsageError
from steermoe.training import dataset, run
from steermoe.training.recipe import Data, Recipe, Source, load_recipe

YAML = """
model: {projector: linear, num_experts: 2}
stages:
  - {objectives: {ce: 1.0}, steps: 5, rates: {vectors: 1e-2}}
  - {objectives: {ce: 1.0}, steps: 7}
out: runs/x
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "run.yaml").write_text(YAML)
    return tmp_path / "run.yaml"


def test_values_and_defaults(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.stages[0].rates.vectors == 1e-2  # which YAML 1.1 reads as a string
    assert recipe.stages[1].rates.vectors == 1e-2 and recipe.stages[1].rates.projector == 1e-4  # the paper's
    assert recipe.model.num_experts == 2 and recipe.model.scale == 0.1 and recipe.seed == 0


@pytest.mark.parametrize(
    ("override", "read", "expected"),
    [
        ("out=runs/y", lambda r: r.out, "runs/y"),
        ("stages.1.steps=3", lambda r: [s.steps for s in r.stages], [5, 3]),
        ("stages.0.rates.router=5e-4", lambda r: r.stages[0].rates.router, 5e-4),
        ("data.augment=true", lambda r: r.data.augment, True),
        ("data.train=[a.jsonl, b.jsonl]", lambda r: r.data.train, ["a.jsonl", "b.jsonl"]),
        ("data.train=[{source: a, weight: 2}]", lambda r: r.data.train, [Source("a", weight=2.0)]),
        ("data.train=[a, {source: b}]", lambda r: r.data.sources, [Source("a"), Source("b")]),
        ("data.train=a=b.jsonl", lambda r: r.data.train, ["a=b.jsonl"]),
        ("model.steer_layers=[0]", lambda r: r.model.steer_layers, [0]),
        ("stages=[{objectives: {ce: 1}, steps: 2}]", lambda r: [s.steps for s in r.stages], [2]),
    ],
)
def test_overrides(path: Path, override: str, read: Any, expected: Any) -> None:
    assert read(load_recipe(path, [override])) == expected


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "override 'seed': write it as key=value"),
        ("stages.2.steps=1", "'2' is no item of a list of 2"),
        ("stages.x.steps=1", "'x' is no item of a list of 2"),
        ("stages.5={}", "'5' is no item of a list of 2"),
        ("out.a.b=1", "override 'out.a.b=1': out.a holds no keys"),
        ("out.a=1", "override 'out.a=1': out holds no keys"),
        ("data.train=[a", r"'\[a' is not YAML"),
        ("sead=1", "unknown key 'sead'; did you mean 'seed'"),
        ("seed=x", "run.yaml.seed: expected int, got 'x'"),
        ("stages.0.stepz=1", r"run.yaml.stages\[0\]: unknown key 'stepz'; did you mean 'steps'"),
        ("model.projector=cubic", "'cubic' is none of lexical, linear, mlp"),
        ("stages.0.steps=0", "steps=0"),
        ("stages.0.accumulate=0", "accumulate=0"),
        ("stages.0.batch_clips=0", "batch_clips=0"),
        ("stages.0.decay=square", "'square' is none of cosine, linear"),
        ("data.train=[{source: a, weight: 0}]", "a: weight=0: must be above 0"),
        ("data.train=[{source: a, wait: 2}]", r"data.train\[0\]: unknown key 'wait'; did you mean 'weight'"),
        ("data.train=[{root: a}]", "data.train\\[0\\]: source is missing"),
        ("data.train=[3]", r"data.train\[0\]: expected str, got 3"),
        ("data.prompts={zh: [1]}", r"data.prompts.zh\[0\]: expected str"),
        ("data.max_skipped=1", "max_skipped=1: a share"),
        ("stages.0.batch_seconds=-1", "batch_seconds=-1"),
        ("stages.0.objectives={cd: 1}", "objectives: 'cd' is none of ctc, phones"),
        ("stages.0.objectives={}", "each needs at least one"),
        ("stages.0.trains=[llm]", "trains: 'llm' is none of steering, projector, phones"),
        ("stages.0.trains=[]", "each needs at least one"),
        ("stages.0.trains=[prompt_vectors]", "model.prompt_vectors is 0"),
        ("stages.0.objectives={ctc: 1}", "ctc needs projector: lexical, not linear"),
        ("checkpoint_every=0", "checkpoint_every=0: must be at least 1"),
    ],
)
def test_bad_overrides(path: Path, override: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        load_recipe(path, [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [1", "not YAML"),
        ("- 1", "expected keys and values"),
        ("hello", "expected keys and values"),
        ("stages: 3", "expected keys and values"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_bad_files(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError, match=message) as caught:
        load_recipe(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="the recipe holds no keys"):
        path.write_text("hello")
        load_recipe(path, ["a=1"])


def test_absent_and_empty(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"absent.yaml: no such recipe"):
        load_recipe(tmp_path / "absent.yaml")
    with pytest.raises(UsageError, match="cannot be read"):
        load_recipe(tmp_path)
    (tmp_path / "empty.yaml").touch()
    assert load_recipe(tmp_path / "empty.yaml") == Recipe()


@pytest.mark.parametrize(
    ("objectives", "trains", "steer", "learns"),
    [
        ("{ctc: 1}", "[steering, projector]", "true", True),
        ("{ctc: 1, ce: 1}", "[steering, prompt_vectors]", "true", True),
        ("{ce: 1}", "[prompt_vectors]", "true", True),
        ("{ctc: 1}", "[steering, projector]", "false", True),
        ("{ce: 1}", "[steering]", "true", False),  # the lexical read-out is piecewise constant
        ("{ce: 1}", "[projector, prompt_vectors]", "true", False),
        ("{ctc: 1}", "[prompt_vectors]", "true", False),
        ("{ctc: 1}", "[steering]", "false", False),
    ],
)
def test_a_lexical_stage_must_have_a_gradient(
    tmp_path: Path, objectives: str, trains: str, steer: str, learns: bool
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        f"model: {{prompt_vectors: 2, steer: {steer}}}\nstages: [{{objectives: {objectives}, trains: {trains}}}]"
    )
    if learns:
        load_recipe(path)
    else:
        with pytest.raises(UsageError, match="gradient"):
            load_recipe(path)
        mixtures = objectives == "{ce: 1}"  # which the LLM's loss reaches
        with nullcontext() if mixtures else pytest.raises(UsageError, match="gradient"):
            load_recipe(path, ["model.temperature=0.3"])


def test_words_of_a_validation_are_counted_in_its_language(monkeypatch: pytest.MonkeyPatch) -> None:
    class Heard:
        config = SteerMoEConfig(projector="linear")

        def transcribe(self, audio: list[Any], sampling_rate: int, instruction: str | None) -> list[str]:
            assert instruction is None
            return ["我说。" if "我" in clip.text else "fine day" for clip in audio]

    monkeypatch.setattr(Example, "load", lambda self: self)
    for language, text, wer in (
        ("zh", "我来说", 1 / 3),
        (None, "我来说", 1 / 3),
        ("en", "Fine, days", 1 / 2),
        (None, "Fine, days", 1 / 2),
    ):
        clip = Example("a", Path("a.wav"), text, language=language)
        monkeypatch.setattr(dataset, "load_source", lambda *_, clip=clip: [clip])
        validate = run.validator(Recipe(data=Data(valid="a")), Heard())  # type: ignore[arg-type]
        assert validate is not None and validate(1) == {"valid_wer": pytest.approx(wer)}


def test_a_validation_asks_what_its_clips_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    class Asked:
        config = SteerMoEConfig()

        def transcribe(self, audio: list[Any], sampling_rate: int, instruction: str | None) -> list[str]:
            return [f"{clip.text} {instruction}" for clip in audio]

    clips = [Example(str(i), Path("a.wav"), text, prompt=prompt) for i, (text, prompt) in enumerate(
        [("one", "first"), ("two", "second"), ("three", "first")])]  # fmt: skip
    monkeypatch.setattr(Example, "load", lambda self: self)
    monkeypatch.setattr(dataset, "load_source", lambda *_: clips)
    monkeypatch.setattr(run, "score", lambda texts, said, _: Said(list(zip(texts, said, strict=True))))
    validate = run.validator(Recipe(data=Data(valid="a")), Asked())  # type: ignore[arg-type]
    assert validate is not None and validate(1) == {"valid_wer": 3}  # and no "heard": an answer is not what is said


class Said(list[tuple[str, str]]):
    def metrics(self) -> dict[str, float]:
        asked = {"one": "first", "two": "second", "three": "first"}
        return {"wer": float(sum(said == f"{text} {asked[text]}" for text, said in self))}


def test_a_validation_without_a_word_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Example, "load", lambda self: self)
    monkeypatch.setattr(dataset, "load_source", lambda *_: [Example("a", Path("a.wav"), "Hmm.")])
    with pytest.raises(DataError, match="a: the texts of its 1 clips hold no word"):
        run.validator(Recipe(data=Data(valid="a")), None)  # type: ignore[arg-type]

"""Strict building of configs: what is misspelt, of the wrong type or out of range is named with its fix."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import pytest

from steermoe.config import SteerMoEConfig, build
from steermoe.errors import UsageError


@dataclass
class Inner:
    rate: float = 1.0
    steps: int = 1


@dataclass
class Outer:
    inner: Inner = field(default_factory=Inner)
    inners: list[Inner] = field(default_factory=list)
    weights: dict[str, float] = field(default_factory=dict)
    layers: list[int] | None = None
    how: Literal["mean", "max"] = "mean"
    on: bool = False
    name: str = ""


@pytest.mark.parametrize(
    ("values", "path", "expected"),
    [
        ({"inner": {"rate": "1e-4"}}, "inner.rate", 1e-4),  # YAML 1.1 reads 1e-4 as a string
        ({"inner": {"rate": 1}}, "inner.rate", 1.0),
        ({"inner": {"steps": "20"}}, "inner.steps", 20),
        ({"layers": None}, "layers", None),
        ({"layers": [1, "2"]}, "layers", [1, 2]),
        ({"layers": 3}, "layers", [3]),
        ({"weights": {"ctc": "5e-1"}}, "weights", {"ctc": 0.5}),
        ({"inners": [{"steps": 2}, {}]}, "inners", [Inner(steps=2), Inner()]),
        ({"how": "max", "on": True}, "how", "max"),
    ],
)
def test_values_become_what_is_declared(values: dict[str, Any], path: str, expected: Any) -> None:
    made: Any = build(Outer, values)
    for name in path.split("."):
        made = getattr(made, name)
    assert made == expected and type(made) is type(expected)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"iner": {}}, "run.yaml: unknown key 'iner'; did you mean 'inner'?"),
        ({"inner": {"stepz": 3}}, "run.yaml.inner: unknown key 'stepz'; did you mean 'steps'?"),
        ({"inners": [{}, {"rat": 3}]}, "run.yaml.inners[1]: unknown key 'rat'; did you mean 'rate'?"),
        ({"qqqq": 1}, "run.yaml: unknown key 'qqqq'; known: inner, inners, weights, layers, how, on, name"),
        ({7: 1}, "run.yaml: unknown key 7"),
        ({"inner": {"rate": "fast"}}, "run.yaml.inner.rate: expected float, got 'fast'"),
        ({"inner": {"steps": 2.5}}, "run.yaml.inner.steps: expected int, got 2.5"),
        ({"inner": {"steps": True}}, "run.yaml.inner.steps: expected int, got True"),
        ({"inner": {"rate": True}}, "run.yaml.inner.rate: expected float, got True"),
        ({"inner": {"rate": None}}, "run.yaml.inner.rate: expected float, got None"),
        ({"inner": 3}, "run.yaml.inner: expected keys and values, got 3"),
        ({"layers": [0, "x"]}, "run.yaml.layers[1]: expected int, got 'x'"),
        ({"weights": [1]}, "run.yaml.weights: expected keys and values, got [1]"),
        ({"weights": {"ctc": "much"}}, "run.yaml.weights.ctc: expected float, got 'much'"),
        ({"how": "avg"}, "run.yaml.how: 'avg' is none of mean, max"),
        ({"on": "yes"}, "run.yaml.on: expected bool, got 'yes'"),
        ({"on": 1}, "run.yaml.on: expected bool, got 1"),
        ({"name": 3}, "run.yaml.name: expected str, got 3"),
        ([], "run.yaml: expected keys and values, got []"),
    ],
)
def test_errors_name_place_value_and_fix(values: Any, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        build(Outer, values, "run.yaml")
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        {"num_experts": 0},
        {"kernel": 0},
        {"temperature": -0.1},
        {"prompt_vectors": -1},
        {"pool_before_norm": True},  # the projector is lexical
        {"silence": -0.5},
        {"silence": 10.5},
        {"silence": 0.5, "pad_to_window": True},
    ],
)
def test_ranges(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(values))):
        SteerMoEConfig(**values)


def test_a_config_survives_json() -> None:
    config = SteerMoEConfig(steer_layers=[0, 3], projector="linear", pool_before_norm=True)
    assert build(SteerMoEConfig, asdict(config)) == config

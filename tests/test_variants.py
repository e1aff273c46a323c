"""What is not the paper trains, saves, loads and reads like everything else; and its parts do what they say."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from steermoe.config import SteerMoEConfig, build
from steermoe.errors import UsageError
from steermoe.inference.ears import Ears, from_model, load
from steermoe.steering import Steering
from steermoe.training.loop import Trainer
from steermoe.training.recipe import Recipe
from steermoe.training.run import new_model
from steermoe.variants import MixtureLinear, VariantSteering, balance_loss, routed

from .test_promises import digests

Make = Callable[..., Ears]
Values = dict[str, Any]
VARIANTS: dict[str, Values] = {
    "static": {"steer": False},
    "one expert": {"num_experts": 1},
    "sixteen experts": {"num_experts": 16},
    "top-2": {"num_experts": 4, "top_k": 2},
    "per-layer routers": {"router": "per_layer"},
    "tied router": {"router": "tied", "top_k": 1},
    "mixture projector": {"steer": False, "projector_experts": 3},
    "linear mixture": {"projector": "linear", "projector_experts": 2},
    "lora": {"steer": False, "lora_rank": 2},
    "lora beside steering": {"lora_rank": 2},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_trains_saves_loads_and_reads(recipe: Values, name: str, speech: Callable[..., np.ndarray]) -> None:
    recipe["model"] |= VARIANTS[name]
    lora, linear = "lora_rank" in VARIANTS[name], recipe["model"].get("projector") == "linear"
    trains = ["steering", "projector", "prompt_vectors", *(["lora"] if lora else [])]
    objectives = {"ce" if linear else "ctc": 1.0, **({"balance": 0.1} if recipe["model"].get("steer", True) else {})}
    rates = {**recipe["stages"][0]["rates"], "lora": 1e-2}
    stage = {**recipe["stages"][0], "objectives": objectives, "trains": trains, "steps": 3, "rates": rates}
    made = build(Recipe, {**recipe, "stages": [stage]})
    model = new_model(made)
    fresh = {k: v.clone() for k, v in model.adapter_state().items()}
    own = {n: d for n, d in digests(model.frames, model.llm) if "lora_" not in n}
    folder = Trainer(made, model, from_model(model).processor).run()
    assert {n: d for n, d in digests(model.frames, model.llm) if "lora_" not in n} == own  # frozen
    still = {k for k, v in model.adapter_state().items() if torch.equal(v, fresh[k])}
    assert not {k for k in still if k.startswith(("steering.", "lora.", "projector.proj"))} - {
        *(["steering.router.weight", "steering.router.bias"] if name == "one expert" else [])
    }
    saved = load_file(folder / "adapter_model.safetensors")
    assert saved.keys() == fresh.keys() and any(k.startswith("lora.") for k in saved) == lora
    again, clip = load(folder), speech(1.1)
    assert all(torch.equal(v, saved[k]) for k, v in again.model.adapter_state().items())
    before = from_model(model).transcribe(clip, sampling_rate=16_000, max_new_tokens=5)
    assert again.transcribe(clip, sampling_rate=16_000, max_new_tokens=5) == before
    if lora:
        assert next(g for g in fresh if g.startswith("lora.")) == "lora.layers-0-self_attn-k_proj.0.weight"


def test_lora_changes_what_is_heard_and_its_rest_does_not(make: Make, speech: Callable[..., np.ndarray]) -> None:
    plain, adapted = make(fresh=True, steer=False).model, make(fresh=True, steer=False, lora_rank=2).model
    inputs = plain.frames.features([speech(0.7)])
    with torch.no_grad():
        assert torch.equal(plain.encode(*inputs)[0], adapted.encode(*inputs)[0])  # begins by adding nothing
        for name, parameter in adapted.trainable().items():
            if name.startswith("lora."):
                parameter.add_(0.1)
        assert not torch.allclose(plain.encode(*inputs)[0], adapted.encode(*inputs)[0], atol=1e-2)
    assert adapted.first_learning == 0 and plain.first_learning == 2
    adapted.lora.requires_grad_(False)
    assert adapted.first_learning == 2 and adapted.first_steered == 0


def test_one_seed_one_projector_however_it_is_steered(make: Make) -> None:
    drawn = [
        make(fresh=True, **VARIANTS[name]).model.projector.proj.weight
        for name in ("static", "one expert", "sixteen experts", "top-2", "per-layer routers", "lora")
    ]
    assert all(torch.equal(weight, drawn[0]) for weight in drawn)
    assert not torch.equal(make(seed=1, fresh=True).model.projector.proj.weight, drawn[0])


def test_the_papers_router_is_one_a_layer() -> None:
    torch.manual_seed(0)
    paper, layered = Steering(3, 4, 8), VariantSteering(3, 4, 8, 0.1, "per_layer")
    with torch.no_grad():
        layered.vectors.copy_(paper.vectors)
        for i, router in enumerate(layered.router):
            weight, bias = paper.router_slice(i)
            router.weight.copy_(weight)
            router.bias.copy_(bias)
    h = torch.randn(2, 5, 8)
    for i in range(3):
        assert torch.equal(paper(h, i), layered(h, i))
    tied = VariantSteering(3, 4, 8, 0.1, "tied")
    assert torch.equal(tied.gates(h, 0), tied.gates(h, 2)) and tied.router.weight.shape == (4, 8)


def test_top_k_gates_are_the_largest_and_sum_to_one() -> None:
    torch.manual_seed(0)
    steering, h = VariantSteering(2, 5, 8, 0.5, "sliced", top_k=2), torch.randn(3, 7, 8)
    gates, dense = steering.gates(h, 1), Steering.gates(steering, h, 1)
    assert (gates > 0).sum(-1).eq(2).all()
    torch.testing.assert_close(gates.sum(-1), torch.ones(3, 7))
    assert torch.equal(gates.argmax(-1), dense.argmax(-1))
    delta = (gates @ steering.vectors[1]) * steering.scales[1]
    torch.testing.assert_close(steering(h, 1), h + delta)
    with steering.disabled():
        assert steering(h, 1) is h
    with steering.recording() as record:
        steering(h, 0)
    assert torch.equal(record[0], steering.gates(h, 0))
    whole = VariantSteering(2, 5, 8, 0.5, "sliced", top_k=5)
    whole.load_state_dict(steering.state_dict())
    torch.testing.assert_close(whole.gates(h, 1), dense)


def test_balance_is_least_where_all_experts_are_used_alike() -> None:
    even = torch.eye(4).repeat(2, 3, 1) * 0.4 + 0.15  # (2, 12, 4): each expert is the first of a quarter
    one = torch.zeros(2, 12, 4)
    one[..., 2] = 1
    lengths = torch.tensor([12, 12])
    assert balance_loss([(even, even)], lengths, None) == pytest.approx(1.0)
    assert balance_loss([(one, one)], lengths, 1) == pytest.approx(4.0)
    assert balance_loss([(one, one), (even, even)], lengths, None) == pytest.approx(2.5)
    beyond = torch.cat([even[:, :4], one[:, 4:]], dim=1)
    assert balance_loss([(beyond, beyond)], torch.tensor([4, 4]), None) == pytest.approx(1.0)
    slower = torch.tensor([2, 2])  # what leaves the encoder has half as many frames as its layers
    assert balance_loss([(beyond, beyond)], slower, None, beyond.shape[1] // 2) == pytest.approx(1.0)


def test_routed_sees_the_gates_in_use_with_gradient(make: Make, speech: Callable[..., np.ndarray]) -> None:
    model = make(steer_layers=[1]).model
    inputs = model.frames.features([speech(0.6)])
    with routed(model) as seen, model.steering.recording() as record:
        model.encode(*inputs)
    (dense, used), gates = seen[0], record[0]
    torch.testing.assert_close(used, gates)
    dense.sum().backward()
    assert model.steering.router.weight.grad is not None
    assert len(model.frames.layers[1]._forward_hooks) == 1  # the steering's


def test_a_mixture_of_equal_maps_is_the_map() -> None:
    mixture, x = MixtureLinear(6, 3, 2), torch.randn(4, 5, 6)
    with torch.no_grad():
        mixture.weight[1], mixture.bias[1] = mixture.weight[0], mixture.bias[0]
    torch.testing.assert_close(mixture(x), x @ mixture.weight[0].T + mixture.bias[0])


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"top_k": 9}, "top_k=9: there are only num_experts=8"),
        ({"top_k": 0}, "top_k=0: must be at least 1"),
        ({"router": "deep"}, "'deep' is none of sliced, per_layer, tied"),
        ({"projector": "mlp", "projector_experts": 2}, "projector_experts goes with projector: linear or lexical"),
        ({"frame_scale": 0.0}, "frame_scale=0: must be above 0"),
        ({"lora_rank": -1}, "lora_rank=-1: cannot be negative"),
    ],
)
def test_bad_variants(values: Values, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        build(SteerMoEConfig, values)


@pytest.mark.parametrize(
    ("model", "stage", "why"),
    [
        ({}, {"objectives": {"balance": 1.0}}, "balance spreads the gates"),
        ({"steer": False}, {"objectives": {"ctc": 1.0, "balance": 1.0}}, "balance spreads the gates"),
        ({}, {"trains": ["projector"], "objectives": {"ctc": 1.0, "balance": 1.0}}, "balance spreads the gates"),
        ({}, {"trains": ["lora"]}, "trains: lora, but model.lora_rank is 0"),
    ],
)
def test_bad_stages(model: Values, stage: Values, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        build(Recipe, {"model": model, "stages": [stage]})


def test_a_paper_config_is_the_papers_steering(make: Make) -> None:
    model = make(fresh=True).model
    assert type(model.steering) is Steering and not hasattr(model.lora, "parameters")
    assert dataclasses.asdict(SteerMoEConfig())["router"] == "sliced"


def test_lora_without_peft(make: Make, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(UsageError, match="needs the package peft"):
        make(lora_rank=2)

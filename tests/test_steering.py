"""Equations (1)-(3) against the sums written out, and what a strength or a record may reach."""

from __future__ import annotations

import threading

import pytest
import torch

from steermoe.steering import Steering

LAYERS, EXPERTS, WIDTH = 3, 4, 6


@pytest.fixture
def steering() -> Steering:
    torch.manual_seed(0)
    module = Steering(LAYERS, EXPERTS, WIDTH)
    with torch.no_grad():
        module.vectors.mul_(100)
        module.scales.copy_(torch.tensor([0.1, -0.5, 2.0]))
    return module


@torch.no_grad()
@pytest.mark.parametrize("layer", range(LAYERS))
def test_equations_by_hand(steering: Steering, layer: int) -> None:
    h = torch.randn(2, 5, WIDTH)
    out = steering(h, layer)
    for b in range(2):
        for t in range(5):
            rows = [layer * EXPERTS + n for n in range(EXPERTS)]
            logits = [float(h[b, t] @ steering.router.weight[r] + steering.router.bias[r]) for r in rows]
            gates = torch.tensor(logits).exp() / torch.tensor(logits).exp().sum()  # (1)
            delta = sum(gates[n] * steering.vectors[layer, n] for n in range(EXPERTS))  # (2)
            torch.testing.assert_close(out[b, t], h[b, t] + steering.scales[layer] * delta)  # (3)


@torch.no_grad()
def test_first_values_are_the_references() -> None:
    torch.manual_seed(0)
    fresh = Steering(32, 8, 64)
    assert torch.equal(fresh.scales, torch.full((32,), 0.1))
    assert 0.0095 < float(fresh.vectors.std()) < 0.0105 and abs(float(fresh.vectors.mean())) < 1e-3
    assert float(fresh.router.weight.abs().max()) <= 64**-0.5  # the default of nn.Linear
    assert fresh.router.bias is not None


def test_only_the_layers_own_rows_get_gradient(steering: Steering) -> None:
    steering(torch.randn(2, 5, WIDTH), 1).square().sum().backward()
    touched = steering.router.weight.grad.view(LAYERS, EXPERTS, WIDTH).abs().sum((1, 2)) > 0
    assert touched.tolist() == [False, True, False]
    assert (steering.vectors.grad.abs().sum((1, 2)) > 0).tolist() == [False, True, False]
    assert (steering.scales.grad != 0).tolist() == [False, True, False]


def test_keeps_shape_and_dtype(steering: Steering) -> None:
    h = torch.randn(2, 5, WIDTH).bfloat16()
    out = steering(h, 0)
    assert out.shape == h.shape and out.dtype == torch.bfloat16
    assert steering.gates(h, 0).dtype == torch.float32  # softmax is not rounded
    torch.testing.assert_close(steering.gates(h, 0).sum(-1), torch.ones(2, 5))


def test_strength_scales_the_step_linearly(steering: Steering) -> None:
    h = torch.randn(2, 5, WIDTH)
    full = steering(h, 2) - h
    with steering.scaled(0.5):
        torch.testing.assert_close(steering(h, 2) - h, full / 2)
        with steering.disabled():
            assert torch.equal(steering(h, 2), h)
        torch.testing.assert_close(steering(h, 2) - h, full / 2)  # the inner block is over
    torch.testing.assert_close(steering(h, 2) - h, full)


def test_a_block_that_raises_is_over_too(steering: Steering) -> None:
    h = torch.randn(1, 2, WIDTH)
    with pytest.raises(ZeroDivisionError), steering.disabled(), steering.recording():
        raise ZeroDivisionError
    assert not torch.equal(steering(h, 0), h)


def test_recording_keeps_gates_and_ends(steering: Steering) -> None:
    h = torch.randn(2, 5, WIDTH)
    with steering.recording() as record:
        steering(h, 0)
        steering(h, 2)
    assert sorted(record) == [0, 2] and not record[0].requires_grad
    assert torch.equal(record[2], steering.gates(h, 2))
    steering(h, 1)
    assert sorted(record) == [0, 2]


def test_other_threads_see_neither_strength_nor_record(steering: Steering) -> None:
    h = torch.randn(2, 5, WIDTH)
    steered = steering(h, 0)
    seen: dict[str, torch.Tensor] = {}
    inside, done = threading.Event(), threading.Event()

    def other() -> None:
        inside.wait(10)
        seen["other"] = steering(h, 0)
        done.set()

    thread = threading.Thread(target=other)
    thread.start()
    with steering.disabled(), steering.recording() as record:
        inside.set()
        assert done.wait(10)
        assert torch.equal(steering(h, 0), h)
    thread.join()
    assert torch.equal(seen["other"], steered)
    assert not record


def test_one_adapter_disabled_leaves_another_alone() -> None:
    one, other, h = Steering(1, 2, 4), Steering(1, 2, 4), torch.randn(1, 3, 4)
    with one.disabled(), other.scaled(2.0), other.recording() as record:
        assert one(h, 0) is h
        assert not torch.equal(other(h, 0), h)
    assert set(record) == {0}
    assert not torch.equal(one(h, 0), h)

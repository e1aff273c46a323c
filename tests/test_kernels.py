"""The fused operation against the equations: in float64, bit for bit on a CPU, and as Triton kernels.

Without a GPU the Triton kernels run under Triton's interpreter, where triton is installed (``kernels_interpreted.py``).
"""

from __future__ import annotations

import copy
import importlib.util
import itertools
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

import steermoe
from steermoe import kernels
from steermoe.steering import Steering

NAMES = ("h", "weight", "bias", "vectors", "scale")
HALVES = (torch.bfloat16, torch.float16)
# Of a norm: a few roundings of fp32; one of the half types, and those of TF32 (2**-10 at worst) on a GPU.
TOLERANCE = {torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 8e-3}

no_triton = importlib.util.find_spec("triton") is None
on_cuda = pytest.mark.skipif(not torch.cuda.is_available() or no_triton, reason="needs a GPU and triton")

shapes = st.lists(st.sampled_from([0, 1, 2, 3, 7, 13]), min_size=1, max_size=3)
widths = st.sampled_from([1, 2, 5, 17, 64, 65, 129])
experts = st.integers(1, 64)
seeds = st.integers(0, 999)
drawn = settings(max_examples=40, deadline=None, derandomize=True, database=None)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def inputs(
    shape: list[int], width: int, count: int, dtype: torch.dtype = torch.float32, seed: int = 0, device: str = "cpu"
) -> list[Tensor]:
    """h in ``dtype``, and as if trained: weight, bias, vectors, scale."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    h = normal(*shape, width).to(dtype)
    made = [h, normal(count, width) / width**0.5, normal(count), normal(count, width), torch.tensor(0.7)]
    return [t.to(device).requires_grad_() for t in made]


def equations(h: Tensor, weight: Tensor, bias: Tensor, vectors: Tensor, scale: Tensor) -> Tensor:
    return h + scale * ((h @ weight.T + bias).softmax(-1) @ vectors)


def differentiated(steer: Callable[..., Tensor], given: list[Tensor], grad: Tensor) -> dict[str, Tensor]:
    """The output and the five gradients."""
    out = steer(*given)
    return {"out": out.detach(), **dict(zip(NAMES, torch.autograd.grad(out, given, grad), strict=True))}


def check(given: list[Tensor], tolerance: float | None = None, steer: Callable[..., Tensor] = kernels.steer) -> None:
    """Output and gradients against float64, by norm: nothing is compared to a number that cancelled to almost none."""
    h = given[0]
    grad = torch.randn(h.shape, generator=torch.Generator().manual_seed(1)).to(h)
    ours = differentiated(steer, given, grad)
    exact = differentiated(equations, [t.detach().double().requires_grad_() for t in given], grad.double())
    for (name, got), want, of in zip(ours.items(), exact.values(), (h, *given), strict=True):
        assert got.dtype == of.dtype and got.shape == of.shape, name
        assert got.isfinite().all(), name
        error, size = (got.double() - want).norm(), want.norm() + grad.double().norm()
        assert error <= (tolerance or TOLERANCE[h.dtype]) * size, (name, float(error / size.clamp(min=1e-30)))


# The plain path.


@pytest.mark.parametrize("shape", [[3], [2, 3], [0]])
def test_gradients_by_finite_differences(shape: list[int]) -> None:
    given = [t.detach().double().requires_grad_() for t in inputs(shape, 5, 4)]
    assert torch.autograd.gradcheck(kernels.steer, given)


@drawn
@given(shape=shapes, width=widths, count=experts, dtype=st.sampled_from(list(TOLERANCE)), seed=seeds)
def test_against_float64(shape: list[int], width: int, count: int, dtype: torch.dtype, seed: int) -> None:
    check(inputs(shape, width, count, dtype, seed))


@drawn
@given(shape=shapes, width=widths, count=experts, dtype=st.sampled_from(list(TOLERANCE)), cut=st.integers(0, 3))
def test_on_a_cpu_the_bits_are_the_equations(
    shape: list[int], width: int, count: int, dtype: torch.dtype, cut: int
) -> None:
    steering = Steering(2, count, width)
    h = inputs(shape, width, count, dtype)[0].detach()
    if cut == 1:
        h = h.transpose(0, -2)  # hidden states are not always contiguous
    elif cut > 1:
        h = torch.cat([h, h], -1)[..., ::2] if cut == 2 else h[..., :1].expand(h.shape)
    for mixed in (False, dtype != torch.float16):  # half types that differ promote each other to a third
        with torch.autocast("cpu", torch.bfloat16) if mixed else nullcontext():
            fused = steering(h, 1)
            with torch.no_grad():
                plain = steering(h, 1)
        assert fused.grad_fn is not None and plain.grad_fn is None
        assert torch.equal(fused, plain) and fused.dtype == plain.dtype


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_what_is_frozen_gets_none_and_changes_nothing(dtype: torch.dtype) -> None:
    full, grad = inputs([2, 3], 6, 4, dtype), torch.randn(2, 3, 6, dtype=dtype)
    want = differentiated(kernels.steer, full, grad)
    for learns in itertools.product((False, True), repeat=5):
        given = [t.detach().requires_grad_(yes) for t, yes in zip(full, learns, strict=True)]
        out = kernels.steer(*given)
        assert out.requires_grad == any(learns) and torch.equal(out, want["out"])
        if any(learns):
            out.backward(grad)
        for name, t, yes in zip(NAMES, given, learns, strict=True):
            assert torch.equal(t.grad, want[name]) if yes else t.grad is None


def saved(work: Callable[[], Any]) -> list[Tensor]:
    """Tensors kept for the backward pass, each storage once."""
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with saved_tensors_hooks(keep, lambda t: t):
        work()
    return list(kept.values())


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("learns", ["all", "h", "steering"])
def test_the_backward_pass_keeps_h_and_no_more(dtype: torch.dtype, learns: str) -> None:
    steering = Steering(2, 8, 33).requires_grad_(learns != "h")
    h = torch.randn(3, 50, 33, dtype=dtype, requires_grad=learns != "steering")
    known = {t.untyped_storage().data_ptr() for t in (h, *steering.parameters())}
    kept = saved(lambda: steering(h, 1))
    assert [t for t in kept if t.untyped_storage().data_ptr() not in known and t.numel() > 1] == []
    # The same measure sees what the equations keep.
    weight, bias = (t.to(dtype) for t in steering.router_slice(1))
    vectors, scale = steering.vectors[1].to(dtype), steering.scales[1].to(dtype)
    plain = saved(lambda: equations(h, weight, bias, vectors, scale))
    assert any(t.shape[-1] == 8 and t.ndim == 3 and t.numel() == 3 * 50 * 8 for t in plain)


def test_recording_hands_out_the_gates_and_changes_nothing() -> None:
    steering, h = Steering(2, 4, 6), torch.randn(2, 5, 6)
    alone = steering(h, 1)
    with steering.recording() as record:
        out = steering(h, 1)
    assert torch.equal(out, alone) and out.grad_fn is not None
    assert torch.equal(record[1], steering.gates(h, 1)) and not record[1].requires_grad
    gates = kernels.steer_and_gates(h, *steering.router_slice(1), steering.vectors[1], steering.scales[1])[1]
    assert torch.equal(gates, record[1]) and not gates.requires_grad


def test_strength_reaches_the_gradients() -> None:
    steering, h = Steering(1, 4, 6), torch.randn(3, 6, requires_grad=True)  # (T, D)
    given = [h, steering.router.weight, steering.vectors, steering.scales]
    with steering.scaled(3.0):
        strong = torch.autograd.grad(steering(h, 0).square().sum(), given)
    with torch.no_grad():
        steering.scales *= 3
    same = torch.autograd.grad(steering(h, 0).square().sum(), given)
    for a, b, factor in zip(strong, same, (1, 1, 1, 3), strict=True):
        torch.testing.assert_close(a, factor * b)
    with steering.disabled():
        assert steering(h, 0) is h


def test_differentiable_once_and_says_so() -> None:
    given = inputs([3], 5, 2)
    (dh,) = torch.autograd.grad(kernels.steer(*given).square().sum(), given[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dh.sum().backward()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_it_is_the_same(backend: str) -> None:
    given, grad = inputs([2, 7], 33, 5), torch.randn(2, 7, 33)
    steering = Steering(1, 5, 33)
    plain, module = differentiated(kernels.steer, given, grad), steering(given[0], 0)
    torch._dynamo.reset()
    try:
        compiled = differentiated(torch.compile(kernels.steer, backend=backend, fullgraph=True), given, grad)
        again = torch.compile(steering, backend=backend)(given[0], 0)
    finally:
        torch._dynamo.reset()
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value)
    torch.testing.assert_close(again, module)


def gradients(steering: Steering, h: Tensor, run: Callable[..., Tensor] | None = None) -> list[Tensor]:
    h = h.detach().requires_grad_()
    return list(torch.autograd.grad((run or steering)(h, 0).float().square().sum(), [h, *steering.parameters()]))


def test_copied_pickled_checkpointed_it_is_the_same() -> None:
    steering, h = Steering(1, 4, 6), torch.randn(2, 5, 6)
    want = gradients(steering, h)
    twins = [copy.deepcopy(steering), pickle.loads(pickle.dumps(steering))]
    assert all(torch.equal(a, b) for twin in twins for a, b in zip(gradients(twin, h), want, strict=True))
    again = gradients(steering, h, lambda x, layer: checkpoint(steering, x, layer, use_reentrant=False))
    assert all(torch.equal(a, b) for a, b in zip(again, want, strict=True))
    with torch.inference_mode():
        parameters = *steering.router_slice(0), steering.vectors[0], steering.scales[0]
        assert torch.equal(kernels.steer(h, *parameters), steering(h, 0))


def test_autocast_in_the_forward_pass_the_backward_pass_or_both() -> None:
    steering, h = Steering(1, 4, 6), torch.randn(2, 5, 6)
    exact = gradients(steering, h)
    results = []
    for inside in (False, True):
        x = h.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            out = steering(x, 0)
            assert out.dtype == torch.float32
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            results.append(torch.autograd.grad(out.square().sum(), [x, *steering.parameters()]))
    for a, b, c in zip(*results, exact, strict=True):
        assert torch.equal(a, b) and a.dtype == torch.float32
        assert (a - c).norm() <= 0.02 * c.norm()


def test_autocast_leaves_alone_what_it_did_not_choose() -> None:
    given, grad = inputs([2, 3], 6, 4), torch.randn(2, 3, 6)
    want, out = differentiated(kernels.steer, given, grad), kernels.steer(*given)
    with torch.autocast("cpu", torch.bfloat16):  # around the backward pass only
        assert all(torch.equal(g, want[n]) for n, g in zip(NAMES, torch.autograd.grad(out, given, grad), strict=True))
    half = inputs([2, 3], 6, 4, torch.float16)
    want = differentiated(kernels.steer, half, grad.half())
    with torch.autocast("cpu", torch.bfloat16):  # h is of another half type already
        assert all(torch.equal(t, want[n]) for n, t in differentiated(kernels.steer, half, grad.half()).items())


def test_shapes_without_numbers() -> None:
    steering = Steering(1, 4, 6).to("meta")
    assert steering(torch.empty(2, 3, 6, device="meta"), 0).shape == (2, 3, 6)


def test_a_gpu_on_which_triton_fails_is_steered_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        @staticmethod
        def forward(*_: Any) -> None:
            raise RuntimeError("no C compiler")

    attempt = kernels._kernels.__wrapped__
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    ones = torch.ones
    monkeypatch.setattr(torch, "ones", lambda *size, device, dtype: ones(*size, dtype=dtype))
    monkeypatch.setitem(sys.modules, "steermoe.triton_steer", Broken)
    monkeypatch.setattr(steermoe, "triton_steer", Broken, raising=False)
    with pytest.warns(UserWarning, match="triton cannot run here.*no C compiler"):
        assert attempt(0) is None
    monkeypatch.delattr(steermoe, "triton_steer")
    monkeypatch.setitem(sys.modules, "steermoe.triton_steer", None)  # as if it, or triton, were missing
    assert attempt(0) is None


# The Triton kernels under Triton's interpreter.


@pytest.mark.skipif(no_triton, reason="triton is not installed")
def test_the_kernels_under_tritons_interpreter() -> None:
    tests = Path(__file__).with_name("kernels_interpreted.py")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(tests)]
    run = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert run.returncode == 0 and " passed" in run.stdout and "skipped" not in run.stdout, run.stdout + run.stderr


CASES = [
    ([1], 1, 1),
    ([7], 33, 3),
    ([3, 5], 65, 16),
    ([2, 1, 9], 17, 17),
    ([33], 64, 32),
    ([40], 130, 33),
    ([21], 6, 64),
    ([4100], 5, 2),  # many rows: larger blocks
]


# On a GPU.


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which of the kernels ran; the plain path may not."""
    from steermoe import triton_steer

    calls: list[str] = []
    for name in ("forward", "backward"):
        kernel = getattr(triton_steer, name)
        monkeypatch.setattr(triton_steer, name, lambda *a, n=name, k=kernel: calls.append(n) or k(*a))
        monkeypatch.setattr(kernels, f"_{name}", None)
    kernels._kernels(0)  # its trial call is none of these
    calls.clear()
    return calls


@on_cuda
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_cuda_against_float64(used: list[str], dtype: torch.dtype) -> None:
    for shape, width, count in [*CASES, ([2, 1500], 1280, 8), ([5000], 1280, 64)]:
        check(inputs(shape, width, count, dtype, device="cuda"))
        assert used == ["forward", "backward"]
        used.clear()


@on_cuda
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_cuda_steering_uses_it_and_repeats_its_bits(used: list[str], dtype: torch.dtype) -> None:
    steering, h = Steering(1, 8, 1280).cuda(), torch.randn(2, 1500, 1280, device="cuda", dtype=dtype)
    with torch.inference_mode(), steering.recording() as record:
        first = steering(h, 0)
    assert used == ["forward"]
    torch.testing.assert_close(record[0], steering.gates(h, 0), rtol=2e-2, atol=2e-3)
    assert torch.equal(steering(h, 0), first)
    one, two = gradients(steering, h), gradients(steering, h)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert used.count("backward") == 2


@on_cuda
def test_cuda_without_the_kernels_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_kernels", lambda device: None)
    for dtype in HALVES:
        check(inputs([2, 50], 64, 8, dtype, device="cuda"))

"""The Triton kernels on CPU tensors. ``test_kernels.py`` runs this file in a process of its own, because triton reads
TRITON_INTERPRET when it is imported:

    TRITON_INTERPRET=1 python -m pytest tests/kernels_interpreted.py
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steermoe import kernels, triton_steer

from .test_kernels import CASES, NAMES, TOLERANCE, check, differentiated, drawn, experts, inputs, seeds


@pytest.fixture(scope="module", autouse=True)
def interpreted() -> Iterator[None]:
    """CPU tensors go to the kernels, and nothing else can do the work."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "_fused", lambda h, experts: triton_steer)
        for name in ("_forward", "_backward", "_gates"):
            patch.setattr(kernels, name, None)
        yield


@pytest.mark.parametrize(("shape", "width", "count"), CASES)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_against_float64(shape: list[int], width: int, count: int, dtype: torch.dtype) -> None:
    check(inputs(shape, width, count, dtype))


@settings(drawn, max_examples=25)
@given(rows=st.integers(1, 70), width=st.integers(1, 140), count=experts, seed=seeds)
def test_random_shapes(rows: int, width: int, count: int, seed: int) -> None:
    check(inputs([rows], width, count, seed=seed))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_strided_and_half_parameters(dtype: torch.dtype) -> None:
    h, *parameters = (t.detach() for t in inputs([3, 5], 12, 4, dtype))
    strided = h.transpose(0, 1)[:, :, ::2], *(t[..., ::2] if t.ndim == 2 else t for t in parameters)
    check([t.requires_grad_() for t in strided])
    check([t.detach().to(dtype).requires_grad_() for t in strided])


def test_gates_and_frozen_parts() -> None:
    full, grad = inputs([2, 3], 6, 4), torch.randn(2, 3, 6)
    gates = kernels.steer_and_gates(*full)[1]
    torch.testing.assert_close(gates, (full[0] @ full[1].T + full[2]).softmax(-1).detach())
    want = differentiated(kernels.steer, full, grad)
    for learns in ([True, *[False] * 4], [False, *[True] * 4]):
        given = [t.detach().requires_grad_(yes) for t, yes in zip(full, learns, strict=True)]
        kernels.steer(*given).backward(grad)
        for name, t, yes in zip(NAMES, given, learns, strict=True):
            assert torch.equal(t.grad, want[name]) if yes else t.grad is None

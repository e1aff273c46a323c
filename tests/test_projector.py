"""Pooling with ragged ends by known values, and that padding never counts."""

from __future__ import annotations

import pytest
import torch

from steermoe.projector import LinearProjector, MLPProjector, pool

# One feature a frame; lengths 5 and 2 of 6 frames; what lies beyond is poison.
H = torch.tensor([[1.0, 3.0, -5.0, 7.0, 10.0, 99.0], [-4.0, -2.0, 99.0, 99.0, 99.0, 99.0]])[..., None]
LENGTHS = torch.tensor([5, 2])


@pytest.mark.parametrize(
    ("how", "kernel", "expected"),
    [
        ("mean", 2, [[2, 1, 10], [-3, 0, 0]]),
        ("mean", 4, [[1.5, 10], [-3, 0]]),
        ("max", 2, [[3, 7, 10], [-2, 0, 0]]),
        ("max", 4, [[7, 10], [-2, 0]]),  # -2, not the 0 of padding
        ("stack", 4, [[[1, 3, -5, 7], [10, 0, 0, 0]], [[-4, -2, 0, 0], [0, 0, 0, 0]]]),
        ("mean", 1, [[1, 3, -5, 7, 10, 0], [-4, -2, 0, 0, 0, 0]]),
        ("mean", 9, [[3.2], [-3]]),
    ],
)
@pytest.mark.parametrize("poison", [99.0, float("nan"), float("inf")])
def test_known_values(how: str, kernel: int, expected: list, poison: float) -> None:
    h = torch.where(H == 99.0, poison, H)
    pooled, lengths = pool(h, LENGTHS, kernel, how)
    wanted = torch.tensor(expected, dtype=torch.float32)
    torch.testing.assert_close(pooled, wanted if how == "stack" else wanted[..., None])
    assert lengths.tolist() == [-(-5 // kernel), -(-2 // kernel)]


@pytest.mark.parametrize("how", ["mean", "max", "stack"])
def test_full_batch_is_plain_pooling(how: str) -> None:
    h = torch.randn(2, 8, 3)
    pooled, lengths = pool(h, torch.tensor([8, 8]), 4, how)
    groups = h.view(2, 2, 4, 3)
    wanted = {"mean": groups.mean(2), "max": groups.amax(2), "stack": groups.flatten(2)}[how]
    torch.testing.assert_close(pooled, wanted)
    assert lengths.tolist() == [2, 2]


@pytest.mark.parametrize("pooling", ["mean", "max", "stack"])
def test_linear_is_pool_then_one_map(pooling: str) -> None:
    projector = LinearProjector(3, 7, kernel=4, pooling=pooling)
    h, lengths = torch.randn(2, 6, 3), torch.tensor([6, 3])
    out = projector(h, lengths)
    torch.testing.assert_close(out.embeddings, projector.proj(pool(h, lengths, 4, pooling)[0]))
    assert out.lengths.tolist() == [2, 1] and out.tokens is None and out.likeliest is None
    twice = projector(h, lengths, norm=lambda x: 2 * x)  # the reference's order: after pooling
    torch.testing.assert_close(twice.embeddings, projector.proj(2 * pool(h, lengths, 4, pooling)[0]))


@pytest.mark.parametrize("make", [LinearProjector, MLPProjector])
def test_batch_equals_alone(make: type) -> None:
    torch.manual_seed(0)
    projector = make(3, 7)
    clips = [torch.randn(n, 3) for n in (9, 1, 4, 6)]
    lengths = torch.tensor([len(c) for c in clips])
    batch = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True, padding_value=float("nan"))
    out = projector(batch, lengths)
    for i, clip in enumerate(clips):
        alone = projector(clip[None], lengths[i : i + 1])
        torch.testing.assert_close(out.embeddings[i, : out.lengths[i]], alone.embeddings[0])
        assert int(alone.lengths) == int(out.lengths[i])


@pytest.mark.parametrize("make", [LinearProjector, MLPProjector])
def test_takes_half_precision_frames(make: type) -> None:
    out = make(3, 7)(torch.randn(1, 8, 3).bfloat16(), torch.tensor([8]))
    assert out.embeddings.dtype == torch.float32 and out.embeddings.shape == (1, 2, 7)

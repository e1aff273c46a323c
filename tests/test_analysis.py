"""Routing statistics of gates whose numbers are known, and pictures that show what they are given."""

from __future__ import annotations

import io
import math
import subprocess
import sys

import numpy as np
import pytest

from steermoe import analysis
from steermoe.analysis import curve_panels, plot_curves, plot_gates, plot_usage, routing_statistics
from steermoe.errors import UsageError


def pixels(png: bytes) -> np.ndarray:
    """(height, width, RGB) in 0..1."""
    from matplotlib.image import imread

    assert png.startswith(b"\x89PNG")
    return np.asarray(imread(io.BytesIO(png)))[..., :3]


def test_statistics_of_known_gates() -> None:
    uniform = np.full((5, 4), 0.25)
    hard = np.eye(4)[[0, 0, 0, 2, 3]]
    stats = routing_statistics([uniform, hard])
    assert (stats["layers"], stats["experts"], stats["frames"]) == (2, 4, [5, 5])
    assert stats["usage"][0] == pytest.approx([0.25] * 4)
    assert stats["usage"][1] == stats["won"][1] == pytest.approx([0.6, 0, 0.2, 0.2])
    assert stats["entropy"] == pytest.approx([math.log(4), 0])
    assert stats["entropy_fraction"] == pytest.approx([1, 0])
    assert stats["max_gate"] == pytest.approx([0.25, 1])
    assert stats["won"][0] == [1, 0, 0, 0]  # the first of equals


def test_statistics_of_random_gates_add_up() -> None:
    raw = np.exp(np.random.default_rng(0).normal(size=(200, 8)))
    gates = (raw / raw.sum(1, keepdims=True)).astype(np.float32)
    stats = routing_statistics([gates])
    assert sum(stats["usage"][0]) == pytest.approx(1, abs=1e-5)
    assert sum(stats["won"][0]) == pytest.approx(1)
    assert 0 < stats["entropy_fraction"][0] < 1
    assert 1 / 8 < stats["max_gate"][0] < 1
    assert routing_statistics([np.ones((3, 1))])["entropy_fraction"] == [0.0]


@pytest.mark.parametrize(
    "gates", [[], [np.ones(4)], [np.ones((1, 5, 4))], [np.ones((0, 4))], [np.ones((5, 4)), np.ones((5, 3))]]
)
def test_gates_of_a_wrong_shape_are_refused(gates: list[np.ndarray]) -> None:
    with pytest.raises(UsageError, match=r"recorded|layer"):
        routing_statistics(gates)


def test_gates_are_drawn_over_time() -> None:
    switch = np.concatenate([np.tile([1.0, 0.0], (50, 1)), np.tile([0.0, 1.0], (50, 1))])  # two seconds
    mel = np.random.default_rng(0).normal(size=(80, 200)).astype(np.float32)
    picture = pixels(plot_gates([switch] * 3, mel, [0.1, 0.2, 0.3], "A title"))
    assert picture.shape[1] == 1600
    strip = picture[int(0.8 * len(picture)) :, 300:1400]  # within the lowest layer
    bright = (strip[..., 0] > 0.9) & (strip[..., 1] > 0.85) & (strip[..., 2] < 0.3)  # viridis' yellow
    columns = np.flatnonzero(bright.any(axis=1))
    first, last = bright[columns[0] + 3], bright[columns[-1] - 3]
    assert first[:400].all() and not first[-400:].any()  # expert 1, above, in the first second
    assert last[-400:].all() and not last[:400].any()
    with pytest.raises(UsageError, match="2 layer scales for the gates of 3 layers"):
        plot_gates([switch] * 3, mel, [0.1, 0.2])


def test_pictures_come_light_and_dark_and_without_spectrogram() -> None:
    gates = [np.full((20, 4), 0.25)] * 3
    stats = routing_statistics(gates)
    rows = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]
    for light, dark in (
        (plot_gates(gates), plot_gates(gates, dark=True)),
        (plot_usage(stats), plot_usage(stats, dark=True)),
        (plot_curves(rows), plot_curves(rows, dark=True)),
    ):
        assert pixels(light)[0, 0].min() > 0.99
        assert pixels(dark)[0, 0].max() < 0.2


def test_a_flat_spectrogram_is_drawn_too() -> None:
    plot_gates([np.full((20, 4), 0.25)], np.zeros((80, 40)), title="silence")


def test_curves_find_their_panels() -> None:
    rows = [
        {"step": i, "seconds": i * 2.0, "epoch": i, "loss": 3.0 - i, "lr": 0.1, "lr/steering": 0.1 * i, "kind": "ctc",
         "finished": i > 1, "constant": 7, "scale.0": 0.1, "scale.1": 0.1 + i} for i in range(3)
    ]  # fmt: skip
    rows[1] |= {"valid_loss": 2.5, "valid_wer": 0.5}
    rows[2] |= {"valid_loss": 1.5, "valid_wer": 0.4, "loss": float("nan"), "seen_once": 1}
    assert curve_panels(rows) == {
        "loss": ["loss", "valid_loss"],
        "lr": ["lr", "lr/steering"],
        "scale": ["scale.0", "scale.1"],
        "wer": ["valid_wer"],
    }
    assert curve_panels(rows, ["loss", "constant"]) == {"loss": ["loss"], "constant": ["constant"]}
    picture = pixels(plot_curves(rows))
    assert pixels(plot_curves(rows, ["loss"])).shape[0] == picture.shape[0] // 2
    for nothing in ([], [{"step": 1, "loss": 1.0}], [{"step": i, "note": "x"} for i in range(3)]):
        with pytest.raises(UsageError, match="nothing to draw"):
            plot_curves(nothing)


def test_many_noisy_curves_are_drawn() -> None:
    rng = np.random.default_rng(0)
    rows = [{"step": i, "grad_norm": float(np.exp(rng.normal() * 2))} | {f"scale/{k}": k + i / 9 for k in range(12)}
            for i in range(200)]  # fmt: skip
    plot_curves(rows)


def test_smoothing_calms_noise_and_leaves_lines_alone() -> None:
    line = np.linspace(0, 5, 400)
    assert analysis._smooth(line) is line
    short = np.random.default_rng(0).normal(size=50)
    assert analysis._smooth(short) is short
    noisy = line + np.random.default_rng(0).normal(size=400)
    smooth = analysis._smooth(noisy)
    assert np.std(smooth - line) < 0.5
    assert abs(np.mean((smooth - line)[50:-50])) < 0.1  # no lag


def test_no_global_plotting_state_and_no_heavy_import() -> None:
    code = (
        "import sys, steermoe.analysis as a, numpy as np; assert 'matplotlib' not in sys.modules; "
        "a.plot_usage(a.routing_statistics([np.full((2, 2), .5)])); assert 'matplotlib.pyplot' not in sys.modules; "
        "import steermoe.evaluation; assert not {'torch', 'transformers', 'jiwer'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)

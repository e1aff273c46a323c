"""What the router does: statistics of recorded gates, and pictures of them and of training.

Gates are a list, one per steered layer, of arrays (T, N): the softmax weight of each of N experts at each of T
encoder frames of one audio. Pictures are PNG bytes, drawn without pyplot (no global state, safe in a server),
in colours that read the same with colour-blind eyes; ``dark`` fits them to a dark page.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FRAME_RATE = 50.0  # encoder frames a second: Whisper's
MEL_RATE = 100.0  # mel frames a second
DPI = 160
# Okabe and Ito's palette, in orders that stand out on white and on a dark page.
LIGHT = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DARK = ("#56B4E9", "#E69F00", "#2BC59B", "#CC79A7", "#F0E442", "#F07A3A")
NOT_CURVES = {"step", "epoch", "seconds", "time", "elapsed"}


def routing_statistics(gates: Sequence[np.ndarray]) -> dict[str, Any]:
    """Per layer: how much each expert is used, and how sharply the router chooses.

    Returns ``layers``, ``experts``, ``frames`` and lists with one entry per layer: ``usage`` (mean gate of each
    expert, sums to 1), ``won`` (share of frames in which each expert has the largest gate, the first of equals),
    ``entropy`` (mean over frames, nats), ``entropy_fraction`` (of log N: 1 is no choice, 0 a hard one; 0 for a
    single expert) and ``max_gate`` (mean of the largest gate). Raises UsageError for gates of a wrong shape.
    """
    arrays = _checked(gates)
    experts = arrays[0].shape[1]
    stats: dict[str, Any] = {"layers": len(arrays), "experts": experts, "frames": [len(gate) for gate in arrays]}
    rows = []
    for gate in arrays:  # (T, N)
        entropy = float(-(gate * np.log(np.maximum(gate, 1e-12))).sum(axis=1).mean())
        rows.append({
            "usage": gate.mean(axis=0).tolist(),
            "won": (np.bincount(gate.argmax(axis=1), minlength=experts) / len(gate)).tolist(),
            "entropy": entropy,
            "entropy_fraction": entropy / math.log(experts) if experts > 1 else 0.0,
            "max_gate": float(gate.max(axis=1).mean()),
        })  # fmt: skip
    return stats | {key: [row[key] for row in rows] for key in rows[0]}


def _checked(gates: Sequence[np.ndarray]) -> list[np.ndarray]:
    arrays = [np.asarray(gate, dtype=np.float64) for gate in gates]
    if not arrays:
        raise UsageError("no gates were recorded; run the model inside `with model.steering.recording()` first")
    for layer, gate in enumerate(arrays):
        if gate.ndim != 2 or not gate.size or gate.shape[1] != arrays[0].shape[1]:
            raise UsageError(
                f"gates of layer {layer} have the shape {gate.shape}; need (frames, experts), of one audio"
            )
    return arrays


def plot_gates(
    gates: Sequence[np.ndarray],
    mel: np.ndarray | None = None,
    scales: Sequence[float] | None = None,
    title: str = "",
    *,
    frame_rate: float = FRAME_RATE,
    layers: Sequence[int] | None = None,
    words: Sequence[tuple[float, float, str]] = (),
    dark: bool = False,
) -> bytes:
    """The log-mel spectrogram (80, T') on top and, below on the same seconds, one strip per layer of all experts.

    ``words``: (start, end, text) of what was read, printed between the two.

    A strip's colour is the gate, on a square-root scale (most gates are small) that ends at the largest gate
    anywhere; 1/N, no choice, is marked on its bar. ``scales``: the layers' learned alphas, printed beside the strips.
    ``layers``: their places in the encoder, 0 the first, where not all are steered.
    """
    from matplotlib.colors import PowerNorm

    arrays = _checked(gates)
    if scales is not None and len(scales) != len(arrays):
        raise UsageError(f"{len(scales)} layer scales for the gates of {len(arrays)} layers; give one for each")
    experts, seconds = arrays[0].shape[1], max(len(gate) for gate in arrays) / frame_rate
    strip = min(0.62, max(0.26, 9.0 / len(arrays)))  # inches
    heights = ([1.5] if mel is not None else []) + ([0.3] if words else []) + [strip] * len(arrays)
    top, bottom, gap = (0.55 if title else 0.2), 0.55, 0.07
    size = (10.0, sum(heights) + gap * len(heights) + top + bottom)
    figure, ink = _figure(size, dark)
    grid = figure.add_gridspec(
        len(heights), 2, height_ratios=heights, width_ratios=(1, 0.016), hspace=gap / float(np.mean(heights)),
        wspace=0.02, left=0.115, right=0.935, top=1 - top / size[1], bottom=bottom / size[1],
    )  # fmt: skip
    if title:
        figure.text(0.115, 1 - 0.22 / size[1], title, color=ink, fontsize=12, weight="bold", va="center")
    axes: list[Axes] = []
    if mel is not None:
        axis = figure.add_subplot(grid[0, 0])
        floor = float(np.max(mel)) - (2.0 if np.max(mel) < 10 else 8.0)  # Whisper's own range: 8 decades / 4
        axis.imshow(mel, origin="lower", aspect="auto", cmap="magma", interpolation="nearest",
                    vmin=max(floor, float(np.min(mel))), extent=(0, mel.shape[1] / MEL_RATE, 0, len(mel)))  # fmt: skip
        axis.set_ylabel("mel band", fontsize=8, color=ink)
        axis.set_yticks([0, len(mel)])
        axes.append(axis)
    if words:
        axis = figure.add_subplot(grid[len(axes), 0])
        for number, (start, end, word) in enumerate(words):
            shown = "".join(c for c in word if c.isprintable())  # a token may be half a character
            axis.text((start + end) / 2, 0.3 + 0.4 * (number % 2), shown, ha="center", va="center", fontsize=7, color=ink,
                      clip_on=True)  # fmt: skip
        axis.set_ylabel("read", rotation=0, ha="right", va="center", fontsize=7.5, color=ink)
        axis.yaxis.set_label_coords(-0.022, 0.5)
        axis.set_yticks([])
        axes.append(axis)
    top_gate = max(float(gate.max()) for gate in arrays)
    norm = PowerNorm(0.5, vmin=0, vmax=top_gate)
    for layer, gate in enumerate(arrays):
        axis = figure.add_subplot(grid[len(axes), 0])
        image = axis.imshow(gate.T, aspect="auto", cmap="viridis", interpolation="nearest", norm=norm,
                            extent=(0, len(gate) / frame_rate, experts, 0))  # fmt: skip
        label = f"layer {(layers[layer] if layers else layer) + 1}"
        if scales is not None:
            label += f"{chr(10) if strip > 0.4 else '  '}α {scales[layer]:.2f}"
        axis.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=7.5, color=ink)
        axis.yaxis.set_label_coords(-0.022, 0.5)
        if strip > 0.4 and experts <= 16:
            axis.set_yticks([0.5, experts - 0.5], ["1", str(experts)], fontsize=6)
        else:
            axis.set_yticks([])
        axes.append(axis)
    for axis in axes:
        axis.set_xlim(0, seconds)
        axis.tick_params(labelbottom=axis is axes[-1], length=2, colors=ink, labelsize=7)
        _frame(axis, ink)
    axes[-1].set_xlabel("seconds", fontsize=9, color=ink)
    bar = figure.colorbar(image, cax=figure.add_subplot(grid[len(axes) - len(arrays) :, 1]))
    bar.set_ticks([0, 1 / experts, top_gate], labels=["0", f"1/{experts}", f"{top_gate:.2f}"])
    bar.ax.tick_params(colors=ink, labelsize=7, length=2)
    bar.set_label("gate", fontsize=8, color=ink)
    bar.outline.set_visible(False)
    return _png(figure)


def plot_usage(stats: Mapping[str, Any], *, layers: Sequence[int] | None = None, dark: bool = False) -> bytes:
    """Mean gate of every expert in every layer, and beside it how much of a choice the router makes there.

    ``layers``: as in ``plot_gates``.
    """
    usage = np.asarray(stats["usage"])  # (L, N)
    count, experts = usage.shape
    size = (2.9 + 0.62 * max(experts, 4) + 2.6, 1.25 + max(0.3 * count, 1.2))
    figure, ink = _figure(size, dark)
    left, right = figure.subplots(1, 2, width_ratios=(0.62 * max(experts, 4), 2.2), sharey=True)
    figure.subplots_adjust(
        left=0.9 / size[0], right=1 - 0.25 / size[0], top=1 - 0.5 / size[1], bottom=0.55 / size[1], wspace=0.06
    )
    left.imshow(usage, aspect="auto", cmap="viridis", vmin=0, vmax=max(float(usage.max()), 1 / experts))
    for (layer, expert), value in np.ndenumerate(usage):
        bright = value > 0.6 * usage.max()
        left.text(
            expert, layer, f"{value:.2f}", ha="center", va="center", fontsize=7.5, color="black" if bright else "white"
        )
    left.set_xticks(range(experts), [str(i + 1) for i in range(experts)])
    left.set_yticks(range(count), [f"layer {(layers[i] if layers else i) + 1}" for i in range(count)])
    left.set_xlabel("expert", fontsize=9, color=ink)
    left.set_title("mean gate", fontsize=10, color=ink, loc="left")
    fraction = np.asarray(stats["entropy_fraction"])
    right.barh(range(count), fraction, color=DARK[0], height=0.7)
    for layer, value in enumerate(fraction):
        right.text(min(value, 0.98) - 0.02, layer, f"{value:.2f}", ha="right" if value > 0.2 else "left", va="center",
                   fontsize=7.5, color="black" if value > 0.2 else ink)  # fmt: skip
    right.set_xlim(0, 1)
    right.set_xticks([0, 0.5, 1], ["0\none expert", "0.5", "1\nno choice"])
    for label, side in zip(right.get_xticklabels(), ("left", "center", "right"), strict=True):
        label.set_horizontalalignment(side)  # the long ones would stick out
    right.set_title("entropy / log N", fontsize=10, color=ink, loc="left")
    for axis in (left, right):
        axis.tick_params(colors=ink, labelsize=8, length=0)
        _frame(axis, ink, visible=False)
    right.tick_params(labelleft=False)
    return _png(figure)


def curve_panels(rows: Sequence[Mapping[str, Any]], keys: Sequence[str] | None = None) -> dict[str, list[str]]:
    """Which numbers of training rows belong in one picture: ``{"loss": ["loss", "valid_loss"], "lr": [...]}``.

    ``a/b`` and ``a.b`` go with all other ``a``; ``train_``, ``valid_`` and ``eval_`` do not part. Without
    ``keys``: every key that is a finite number in two rows or more, but step and time, in panels where
    something changes.
    """
    found: dict[str, list[float]] = {}
    for row in rows:
        for key, value in row.items():
            if _number(value) is not None:
                found.setdefault(key, []).append(float(value))
    panels: dict[str, list[str]] = {}
    for key in keys or [key for key, values in found.items() if len(values) > 1 and key not in NOT_CURVES]:
        name = key.replace(".", "/").split("/")[0]
        for prefix in ("train_", "valid_", "eval_"):
            name = name.removeprefix(prefix)
        panels.setdefault(name, []).append(key)
    return {
        name: members
        for name, members in panels.items()
        if keys or any(min(found[key]) < max(found[key]) for key in members)
    }


def plot_curves(rows: Sequence[Mapping[str, Any]], keys: Sequence[str] | None = None, *, dark: bool = False) -> bytes:
    """Training rows (``{"step": ..., "loss": ..., ...}``, keys may be absent in some) as small panels over steps.

    Long noisy curves are drawn faintly, with their running mean on top; a positive quantity that spans
    more than a factor of 30 gets a logarithmic axis. Raises UsageError where nothing can be drawn.
    """
    panels = curve_panels(rows, keys)
    if not panels:
        raise UsageError(f"the {len(rows)} training rows hold no number that changes; nothing to draw")
    columns = min(len(panels), 2)
    lines = math.ceil(len(panels) / columns)
    figure, ink = _figure((5.2 * columns, 2.75 * lines), dark)
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
    steps = [step for step in (_number(row.get("step", index)) for index, row in enumerate(rows)) if step is not None]
    start, end = min(steps, default=0.0), max(max(steps, default=1.0), min(steps, default=0.0) + 1)
    for position, (name, members) in enumerate(panels.items()):
        axis = figure.add_subplot(lines, columns, position + 1)
        _draw_panel(axis, rows, members, ink, dark)
        axis.set_xlim(start - 0.02 * (end - start), end + 0.02 * (end - start))
        axis.set_title(name, fontsize=10, color=ink, loc="left", weight="bold")
        if position + columns >= len(panels):
            axis.set_xlabel("step", fontsize=9, color=ink)
    return _png(figure)


def _draw_panel(axis: Axes, rows: Sequence[Mapping[str, Any]], members: Sequence[str], ink: str, dark: bool) -> None:
    from matplotlib import colormaps

    spread: list[float] = []
    palette: Sequence[Any] = DARK if dark else LIGHT
    if len(members) > len(palette):  # one per layer, most likely: an order, not a set
        palette = list(colormaps["viridis"](np.linspace(0.15 if dark else 0.0, 1.0 if dark else 0.85, len(members))))
    shown = set(np.linspace(0, len(members) - 1, min(len(members), 8)).round().astype(int))  # in the legend
    for number, key in enumerate(members):
        points = [(_number(row.get("step", index)), _number(row.get(key))) for index, row in enumerate(rows)]
        drawn = np.array([point for point in points if None not in point], dtype=float).reshape(-1, 2)
        x, y = drawn[:, 0], drawn[:, 1]
        label = key if number in shown else None
        mean = _smooth(y)
        if mean is not y:
            axis.plot(x, y, color=palette[number], alpha=0.4, linewidth=0.7)
        marker = "o" if len(y) <= 25 else None
        axis.plot(x, mean, color=palette[number], linewidth=1.7, marker=marker, markersize=3.5, label=label)
        spread += y.tolist()
    if spread and min(spread) > 0 and max(spread) / min(spread) > 30 and not members[0].startswith("lr"):
        axis.set_yscale("log")
    if len(members) > 1:
        axis.legend(fontsize=7.5, frameon=False, labelcolor=ink, ncols=2 if len(members) > 5 else 1)
    axis.grid(True, color=ink, alpha=0.15, linewidth=0.6)
    axis.tick_params(which="both", colors=ink, labelsize=8, length=2)
    _frame(axis, ink, visible=False)


def _smooth(values: np.ndarray) -> np.ndarray:
    """The running mean over a fortieth of a long, noisy curve, without lag; any other curve itself."""
    half = len(values) // 80
    spread = np.ptp(values) if len(values) else 0.0
    if half < 1 or not spread or np.abs(np.diff(values)).mean() < 0.02 * spread:
        return values
    sums = np.concatenate([[0.0], np.cumsum(values)])
    centre = np.arange(len(values))
    low, high = np.maximum(centre - half, 0), np.minimum(centre + half + 1, len(values))
    mean: np.ndarray = (sums[high] - sums[low]) / (high - low)
    return mean


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _figure(size: tuple[float, float], dark: bool) -> tuple[Figure, str]:
    """A figure of ``size`` inches and the colour of its ink."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=DPI, facecolor="#1b1e24" if dark else "white")
    FigureCanvasAgg(figure)
    return figure, "#d5d9e0" if dark else "#24292f"


def _frame(axis: Axes, ink: str, visible: bool = True) -> None:
    axis.set_facecolor("none")
    for spine in axis.spines.values():
        spine.set_visible(visible)
        spine.set_edgecolor(ink)
        spine.set_linewidth(0.5)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor=figure.get_facecolor(), metadata={"Software": None})
    return buffer.getvalue()

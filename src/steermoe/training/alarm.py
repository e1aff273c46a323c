"""One line when the router collapses: when one expert of a layer takes nearly all, the others learn nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..steering import Steering


class CollapseAlarm:
    """Watches the gates of single steps; ``share`` is the mean gate of one expert that is too much."""

    def __init__(self, steering: Steering | None, share: float = 0.9) -> None:
        self.steering, self.share = steering, share
        self.told: set[tuple[int, int]] | None = None  # layers and experts that were named already

    @contextmanager
    def watching(self, step: int) -> Iterator[list[str]]:
        """Around a forward pass; yields a list that holds, after it, a line for each expert that newly took over."""
        lines: list[str] = []
        if self.steering is None or self.steering.num_experts < 2:
            yield lines
            return
        with self.steering.recording() as record:
            yield lines
        over = {}
        for layer, gates in record.items():
            usage = gates.flatten(0, -2).float().mean(dim=0)  # (N,)
            if float(usage.max()) > self.share:
                over[layer, int(usage.argmax())] = float(usage.max())
        if self.told is None and over:
            layers = ", ".join(str(layer + 1) for layer, _ in sorted(over))
            lines.append(f"the router has collapsed already in what this begins with: steered layer {layers}")
            self.told = set(over)
        lines += [
            f"step {step}: the router collapses in steered layer {layer + 1}, expert {expert + 1} has a mean gate of {mean:.2f} "
            f"(more than {self.share:g}): lower rates.router"
            for (layer, expert), mean in sorted(over.items())
            if (layer, expert) not in (self.told or ())
        ]
        self.told = set(over)  # one that recovers may be named again

"""Hooks that steer an encoder from outside: its modules, weights and state dict stay exactly as they were."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.hooks import RemovableHandle

Steer = Callable[[Tensor, int], Tensor]


def hidden(output: Any) -> Tensor:
    """A layer's hidden state; some return a tuple that begins with it."""
    return output[0] if isinstance(output, tuple) else output


def _hook(steer: Steer, layer: int, module: nn.Module, args: Any, output: Any) -> Any:
    """Steers a layer's output and leaves whatever else it returns."""
    steered = steer(hidden(output), layer)
    return (steered, *output[1:]) if isinstance(output, tuple) else steered


class Attached:
    """Handles of the hooks; ``remove()`` makes the encoder itself again."""

    def __init__(self, handles: list[RemovableHandle]) -> None:
        self.handles = handles

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


def attach(layers: Sequence[nn.Module], steer: Steer, chosen: Sequence[int] | None = None) -> Attached:
    """Hook ``steer(h, i)`` after layer ``chosen[i]`` (all layers when None).

    ``prepend`` lets transformers' own recording hooks see the steered state, whenever they were added;
    ``partial`` instead of a lambda survives ``copy.deepcopy``.
    """
    picked = list(layers) if chosen is None else [layers[i] for i in chosen]
    return Attached([m.register_forward_hook(partial(_hook, steer, i), prepend=True) for i, m in enumerate(picked)])


@contextmanager
def checkpointed(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Within it the backward pass computes each layer anew instead of keeping what it computed: a third more time, a
    fraction of the memory.

    Unlike transformers' own switch it needs no layer in training mode, where a frozen encoder must not be; the hooks
    run outside, once.
    """
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the class's own again

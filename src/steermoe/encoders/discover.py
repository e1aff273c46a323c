"""Where an encoder keeps its layers: asked of transformers, or given as a dotted path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from ..errors import UsageError


def find_layers(encoder: nn.Module, path: str | None = None) -> Sequence[nn.Module]:
    """The residual-stream layers, in order.

    ``path`` (such as ``encoder.layers``) overrides. Without it, the layers are the modules of the class that
    transformers itself records as ``hidden_states``.

    Raises UsageError when neither finds any.
    """
    if path is not None:
        try:
            found_there: Any = encoder.get_submodule(path)
            return list(found_there)
        except (AttributeError, TypeError):
            names = [n for n, m in encoder.named_modules() if isinstance(m, nn.ModuleList)]
            raise UsageError(f"layers={path!r}: no list of layers there; this encoder has {', '.join(names)}") from None
    recorded: Any = (getattr(encoder, "_can_record_outputs", None) or {}).get("hidden_states")
    kinds = recorded if isinstance(recorded, (list, tuple)) else [recorded]
    classes: Any = tuple(getattr(kind, "target_class", kind) for kind in kinds if kind is not None)
    found = [m for m in encoder.modules() if classes and isinstance(m, classes)]
    if not found:
        raise UsageError(
            f"{type(encoder).__name__} does not say where its layers are; "
            "give the path of its list of layers, such as encoder_layers: encoder.layers"
        )
    return found

"""Audio encoders behind one contract (frames.EncoderFrames); a family that needs more is one small file."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ..errors import UsageError


def wrap(encoder: Any, extractor: Any, layers: str | None = None, pad_to_window: bool = False) -> Any:
    """The front for a loaded encoder and its feature extractor; ``layers`` is a dotted path to its layers.

    Raises UsageError for an encoder that cannot be steered.
    """
    from .frames import EncoderFrames
    from .whisper import WhisperFrames

    kind = encoder.config.model_type
    if kind == "whisper":
        return WhisperFrames(encoder, extractor, layers, pad_to_window)
    if pad_to_window:
        raise UsageError(f"pad_to_window is Whisper's; {kind!r} takes its input as its extractor makes it")
    front: Any = EncoderFrames
    if kind in FAMILIES:
        module, name = FAMILIES[kind]
        front = getattr(import_module(module, __name__), name)
    return front(encoder, extractor, layers)


# model_type -> module and name of a subclass of EncoderFrames, for what the probe cannot find out
FAMILIES: dict[str, tuple[str, str]] = {"fireredasr": (".fireredasr", "FireRedFrames")}

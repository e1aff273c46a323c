"""Audio encoders behind one contract (see whisper.WhisperFrames); one small file a family."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..errors import UsageError


def wrap(encoder: Any, extractor: Any, pad_to_window: bool = False) -> nn.Module:
    """The family's front for a loaded encoder and its feature extractor.

    Raises UsageError for a family that has none yet.
    """
    from .whisper import WhisperFrames

    families = {"whisper": WhisperFrames}
    kind = encoder.config.model_type
    if kind not in families:
        raise UsageError(f"encoder family {kind!r} cannot be steered yet; these can: {', '.join(families)}")
    return families[kind](encoder, extractor, pad_to_window)

"""Audio encoders behind one contract (frames.EncoderFrames); a family that needs more is one small file."""

from __future__ import annotations

from typing import Any

from ..audio import RATE
from ..errors import UsageError
from .fireredasr import FireRedFrames
from .frames import EncoderFrames
from .qwen3_asr import Qwen3ASRFrames
from .seamless import SeamlessFrames
from .whisper import WhisperFrames

# Families of which more must be known than the probe finds out, by model_type.
FAMILIES: dict[str, type[EncoderFrames]] = {
    "fireredasr": FireRedFrames,
    "qwen3_asr_encoder": Qwen3ASRFrames,
    "seamless_m4t": SeamlessFrames,
    "seamless_m4t_v2": SeamlessFrames,
}


def wrap(
    encoder: Any, extractor: Any, layers: str | None = None, pad_to_window: bool = False, silence: float = 0.0
) -> Any:
    """The front for a loaded encoder and its feature extractor; ``layers`` is a dotted path to its layers, the rest Whisper's.

    Raises UsageError for an encoder that cannot be steered.
    """
    kind = encoder.config.model_type
    if kind == "whisper":
        return WhisperFrames(encoder, extractor, layers, pad_to_window, silence)
    if pad_to_window or silence:
        raise UsageError(
            f"{'pad_to_window' if pad_to_window else 'silence'} is Whisper's; {kind!r} takes its input as its extractor makes it"
        )
    frames = FAMILIES.get(kind, EncoderFrames)(encoder, extractor, layers)
    if frames.sampling_rate != RATE:
        raise UsageError(
            f"{kind!r} hears {frames.sampling_rate} Hz, and audio comes to encoders at {RATE} Hz; choose one of that rate"
        )
    return frames

"""What the frozen encoder's own decoder hears: the number every adapter on that encoder is held against."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..audio import RATE, windows
from ..errors import UsageError

if TYPE_CHECKING:
    import torch


class WhisperOwnDecoder:
    """Whisper as it was trained: 30 s padding, greedy, no timestamps. A callable, batch in, texts out.

    ``name`` is a Whisper checkpoint as ``steermoe.pretrained.resolve`` takes it; ``language`` ("en", "zh") is what it is told to
    write, None: it finds out. Longer audio is heard in windows of at most 30 s whose texts are joined by a space: nothing is
    cut. Special tokens are no text. Raises UsageError if ``name`` is no Whisper.
    """

    def __init__(
        self,
        name: str,
        batch_size: int = 8,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
        language: str | None = "en",
    ) -> None:
        from transformers import AutoConfig, AutoTokenizer, WhisperFeatureExtractor, WhisperForConditionalGeneration

        from ..pretrained import auto_dtype, resolve
        from ..pretrained.load import no_progress_bars

        folder = resolve(name)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if config.model_type != "whisper":
            raise UsageError(
                f"the baseline {name!r} is a {config.model_type}, without a decoder of its own: use a Whisper"
            )
        self.name = str(name) if language == "en" else f"{name} ({language or 'any language'})"
        self.language = language
        self.batch_size = batch_size
        self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        self.features = WhisperFeatureExtractor.from_pretrained(folder)
        with no_progress_bars():
            model: Any = WhisperForConditionalGeneration.from_pretrained(
                folder, dtype=dtype or auto_dtype(device), attn_implementation="sdpa", use_safetensors=True
            )
        self.model = model.to(device).eval().requires_grad_(False)
        told = self.model.generation_config
        self.multilingual = getattr(told, "is_multilingual", None)
        if self.multilingual is None:
            raise UsageError(
                f"the baseline {name!r} has no Whisper generation_config.json; copy the one of its base model"
            )
        told.max_length = config.max_target_positions  # prompt and text, the decoder's window
        # No timestamps means none: generate() would take one for the end of a segment and listen from there again.
        told.suppress_tokens = [
            *(told.suppress_tokens or []),
            *range(told.no_timestamps_token_id + 1, config.vocab_size),
        ]

    def __call__(self, audio: list[np.ndarray]) -> list[str]:
        """``audio``: float32 mono arrays at 16 kHz, of any lengths."""
        pieces = [(index, piece) for index, samples in enumerate(audio) for piece in windows(samples, 30.0)]
        texts: list[list[str]] = [[] for _ in audio]
        for start in range(0, len(pieces), self.batch_size):
            batch = pieces[start : start + self.batch_size]
            for (index, _), text in zip(batch, self._decode([piece for _, piece in batch]), strict=True):
                texts[index].append(text)
        return [" ".join(filter(None, parts)) for parts in texts]

    def _decode(self, pieces: list[np.ndarray]) -> list[str]:
        import torch

        features = self.features(pieces, sampling_rate=RATE, return_tensors="pt").input_features  # (B, mels, 3000)
        told = {"language": self.language, "task": "transcribe"} if self.multilingual else {}
        with torch.inference_mode():
            ids = self.model.generate(
                features.to(self.model.device, self.model.dtype),
                attention_mask=torch.ones(
                    features.shape[0], features.shape[-1], dtype=torch.long, device=self.model.device
                ),
                do_sample=False,
                num_beams=1,
                return_timestamps=False,
                **told,
            )
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

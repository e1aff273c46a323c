"""Qwen3-ASR's encoder: chunks of a second through convolutions, then layers over the packed frames of a clip."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from .frames import EncoderFrames


class Qwen3ASRFrames(EncoderFrames):
    @property
    def chunk(self) -> int:
        return 2 * self.encoder.n_window

    def output_lengths(self, length: int) -> list[int]:
        """Three convolutions of stride two, over each chunk by itself."""
        return [length // self.chunk * -(-self.chunk // 8) + -(-(length % self.chunk) // 8)]

    def needed(self, length: int) -> int:
        return -(-length // self.chunk) * self.chunk

    def _extract(self, clip: np.ndarray) -> tuple[Tensor, int]:
        row, length = super()._extract(clip)  # padded to 30 s, of which the chunks with sound are all it takes
        return row[:, : self.needed(length)], length

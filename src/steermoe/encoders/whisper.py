"""Whisper at any length: 2 s of speech cost 2 s of encoder, not 30.

transformers' forward insists on 3,000 mel frames, adds the whole position table and gives its layers no
mask. This forward runs the same modules on as many frames as there are: positions are the table's first
rows, padding is masked, and the convolutions see zeros beyond the end, as they would for a clip alone. On a
full window it equals the original.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .discover import find_layers


class WhisperFrames(nn.Module):
    """``encoder`` is a transformers WhisperEncoder, ``extractor`` its WhisperFeatureExtractor; see EncoderFrames.

    The one family whose forward is replaced, and so the one that can be entered between its layers.
    """

    divisible, pads, time_dim = True, True, 2

    def __init__(
        self,
        encoder: nn.Module,
        extractor: Any,
        layers: str | None = None,
        pad_to_window: bool = False,
        silence: float = 0.0,
    ) -> None:
        super().__init__()
        self.encoder: Any = encoder
        self.extractor, self.pad_to_window = extractor, pad_to_window
        self.layers = find_layers(encoder, layers or "layers")
        self.width: int = encoder.config.d_model  # type: ignore[union-attr,assignment]
        self.out_width = self.width
        self.sampling_rate: int = extractor.sampling_rate
        self.silence = round(silence * self.rate)  # frames, behind every clip
        positions: int = encoder.config.max_source_positions  # type: ignore[union-attr,assignment]
        self.window = 2 * positions * extractor.hop_length / self.sampling_rate - self.silence / self.rate

    rate = 50  # hidden states a second

    def features(self, clips: list[np.ndarray], multiple: int = 1) -> tuple[Tensor, Tensor]:
        """Clips (N_i,) float32, at most ``window`` seconds -> log-mel (B, mels, T) and valid frames (B,), the silence too.

        T is the next ``multiple`` (a divisor of the window's frames) of the longest clip's.

        Each clip's spectrogram is made alone (Whisper scales by the clip's own maximum), so that a batch
        holds exactly what its clips would hold one by one.
        """
        mels = []
        shortest = self.sampling_rate // 10  # the spectrogram's edges mirror: it needs more than half a frame
        for clip in clips:
            if len(clip) > self.window * self.sampling_rate:  # the extractor would cut it without a word
                raise ValueError(
                    f"a clip of {len(clip)} samples is longer than the window of {self.window:g} s; cut it"
                )
            behind = max(0, shortest - len(clip)) + self.silence * self.sampling_rate // self.rate
            clip = np.pad(clip, (0, behind)) if behind else clip
            padding = "max_length" if self.pad_to_window else "do_not_pad"
            made = self.extractor(clip, sampling_rate=self.sampling_rate, padding=padding, return_tensors="pt")
            mels.append(made["input_features"][0])  # (mels, T)
        lengths = torch.tensor([mel.shape[1] for mel in mels])
        longest = -(-int(lengths.max()) // multiple) * multiple
        return torch.stack([F.pad(mel, (0, longest - mel.shape[1])) for mel in mels]), lengths

    def stem(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, mels, T), (B,) -> what enters the first layer (B, T', D), and lengths (B,); T' = ceil(T / 2), 50 a second."""
        encoder = self.encoder
        outside = (torch.arange(features.shape[2], device=features.device) >= lengths[:, None])[:, None]  # (B, 1, T)
        x = features.to(encoder.conv1.weight.dtype).masked_fill(outside, 0)
        x = F.gelu(encoder.conv1(x)).masked_fill(outside, 0)  # (B, D, T)
        x = F.gelu(encoder.conv2(x))  # (B, D, T')
        h = x.transpose(1, 2)
        return h + encoder.embed_positions.weight[: h.shape[1]], (lengths + 1) // 2

    def run(self, h: Tensor, lengths: Tensor, first: int = 0, last: int | None = None) -> Tensor:
        """Layers ``first`` to before ``last`` on h (B, T', D), padding masked."""
        mask = None
        if int(lengths.min()) < h.shape[1]:
            valid = torch.arange(h.shape[1], device=h.device) < lengths[:, None]
            # (B, 1, 1, T'), added to the logits: eager attention, too, understands it
            mask = torch.zeros_like(valid, dtype=h.dtype).masked_fill(~valid, torch.finfo(h.dtype).min)[:, None, None]
        for layer in self.layers[first:last]:
            h = layer(h, mask)
            h = h[0] if isinstance(h, tuple) else h
        return h

    def enter(self, features: Tensor, lengths: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """(B, mels, T), (B,) -> what enters layer ``first`` (B, T', D) and lengths (B,)."""
        h, lengths = self.stem(features, lengths)
        return self.run(h, lengths, 0, first), lengths

    def leave(self, x: Tensor, lengths: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """From layer ``first`` on: hidden states before the final LayerNorm (B, T', D) and lengths (B,), without the silence."""
        return self.run(x, lengths, first)[:, : x.shape[1] - self.silence], lengths - self.silence

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, mels, T), (B,) -> hidden states before the final LayerNorm (B, T', D) and their lengths (B,)."""
        return self.leave(*self.enter(features, lengths, len(self.layers)), len(self.layers))

    @property
    def final_norm(self) -> nn.Module:
        return self.encoder.layer_norm

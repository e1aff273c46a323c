"""FireRedASR-AED's Conformer encoder, which transformers does not have; its tensors keep their published names.

A layer is half a feed-forward, attention with relative positions (Transformer-XL's), a convolution, half a
feed-forward, a LayerNorm. Before the layers two convolutions take 4 spectra of 10 ms to one frame of 40 ms; their
window ends 6 spectra after it begins, so 6 of silence are put behind a clip. There is no dropout: it is frozen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BatchFeature
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function
from transformers.modeling_outputs import BaseModelOutput

from .frames import WINDOW, EncoderFrames

MODEL_TYPE = "fireredasr"
SUBSAMPLING = 4  # spectra to a frame
CONTEXT = 6  # spectra that a frame sees beyond its first
CHANNELS = 32  # of the subsampling convolutions


@dataclass
class FireRedConfig:
    """The encoder's dimensions, named as in the ``args`` of the published checkpoint."""

    idim: int  # mel bands
    n_layers_enc: int
    n_head: int
    d_model: int
    kernel_size: int  # of the convolution over time, odd
    pe_maxlen: int  # the most frames the table of positions reaches over
    model_type: str = MODEL_TYPE
    _attn_implementation: str = "sdpa"  # or eager: transformers' names


class Subsampling(nn.Module):
    """(B, T + 6, bands) -> (B, ceil(T / 4), D)."""

    def __init__(self, bands: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(1, CHANNELS, 3, stride=2), nn.ReLU(), nn.Conv2d(CHANNELS, CHANNELS, 3, stride=2), nn.ReLU()
        )
        self.out = nn.Linear(CHANNELS * (((bands - 1) // 2 - 1) // 2), width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x[:, None])  # (B, channels, T', bands')
        return self.out(x.transpose(1, 2).flatten(2))


class RelativePositions(nn.Module):
    """A table of sinusoids of the distances ``reach - 1`` down to ``1 - reach``; a frame's own is in the middle."""

    pe: Tensor  # (1, 2 reach - 1, D)

    def __init__(self, width: int, reach: int) -> None:
        super().__init__()
        distance = torch.arange(reach - 1, -reach, -1, dtype=torch.float32)  # (2 reach - 1,)
        speed = torch.exp(torch.arange(0, width, 2, dtype=torch.float32) * (-math.log(10_000.0) / width))
        angle = distance[:, None] * speed
        self.register_buffer("pe", torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[None])

    def forward(self, frames: int) -> Tensor:
        """-> (1, 2 T' - 1, D): from the last frame's distance to the first, to the first's to the last."""
        middle = self.pe.shape[1] // 2
        return self.pe[:, middle - frames + 1 : middle + frames]


class FeedForward(nn.Module):
    """What it adds to x (B, T', D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        parts = [
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.SiLU(),
            nn.Identity(),
            nn.Linear(4 * width, width),
        ]
        self.net = nn.Sequential(*parts)  # the published one has dropout in place of the identity

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Attention(nn.Module):
    """Every frame attends to every other, by content and by distance; queries, keys and values have a norm each."""

    def __init__(self, config: FireRedConfig) -> None:
        super().__init__()
        width, self.heads, self.config = config.d_model, config.n_head, config
        for letter in "qkv":
            self.add_module(f"w_{letter}s", nn.Linear(width, width, bias=False))
            self.add_module(f"layer_norm_{letter}", nn.LayerNorm(width))
        self.linear_pos = nn.Linear(width, width, bias=False)
        self.fc = nn.Linear(width, width, bias=False)
        self.pos_bias_u = nn.Parameter(nn.init.xavier_uniform_(torch.empty(self.heads, width // self.heads)))
        self.pos_bias_v = nn.Parameter(nn.init.xavier_uniform_(torch.empty(self.heads, width // self.heads)))

    def forward(self, x: Tensor, positions: Tensor, outside: Tensor) -> Tensor:
        """x (B, T', D), positions (1, 2 T' - 1, D), outside (B, 1, 1, T') true at padding -> (B, T', D)."""
        q, k, v = (
            self._split(getattr(self, f"w_{letter}s")(getattr(self, f"layer_norm_{letter}")(x))) for letter in "qkv"
        )  # (B, heads, T', d) each
        p = self._split(self.linear_pos(positions))  # (1, heads, 2 T' - 1, d)
        scale = q.shape[-1] ** -0.5
        by_distance = shifted((q + self.pos_bias_v[:, None]) @ p.transpose(-2, -1)) * scale  # (B, heads, T', T')
        by_distance = by_distance.masked_fill(outside, torch.finfo(by_distance.dtype).min)
        q = q + self.pos_bias_u[:, None]
        if self.config._attn_implementation == "sdpa":
            heard = F.scaled_dot_product_attention(q, k, v, attn_mask=by_distance, scale=scale)
        else:
            heard = torch.softmax(q @ k.transpose(-2, -1) * scale + by_distance, dim=-1) @ v
        return self.fc(heard.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def shifted(x: Tensor) -> Tensor:
    """Scores by distance (.., T, 2 T - 1) -> by frame (.., T, T): entry (i, j) is x[i, T - 1 - i + j].

    Padded to 2 T a row and read in rows of 2 T - 1, each row begins one later than the one before.
    """
    count = x.shape[-2]
    flat = F.pad(x, (0, 1)).flatten(-2)[..., count - 1 : count - 1 + count * (2 * count - 1)]
    return flat.unflatten(-1, (count, 2 * count - 1))[..., :count]


class Convolution(nn.Module):
    """Gated convolution over time; what is called ``batch_norm`` is a LayerNorm, so no frame knows of its batch."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.pre_layer_norm = nn.LayerNorm(width)
        self.pointwise_conv1 = nn.Conv1d(width, 4 * width, 1, bias=False)
        self.depthwise_conv = nn.Conv1d(2 * width, 2 * width, kernel, padding=kernel // 2, groups=2 * width, bias=False)
        self.batch_norm = nn.LayerNorm(2 * width)
        self.pointwise_conv2 = nn.Conv1d(2 * width, width, 1, bias=False)

    def forward(self, x: Tensor, outside: Tensor) -> Tensor:
        """x (B, T', D), outside (B, T', 1) -> (B, T', D). Padding enters as the zeros that lie beyond a clip's end."""
        x = self.pre_layer_norm(x).masked_fill(outside, 0).transpose(1, 2)  # (B, D, T')
        x = self.depthwise_conv(F.glu(self.pointwise_conv1(x), dim=1))  # (B, 2 D, T')
        x = F.silu(self.batch_norm(x.transpose(1, 2))).transpose(1, 2)
        return self.pointwise_conv2(x).transpose(1, 2)


class ConformerLayer(nn.Module):
    def __init__(self, config: FireRedConfig) -> None:
        super().__init__()
        self.ffn1 = FeedForward(config.d_model)
        self.mhsa = Attention(config)
        self.conv = Convolution(config.d_model, config.kernel_size)
        self.ffn2 = FeedForward(config.d_model)
        self.layer_norm = nn.LayerNorm(config.d_model)

    def forward(self, x: Tensor, positions: Tensor, outside: Tensor) -> Tensor:
        """x (B, T', D), positions (1, 2 T' - 1, D), outside (B, T') true at padding -> (B, T', D)."""
        x = x + 0.5 * self.ffn1(x)
        x = x + self.mhsa(x, positions, outside[:, None, None])
        x = x + self.conv(x, outside[..., None])
        return self.layer_norm(x + 0.5 * self.ffn2(x))


class FireRedEncoder(nn.Module):
    """The ``encoder.*`` part of a FireRedASR-AED checkpoint."""

    def __init__(self, config: FireRedConfig) -> None:
        super().__init__()
        self.config = config
        self.input_preprocessor = Subsampling(config.idim, config.d_model)
        self.positional_encoding = RelativePositions(config.d_model, config.pe_maxlen)
        self.layer_stack = nn.ModuleList(ConformerLayer(config) for _ in range(config.n_layers_enc))

    def forward(self, input_features: Tensor, attention_mask: Tensor | None = None) -> BaseModelOutput:
        """Spectra (B, T, bands), and which are sound (B, T) -> hidden states (B, ceil(T / 4), D), 25 a second.

        A clip's states are the same alone and in a padded batch, whatever the padding holds. Raises ValueError for
        more frames than the table of positions reaches over.
        """
        longest = self.config.pe_maxlen * SUBSAMPLING
        if input_features.shape[1] > longest:
            raise ValueError(f"{input_features.shape[1]} spectra, but pe_maxlen reaches over {longest}: cut the audio")
        if attention_mask is None:
            attention_mask = torch.ones(input_features.shape[:2], device=input_features.device)
        outside = attention_mask == 0
        x = input_features.masked_fill(outside[..., None], 0)
        x = self.input_preprocessor(F.pad(x, (0, 0, 0, CONTEXT)))  # (B, T', D)
        positions, outside = self.positional_encoding(x.shape[1]), outside[:, ::SUBSAMPLING]
        for layer in self.layer_stack:
            x = layer(x, positions, outside)
        return BaseModelOutput(last_hidden_state=x)

    def set_attn_implementation(self, kind: str) -> None:
        """``sdpa`` or ``eager``, as for transformers' models: the same numbers to rounding, another speed."""
        self.config._attn_implementation = kind


class FireRedFeatureExtractor:
    """Kaldi's log-mel filter banks of 25 ms every 10 ms, normalised by the means and deviations of the training data.

    ``mean`` and ``inverse_std``: one number a band, as ``cmvn.ark`` has them.
    """

    sampling_rate = 16_000

    def __init__(self, mean: list[float], inverse_std: list[float]) -> None:
        self.mean, self.inverse_std = np.array(mean), np.array(inverse_std)  # (bands,)
        self.feature_size = len(mean)
        self.window = window_function(400, "povey", periodic=False)
        self.mel_filters = mel_filter_bank(
            num_frequency_bins=257,
            num_mel_filters=self.feature_size,
            min_frequency=20.0,
            max_frequency=self.sampling_rate / 2,
            sampling_rate=self.sampling_rate,
            norm=None,
            mel_scale="kaldi",
            triangularize_in_mel_space=True,
        )

    def __call__(self, clip: np.ndarray, sampling_rate: int = 16_000, **options: Any) -> BatchFeature:
        """One clip (N,) in [-1, 1] -> ``input_features`` (1, T, bands), T = 1 + (N - 400) // 160, and its mask (1, T)."""
        if sampling_rate != self.sampling_rate:
            raise ValueError(f"sampling_rate={sampling_rate}: FireRedASR hears {self.sampling_rate} Hz; resample first")
        bank = spectrogram(
            np.asarray(clip, np.float32) * 2**15,  # Kaldi reads 16-bit integers
            self.window,
            frame_length=400,
            hop_length=160,
            fft_length=512,
            power=2.0,
            center=False,
            preemphasis=0.97,
            mel_filters=self.mel_filters,
            log_mel="log",
            mel_floor=float(np.finfo(np.float32).eps),
            remove_dc_offset=True,
        ).T  # (T, bands)
        features = ((bank - self.mean) * self.inverse_std).astype(np.float32)
        mask = np.ones((1, len(features)), np.int64)
        made = {"input_features": features[None], "attention_mask": mask}
        return BatchFeature(made, tensor_type=options.get("return_tensors"))


class FireRedFrames(EncoderFrames):
    """``encoder`` is a FireRedEncoder, ``extractor`` its FireRedFeatureExtractor; see EncoderFrames."""

    def __init__(self, encoder: nn.Module, extractor: Any, layers: str | None = None) -> None:
        super().__init__(encoder, extractor, layers or "layer_stack")

    def window_seconds(self) -> float:
        return min(WINDOW, self.encoder.config.pe_maxlen * SUBSAMPLING / 100)  # 100 spectra a second

    def output_lengths(self, length: int) -> list[int]:
        return [-(-length // SUBSAMPLING)]

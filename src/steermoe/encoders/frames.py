"""Any audio encoder of transformers: its own forward, whole, with hooks on its own layers.

What a family does between waveform and hidden states is left to it. What must be known about it is found out by a
probe, a second of noise, when the encoder is wrapped: where its layers are, how wide they are, how many hidden
states a second it makes, and whether the padding of a batch can be told from a clip.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ..errors import UsageError
from .attach import hidden
from .discover import find_layers

MASKS = ("attention_mask", "input_features_mask")
FORMULAS = ("_get_feat_extract_output_lengths", "_get_subsampling_output_length")
WINDOW = 30.0  # seconds, of an encoder that states none: attention grows with the square of the length


class EncoderFrames(nn.Module):
    """``encoder`` is a transformers audio encoder in eval mode, ``extractor`` its feature extractor.

    The contract of every encoder here:

    - ``layers``, ``width``: what is steered, and how wide; ``out_width``: of the frames that come out
    - ``rate``: frames a second; ``window``: the most seconds it takes at once
    - ``features(clips)``: waveforms to input features and their lengths, as a batch
    - ``enter(features, lengths, first)``, then ``leave(x, lengths, first)``: the encoder before and from layer ``first``
      on (``len(layers)``: all of it before). What enters can be kept where ``divisible``, or where that is all
    - ``pads``: whether a batch may be padded; else clips of equal length go through together
    - ``silence``: frames that are heard behind each clip and are not among those that come out
    - ``final_norm``: the LayerNorm behind the layers where it can be moved behind the pooling, else None

    A family that knows better than the probe overrides ``output_lengths`` or ``window_seconds``.
    Raises UsageError for an encoder that cannot be steered so.
    """

    divisible = False  # a family's forward is one piece
    silence = 0
    time_dim = 1  # of what ``features`` gives
    final_norm: nn.Module | None = None

    def __init__(self, encoder: nn.Module, extractor: Any, layers: str | None = None) -> None:
        super().__init__()
        self.encoder: Any = encoder
        self.extractor = extractor
        self.layers = find_layers(encoder, layers)
        self.sampling_rate: int = extractor.sampling_rate
        self.window = self.window_seconds()
        accepted = list(inspect.signature(encoder.forward).parameters)
        self.input_name = accepted[0]
        self.mask_name = next((name for name in MASKS if name in accepted), None)
        self._probe()

    def window_seconds(self) -> float:
        """The extractor's fixed window where it has one, else WINDOW."""
        seconds = getattr(self.extractor, "chunk_length", None)
        frames = getattr(self.extractor, "max_length", None)  # AST: spectrogram frames of 10 ms
        return float(seconds or (frames / 100 if isinstance(frames, int) else WINDOW))

    def output_lengths(self, length: int) -> list[int]:
        """The family's own rule: hidden states of ``length`` input frames; several where it tells stages; [] if none."""
        rule = next((getattr(self.encoder, name) for name in FORMULAS if hasattr(self.encoder, name)), None)
        if rule is None:
            return []
        told = rule(torch.tensor(length))
        return [int(t) for t in (told if isinstance(told, tuple) else (told,))]

    def needed(self, length: int) -> int:
        """Input frames that a clip of ``length`` is run with, more where the family takes whole chunks."""
        return length

    # -- found out by the probe

    def _probe(self) -> None:
        noise = np.random.default_rng(0).standard_normal(self.sampling_rate).astype(np.float32) * 0.1
        short, long = (self._extract(np.tile(noise, seconds))[0].shape for seconds in (1, 2))
        self.fixed = short == long  # a whole window, however short the clip
        bands = (getattr(self.extractor, "feature_size", None), getattr(self.extractor, "num_mel_bins", None))
        time = [i for i, size in enumerate(long) if (size not in bands if self.fixed else size != short[i])]
        name = type(self.encoder).__name__
        if len(time) != 1 or len(long) > 2:
            raise UsageError(f"{name}: its input {tuple(long)} is no sequence of samples or spectra")
        self.time_axis = time[0]
        features, lengths = self.features([noise])
        made: list[torch.Size] = []
        handles = [
            layer.register_forward_hook(lambda _, __, out: made.append(hidden(out).shape)) for layer in self.layers
        ]
        try:
            with torch.no_grad():
                h = self._run(features, lengths)
        finally:
            for handle in handles:
                handle.remove()
        self.packed = bool(made) and len(made[0]) == 2  # (frames of all clips, width): they go through one by one
        alike = {(len(m), m[-1]) for m in made} == {(2 if self.packed else 3, made[0][-1])} if made else False
        if len(made) != len(self.layers) or not alike or h.ndim != 3:
            raise UsageError(
                f"{name}: of its {len(self.layers)} layers {len(made)} gave {sorted({tuple(m) for m in made})}; steering "
                "needs (batch, time, width) from each, of one width. Name another list of layers as encoder_layers"
            )
        self.width, self.out_width = made[0][-1], h.shape[2]
        told = self.output_lengths(features.shape[1])
        self.stage = told.index(h.shape[1]) if h.shape[1] in told else None
        self.rate = h.shape[1] / (self.window if self.fixed else 1.0)
        if self.stage is not None and not self.fixed:  # without what the edges of a second cost
            first, second = features.shape[1], long[self.time_axis] - short[self.time_axis]
            self.rate = (self.output_lengths(first + 10 * second)[self.stage] - told[self.stage]) / 10
        told_apart = self.stage is not None and self.mask_name is not None and not self.packed
        self.pads = self.fixed or (told_apart and not self._leaks(noise))

    @torch.no_grad()
    def _leaks(self, noise: np.ndarray) -> bool:
        """Whether the padding of a batch changes a clip: group norms look over it, and convolutions reach into it, strided
        ones only from some lengths. So eight that grow by 20 ms are tried."""
        tenth = len(noise) // 10
        clips = [noise[: 3 * tenth + k * tenth // 5] for k in range(8)]
        together = self._run(*self.features([*clips, noise[: 6 * tenth]]))
        bound = 0.01 if together.dtype == torch.float32 else 0.05  # rounding, through all layers
        for clip, padded in zip(clips, together, strict=False):
            (alone,) = self._run(*self.features([clip]))
            last = len(alone) - 1
            if (padded[last] - alone[last]).norm() > bound * alone[last].norm():
                return True
        return False

    # -- the contract

    def features(self, clips: list[np.ndarray], multiple: int = 1) -> tuple[Tensor, Tensor]:
        """Clips (N_i,) float32, at most ``window`` seconds -> input (B, T) or (B, T, bands), and lengths (B,).

        T is the next ``multiple`` of the longest's. Each clip passes the extractor alone, so that a batch holds
        exactly what its clips would hold one by one.
        """
        rows, lengths = [], []
        for clip in clips:
            if len(clip) > self.window * self.sampling_rate:  # the extractor would cut it without a word
                raise ValueError(
                    f"a clip of {len(clip)} samples is longer than the window of {self.window:g} s; cut it"
                )
            row, length = self._extract(np.pad(clip, (0, max(0, self.sampling_rate // 10 - len(clip)))))
            row = row.movedim(self.time_axis, 0)
            rows.append(row if self.fixed else row[: self.needed(length)])
            lengths.append(length)
        batch = pad_sequence(rows, batch_first=True)
        return _longer(batch, -(-batch.shape[1] // multiple) * multiple if not self.fixed else 0), torch.tensor(lengths)

    def enter(self, features: Tensor, lengths: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """-> what ``leave`` takes: the features, or the frames (B, T', D) if every layer comes before ``first``."""
        if first < len(self.layers):
            return features, lengths
        return self._whole(features, lengths)

    def leave(self, x: Tensor, lengths: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """-> the encoder's own last hidden states (B, T', D) and their lengths (B,)."""
        return self._whole(x, lengths) if first < len(self.layers) else (x, lengths)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return self._whole(features, lengths)

    # -- underneath

    def _extract(self, clip: np.ndarray) -> tuple[Tensor, int]:
        """One clip -> what its extractor makes of it, and how many frames of that are the clip's."""
        made = self.extractor(clip, sampling_rate=self.sampling_rate, return_attention_mask=True, return_tensors="pt")
        row = next(v for k, v in made.items() if k.startswith("input_"))[0]
        mask = next((v for k, v in made.items() if k.endswith("mask")), None)
        return row, int(mask.sum()) if mask is not None else max(row.shape)

    def _whole(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The family's forward on a batch; clip by length where it cannot tell padding from sound."""
        alike = int(lengths.min()) == features.shape[1] and not self.packed
        if self.pads or alike:
            h = self._run(features, lengths)
            return h, self._lengths(lengths, h.shape[1])
        rows: dict[int, Tensor] = {}
        for length in sorted(set(lengths.tolist())):
            together = (lengths == length).nonzero().flatten()
            for chosen in together.split(1) if self.packed else [together]:
                h = self._run(features[chosen, : self.needed(length)], lengths[chosen])
                rows.update(zip(chosen.tolist(), h, strict=True))
        out = [rows[i] for i in range(len(rows))]
        return pad_sequence(out, batch_first=True), torch.tensor([len(h) for h in out], device=lengths.device)

    def _lengths(self, lengths: Tensor, made: int) -> Tensor:
        if self.stage is None:
            return torch.full_like(lengths, made)
        return torch.tensor([self.output_lengths(n)[self.stage] for n in lengths.tolist()], device=lengths.device)

    def _run(self, features: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, ...) -> the last hidden states (B, T', D) of the encoder's own forward."""
        dtype = next(self.encoder.parameters()).dtype
        inputs = {self.input_name: features.movedim(1, self.time_axis + 1).to(dtype)}
        # Where the window is fixed, `attention_mask` is there for show (Qwen2-Audio, Voxtral); elsewhere all ones is none.
        padded = not self.fixed and int(lengths.min()) < features.shape[1]
        if self.mask_name == "input_features_mask" or (self.mask_name and padded):
            valid = torch.arange(features.shape[1], device=features.device) < lengths[:, None]
            inputs[self.mask_name] = valid.long()
        h = self.encoder(**inputs).last_hidden_state
        return h if h.ndim != 2 else h[None]


def _longer(x: Tensor, length: int) -> Tensor:
    """Zeros behind x (B, T, ...) up to ``length``."""
    return F.pad(x, (*(0, 0) * (x.ndim - 2), 0, length - x.shape[1])) if length > x.shape[1] else x

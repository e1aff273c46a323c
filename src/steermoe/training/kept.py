"""What enters the first layer that learns: a clip has to pass the frozen layers below it only once."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..audio import RATE
from ..data import Example
from ..data.augment import mask_spectrogram
from ..errors import DataError, UsageError
from ..model import SteerMoEForConditionalGeneration
from ..processing import SteerMoEProcessor

FLUSH = 256  # clips in one file
# A CPU's kernels are compiled for each new shape and kept: without this a run grows by megabytes a step.
MULTIPLE = 40  # of encoder input frames, 0.4 s of Whisper's


class Entered:
    """What enters the first layer that learns, for batches of clips; kept (float16) when ``keep``.

    With ``folder`` it is kept on disk, too, so that a run that is resumed starts where it was. Good for one stage:
    the next may train other parts. ``note`` is whatever else the frames depend on, such as the augmentation.
    """

    def __init__(
        self,
        model: SteerMoEForConditionalGeneration,
        processor: SteerMoEProcessor,
        keep: bool,
        folder: Path | None = None,
        note: str = "",
        mask: bool = False,
    ) -> None:
        self.model, self.processor, self.keep = model, processor, keep and model.enters_once
        self.mask = mask
        self.kept: dict[str, Tensor] = {}
        self._new: dict[str, Tensor] = {}
        self._folder = folder / _fingerprint(model, note) if self.keep and folder else None
        if self._folder and self._folder.is_dir():
            for path in sorted(self._folder.glob("*.safetensors")):
                self._read(path)

    def _read(self, path: Path) -> None:
        try:
            with safe_open(path, framework="pt") as file:
                self.kept.update({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118 - not a dict
        except (OSError, SafetensorError):
            path.unlink()  # what it held is made again

    def __contains__(self, example: Example) -> bool:
        return _key(example) in self.kept

    def __call__(
        self, examples: Sequence[Example], clips: Sequence[np.ndarray | None], when: str = ""
    ) -> tuple[Tensor, Tensor]:
        """-> (B, T', D) and lengths (B,). ``clips`` may be None where an example is kept. ``when`` seeds its masks."""
        device = self.model.device
        if not self.keep:
            seeds = [f"{when}/{example.id}" for example in examples] if self.mask else []
            return self._enter([clip for clip in clips if clip is not None], seeds)
        for example, clip in zip(examples, clips, strict=True):
            if clip is not None and example not in self:  # alone: the same, whatever batch it first comes in
                h, lengths = self._enter([clip])
                self.kept[_key(example)] = self._new[_key(example)] = h[0, : int(lengths)].half().cpu()
        if len(self._new) >= FLUSH:
            self.flush()
        rows = [self.kept[_key(e)] for e in examples]
        lengths, dtype = torch.tensor([len(r) for r in rows]), next(self.model.frames.parameters()).dtype
        h = pad_sequence(rows, batch_first=True)  # (B, T', D)
        h = F.pad(h, (0, 0, 0, -h.shape[1] % (MULTIPLE // 2)))
        return h.to(device, dtype), lengths.to(device)

    def flush(self) -> None:
        """Write what is new beside the others. A full disk costs only the resuming."""
        if self._folder and self._new:
            path = self._folder / f"{len(self.kept):08d}.safetensors"
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                save_file({k: v.contiguous() for k, v in self._new.items()}, path.with_suffix(".part"))
                os.replace(path.with_suffix(".part"), path)
            except (OSError, SafetensorError):
                path.with_suffix(".part").unlink(missing_ok=True)
        self._new = {}

    def _enter(self, clips: Sequence[np.ndarray], seeds: Sequence[str] = ()) -> tuple[Tensor, Tensor]:
        inputs, device = self.processor.features(clips, MULTIPLE), self.model.device
        if int(inputs["audio_windows"].max()) > 1:
            window, longest = self.processor.frames.window, max(map(len, clips)) / RATE
            raise DataError(
                f"a training clip of {longest:.1f} s is longer than the encoder's window of {window:g} s: its manifest "
                "states another duration: correct it there, or leave the clip out"
            )
        features, lengths = inputs["input_features"], inputs["feature_lengths"]
        if seeds and features.ndim < 3:
            raise UsageError(f"data.mask: {self.model.config.encoder} hears samples, there is no spectrogram to mask")
        for row, length, seed in zip(features, lengths.tolist(), seeds, strict=False):
            spectrum = row.movedim(self.processor.frames.time_dim - 1, 0)
            mask_spectrogram(spectrum[:length], random.Random(seed))
        return self.model.enter(features.to(device), lengths.to(device))


def _key(example: Example) -> str:
    return hashlib.sha256(repr((str(example.audio), example.start, example.end)).encode()).hexdigest()


def _fingerprint(model: SteerMoEForConditionalGeneration, note: str) -> str:
    """Of everything that the kept frames are a function of, but the clip."""
    told = {key: getattr(model.config, key) for key in ("encoder", "encoder_layers", "pad_to_window", "silence")}
    digest = hashlib.sha256(json.dumps([told, model.first_learning, note]).encode())
    if model.first_learning > model.first_steered:
        for name, tensor in sorted(model.adapter_state().items()):
            if name.startswith(("steering.", "lora.")):
                digest.update(name.encode() + tensor.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()[:16]

"""What hears: the frozen encoder, steering within its layers, and the projector behind them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from . import variants
from .config import SteerMoEConfig
from .encoders import wrap
from .encoders.attach import attach
from .errors import UsageError
from .lexical import LexicalProjector
from .phones import Phones
from .projector import LinearProjector, MLPProjector, Projected
from .spelling import Spelling, behind_others, control, spellings

TOKENS_A_SECOND = 12.5  # of audio into the LLM: the paper's, for both of its encoders
# Several adapters may share one encoder: context-local, so that no request or thread is steered by another's.
_IN_USE: ContextVar[int | None] = ContextVar("steermoe_in_use", default=None)


def load_frames(config: SteerMoEConfig, dtype: torch.dtype | str | None = None) -> Any:
    """The frozen encoder that ``config`` names, behind its front (encoders/)."""
    from .pretrained import load_encoder, load_feature_extractor

    extractor = load_feature_extractor(config.encoder)  # first: a model that has none is no audio encoder
    return wrap(
        load_encoder(config.encoder, dtype), extractor, config.encoder_layers, config.pad_to_window, config.silence
    )


class Hearing(nn.Module):
    """Features in, audio tokens out, in the space of an LLM's embeddings ``table`` (V, D_llm), which is scaled by ``scale``.

    Without the LLM's ``tokenizer`` a lexical projector takes any token for a word, and reads a sentence behind another
    without its space.
    """

    def __init__(
        self, config: SteerMoEConfig, frames: Any, table: Tensor, scale: float = 1.0, tokenizer: Any = None
    ) -> None:
        super().__init__()
        # Before the encoder that holds its modules, too: the first name of a parameter is the one it is known by.
        with torch.random.fork_rng(devices=[]):
            self.lora = variants.add_lora(frames, config.lora_rank) if config.lora_rank else None
        self.config, self.frames, llm_width = config, frames, table.shape[1]
        if config.pool_before_norm and frames.final_norm is None:
            raise UsageError(f"pool_before_norm: {config.encoder} has no final LayerNorm that could follow the pooling")
        layers = config.steer_layers if config.steer_layers is not None else list(range(len(frames.layers)))
        if layers and not -len(frames.layers) <= min(layers) <= max(layers) < len(frames.layers):
            raise UsageError(f"steer_layers={layers}: the encoder has {len(frames.layers)} layers, 0 is the first")
        kernel = config.kernel = config.kernel or max(1, round(frames.rate / TOKENS_A_SECOND))
        self.projector: LexicalProjector | LinearProjector | MLPProjector
        if config.projector == "lexical":
            lexicon = table if scale == 1.0 else table.detach() * scale
            written = [] if tokenizer is None else spellings(tokenizer, len(table))
            letters = Spelling(written, llm_width, pronunciation=config.pronunciation) if config.spelling else None
            unsaid = [] if tokenizer is None else [i for i in control(tokenizer).values() if i < len(table)]
            behind = behind_others(written).to(table.device) if written else None
            self.projector = LexicalProjector(
                frames.out_width, lexicon, kernel, config.temperature, config.blank_penalty, config.frame_scale,
                config.context, config.hidden, letters and letters.to(table.device), behind, unsaid,
            )  # fmt: skip
        elif config.projector == "mlp":
            self.projector = MLPProjector(frames.out_width, llm_width, kernel)
        else:
            self.projector = LinearProjector(frames.out_width, llm_width, kernel, config.pooling)
        if config.projector_experts > 1:
            variants.mix_projector(self.projector, config.projector_experts)
        # After the projector, which is then the same from the same seed, however it is steered.
        self.steering = variants.make_steering(config, len(layers), frames.width) if config.steer else None
        self.phones = None
        if config.phones:
            spelling: Any = self.projector.spelling
            self.phones = Phones(frames.out_width, frames.rate, spelling.sounds)
        self.frames.requires_grad_(False)
        if self.lora is not None:
            self.lora.requires_grad_(True)
        self.attached = attach(frames.layers, self._steer, layers) if self.steering is not None else None

    def _steer(self, h: Tensor, layer: int) -> Tensor:
        """After an encoder layer; not while another model, with an adapter of its own, uses the same encoder."""
        return self.steering(h, layer) if self.steering is not None and _IN_USE.get() in (None, id(self)) else h

    @property
    def first_steered(self) -> int:
        """Index of the first layer that is changed; below it nothing ever depends on what is trained."""
        if self.lora is not None:
            return 0
        return min(self.steered_layers, default=len(self.frames.layers))

    @property
    def steered_layers(self) -> list[int]:
        """Which encoder layers are steered, in the order of the steering vectors; 0 is the first."""
        return self.config.layers_of(len(self.frames.layers)) if self.steering is not None else []

    @property
    def first_learning(self) -> int:
        """As ``first_steered``, but past all layers while the steering is not being trained."""
        learns = any(p.requires_grad for part in (self.steering, self.lora) if part for p in part.parameters())
        return self.first_steered if learns else len(self.frames.layers)

    def enter(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Input features and their lengths (B,) -> what enters the first learning layer, and its lengths: no graph."""
        with torch.no_grad(), self._in_use():
            return self.frames.enter(features, lengths, self.first_learning)

    def leave(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """From ``enter`` to the steered frames (B, T', D) and their lengths, final LayerNorm included (unless pooling
        comes before it)."""
        with self._in_use():
            h, lengths = self.frames.leave(x, lengths, self.first_learning)
        if not self.config.pool_before_norm and self.frames.final_norm is not None:
            h = self.frames.final_norm(h)
        return h, lengths

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        token = _IN_USE.set(id(self))
        try:
            yield
        finally:
            _IN_USE.reset(token)

    @property
    def enters_once(self) -> bool:
        """Whether what enters the first learning layer is worth keeping: it has passed the frozen layers below."""
        return self.frames.divisible or self.first_learning == len(self.frames.layers)

    def encode(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Input features and their lengths (B,) -> steered frames (B, T', D), lengths (B,)."""
        return self.leave(*self.enter(features, lengths))

    def project(self, h: Tensor, lengths: Tensor) -> Projected:
        """Frames (B, T', D) of ``encode`` -> audio tokens (B, S, D_llm)."""
        if self.config.pool_before_norm:
            return self.projector(h, lengths, norm=self.frames.final_norm)
        heard: Projected = self.projector(h, lengths)
        if self.phones is not None:
            told, counts = self.phones(h, lengths)
            heard.phones = [clip[:n] for clip, n in zip(told, counts.tolist(), strict=True)]
        return heard

    def hear(self, input_features: Tensor, feature_lengths: Tensor, audio_windows: Tensor) -> list[Tensor]:
        """Log-mel (W, mels, T) -> one (S_i, D_llm) an audio: its ``audio_windows[i]`` rows, joined in time."""
        return self.hear_frames(*self.encode(input_features, feature_lengths), audio_windows)

    def hear_frames(self, h: Tensor, lengths: Tensor, windows: Tensor) -> list[Tensor]:
        """As ``hear``, from the frames of ``encode``."""
        projected = self.project(h, lengths)
        rows = [e[:n] for e, n in zip(projected.embeddings, projected.lengths.tolist(), strict=True)]
        audios, start = [], 0
        for count in windows.tolist():
            audios.append(torch.cat(rows[start : start + count]))
            start += count
        return audios

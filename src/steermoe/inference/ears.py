"""``load()`` an adapter and its frozen pair, then ``transcribe`` or ``chat``."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import adapter as adapters
from ..audio import RATE, decode, duration, pieces, windows
from ..config import SteerMoEConfig
from ..errors import AdapterError, UsageError
from ..lexical import LexicalProjector
from ..model import SteerMoEForConditionalGeneration
from ..processing import SteerMoEProcessor
from .chat import Conversation
from .find import DEFAULT, find_adapter
from .grammar import Vocabulary
from .halves import in_batches
from .tools import Dialect
from .transcriber import Transcriber
from .transcripts import Piece, Transcript, Write, as_written, in_order

BATCH = 8  # windows that are heard at once


class Ears(Transcriber):
    """An LLM that hears: ``model`` and ``processor`` are the objects underneath."""

    def __init__(self, model: SteerMoEForConditionalGeneration, processor: SteerMoEProcessor, name: str) -> None:
        super().__init__(model, processor)
        self.adapter_name = name

    @cached_property
    def dialect(self) -> Dialect:
        """How this LLM writes calls of functions."""
        return self.processor.dialect

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """This LLM's tokens, for constrained decoding."""
        size = self.model.llm.get_output_embeddings().weight.shape[0]
        return Vocabulary(self.processor.tokenizer, self.ends, size)

    def with_adapter(self, adapter: str | Path) -> Ears:
        """Another adapter of the same pair beside this one, in a blink: both use the frozen models that are loaded.

        Raises AdapterError for an adapter of another pair, or one that uses the encoder in another way. Its hooks stay
        on the encoder until ``model.attached.remove()``.
        """
        folder, content, config = _read(adapter)
        mine = self.config
        if content["pair"] != getattr(self.model, "pair_fingerprint", None):
            raise AdapterError(f"{adapter}: trained for another pair than {self.adapter_name}; load it by itself")
        if config.lora_rank or mine.lora_rank:
            theirs = adapter if config.lora_rank else self.adapter_name
            raise AdapterError(
                f"{theirs}: its LoRA lies in the encoder, which others would hear with; load each by itself"
            )
        for name in ("encoder_layers", "pad_to_window", "silence"):
            if getattr(config, name) != getattr(mine, name):
                raise AdapterError(f"{adapter}: its {name} is not that of {self.adapter_name}; load it by itself")
        config.encoder, config.llm = mine.encoder, mine.llm
        shared = (self.model.frames, self.model.llm, self.processor.tokenizer)
        model = SteerMoEForConditionalGeneration(config, *shared).to(self.model.device)
        if isinstance(model.projector, LexicalProjector) and isinstance(self.model.projector, LexicalProjector):
            model.projector.share_rows(self.model.projector)
        return _filled(model, content, folder, str(adapter))

    def transcribe(
        self,
        audio: Any,
        *,
        sampling_rate: int | None = None,
        instruction: str | None = None,
        batch_size: int = BATCH,
        max_duration: float = 7200.0,
        **generate: Any,
    ) -> str | list[str]:
        """What is said in ``audio``: a path, bytes, a file object or an array (with ``sampling_rate``), or a list of them.

        Longer audio than the encoder's window (or ``piece_seconds``) is cut at quiet points and the texts are joined.
        Greedy unless ``generate`` says otherwise. Raises AudioError for what cannot be read.
        """
        sources, many = _as_list(audio)
        for source in sources:
            if isinstance(source, str | Path):
                duration(source)  # what is no audio is refused before the others are transcribed
        texts = []
        for told in self.transcripts(
            sources,
            sampling_rate=sampling_rate,
            instruction=instruction,
            batch_size=batch_size,
            max_duration=max_duration,
            **generate,
        ):
            if told.error is not None:
                raise told.error
            texts.append(told.text)
        return texts if many else texts[0]

    def transcripts(
        self,
        sources: Iterable[Any],
        *,
        sampling_rate: int | None = None,
        instruction: str | None = None,
        batch_size: int = BATCH,
        max_duration: float = 7200.0,
        **generate: Any,
    ) -> Iterator[Transcript]:
        """As ``transcribe``, one source after the other, in their order, however many: a few batches are read ahead.

        What cannot be read is a Transcript with its ``error``; the others are not disturbed.
        """
        return in_order(
            sources,
            lambda source: self.cut(source, sampling_rate, max_duration),
            self._write_all(batch_size, instruction, generate),
            batch_size,
        )

    def stream(
        self,
        source: Any,
        *,
        sampling_rate: int | None = None,
        instruction: str | None = None,
        batch_size: int = BATCH,
        max_duration: float = 7200.0,
        **generate: Any,
    ) -> Iterator[Piece]:
        """As ``transcribe``, each piece of one source as soon as it is written: the first alone, then more and more at once.

        Raises AudioError where the source breaks off.
        """
        windowed = self.cut(source, sampling_rate, max_duration)
        return as_written(windowed, self._write_all(batch_size, instruction, generate), batch_size)

    def cut(self, source: Any, sampling_rate: int | None, limit: float) -> Iterator[tuple[Piece, np.ndarray]]:
        """The windows of a source, their texts still empty. Raises AudioError where it breaks off, or after ``limit`` seconds."""
        longest, at = min(self.model.frames.window, self.config.piece_seconds or self.model.frames.window), 0
        for samples in pieces(source, longest, sampling_rate, limit):
            yield Piece(at / RATE, (at + len(samples)) / RATE), samples
            at += len(samples)

    def _write_all(self, size: int, instruction: str | None, generate: dict[str, Any]) -> Write:
        """What writes windows of audio, ``size`` at a time."""
        # What is drawn at random comes from one generator: then one batch after the other, too.
        halved = self.model.device.type == "cpu" and not generate
        return lambda clips: in_batches(lambda some: self.said_in(some, instruction, generate), clips, size, halved)

    def chat(self, messages: Sequence[dict[str, Any]], tools: Any = None, **options: Any) -> str:
        """The LLM's answer to messages with any number of audio parts at any place; of calls, one a line.

        The one-call form of ``Conversation``, which says what messages, ``tools`` and ``options`` may be.
        """
        return str(Conversation(self, messages, tools).answer(**options))

    def audio_tokens(self, audios: Sequence[np.ndarray]) -> Generator[int, None, list[torch.Tensor]]:
        """What the LLM is given of each audio (16 kHz mono, any length): (S_i, D_llm). A few windows are heard at a time, and
        the number of tokens that they gave is told."""
        windowed = [windows(audio, self.model.frames.window) for audio in audios]
        flat, heard = [window for cut in windowed for window in cut], list[tuple[torch.Tensor, list[int] | None]]()
        for start in range(0, len(flat), BATCH):
            with torch.inference_mode():
                found, tokens, _ = self.listen(self._on_device(self.processor.features(flat[start : start + BATCH])))
                heard += zip(found, tokens or repeat(None, len(found)), strict=True)
            yield sum(len(audio) for audio, _ in heard[start:])
        rows = iter(heard)
        return [self._joined([next(rows) for _ in cut]) for cut in windowed]

    @torch.inference_mode()
    def _joined(self, rows: list[tuple[torch.Tensor, list[int] | None]]) -> torch.Tensor:
        """What windows of one audio gave, end to end: those without a word say nothing, and the first word of others has its space."""
        said = [row for row in rows if row[1] != []] or rows[:1]
        projector, parts = self.model.projector, [audio for audio, _ in said]
        if isinstance(projector, LexicalProjector) and projector.behind is not None and projector.temperature == 0:
            for i, (audio, tokens) in enumerate(said[1:], start=1):
                if tokens:
                    first = projector.table[projector.behind[tokens[:1]].to(projector.table.device)]
                    parts[i] = torch.cat([first.to(audio), audio[1:]])
        return torch.cat(parts)

    @torch.inference_mode()
    def hear(self, audio: Any, *, sampling_rate: int | None = None, batch_size: int = BATCH) -> str | list[str]:
        """The lexical projector's own CTC arg-max text, no LLM involved. Raises UsageError for another projector."""
        projector = self.model.projector
        if not isinstance(projector, LexicalProjector):
            raise UsageError(f"hear() reads a lexical projector; this adapter has projector: {self.config.projector}")
        sources, many = _as_list(audio)
        clips = [decode(s, sampling_rate=sampling_rate) for s in sources]
        windowed = [windows(clip, self.model.frames.window) for clip in clips]
        flat: list[np.ndarray] = [window for cut in windowed for window in cut]
        rows: list[list[int]] = []
        for start in range(0, len(flat), batch_size):
            inputs = self._on_device(self.processor.features(flat[start : start + batch_size]))
            rows += projector(*self.model.encode(inputs["input_features"], inputs["feature_lengths"])).tokens or []
        queue = iter(rows)
        heard = [[self.processor.tokenizer.decode(next(queue)).strip() for _ in cut] for cut in windowed]
        texts = [" ".join(filter(None, parts)) for parts in heard]
        return texts if many else texts[0]


def _as_list(audio: Any) -> tuple[list[Any], bool]:
    if isinstance(audio, (list, tuple)):
        return list(audio), True
    return [audio], False


def from_model(model: SteerMoEForConditionalGeneration, name: str = "unsaved") -> Ears:
    """Ears for a model in memory, such as one in training."""
    from ..pretrained import load_tokenizer

    tokenizer = model.tokenizer or load_tokenizer(model.config.llm)
    return Ears(model, SteerMoEProcessor(model.config, tokenizer, model.frames, model.audio_token_id), name)


def load(
    adapter: str | Path = DEFAULT,
    *,
    encoder: str | None = None,
    llm: str | None = None,
    device: str | None = None,
    dtype: torch.dtype | str | None = None,
    llm_elsewhere: bool = False,
) -> Ears:
    """The shipped adapter, a folder, or a hub id, with the frozen pair it names (fetched on first use).

    ``encoder`` and ``llm`` point to local copies of the same weights. ``device``: CUDA where there is one.
    ``llm_elsewhere``: another process runs the LLM; here are its embeddings, what is heard, and no answers.
    Raises AdapterError if the pair's weights are not those the adapter was trained for, UsageError for a device that is not there.
    """
    check_device(device)
    folder, content, config = _read(adapter)
    config.encoder, config.llm = encoder or config.encoder, llm or config.llm
    adapters.check_pair(content, folder, config.encoder, config.llm)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    settings = {k: v for k, v in vars(config).items() if k not in ("encoder", "llm")}
    model = SteerMoEForConditionalGeneration.from_pair(
        config.encoder, config.llm, device=device, dtype=dtype, llm_elsewhere=llm_elsewhere, filled=True, **settings
    )
    return _filled(model, content, folder, str(adapter))


def check_device(device: str | None) -> None:
    """Raises UsageError for one that this torch has not."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        there = f"cpu, {torch.accelerator.current_accelerator()}" if torch.accelerator.is_available() else "cpu"
        raise UsageError(f"device={device!r}: this torch has {there}") from None


def _read(adapter: str | Path) -> tuple[Path, dict[str, Any], SteerMoEConfig]:
    """An adapter's folder, what its config file says, and the config in it."""
    folder = find_adapter(adapter)
    content = adapters.read_config(folder)
    return folder, content, adapters.load_config(content, folder)


def _filled(model: SteerMoEForConditionalGeneration, content: dict[str, Any], folder: Path, name: str) -> Ears:
    model.pair_fingerprint, model.trained = content["pair"], content.get("trained") or {}
    adapters.load_tensors(model, folder)
    return from_model(model, name)

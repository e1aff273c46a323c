"""``load()`` an adapter and its frozen pair, then ``transcribe`` or ``chat``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
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
from ..processing import Prompt, SteerMoEProcessor
from .chat import Conversation
from .decoding import can_draft, full_attention, greedy
from .find import DEFAULT, find_adapter
from .grammar import Vocabulary
from .halves import in_batches
from .readings import best_readings
from .tools import Dialect, find_dialect
from .transcripts import Piece, Transcript, Write, as_written, in_order

BATCH = 8  # windows that are heard at once


@dataclass(frozen=True, eq=False)
class Asked:
    """What the LLM is asked about a window: ``prompt`` with ``audio`` (S, D_llm) in its place, the ``draft`` (token ids) of a
    lexical projector, and how many tokens it may write."""

    prompt: Prompt
    audio: torch.Tensor
    draft: list[int] | None
    limit: int


class Ears:
    """An LLM that hears: ``model`` and ``processor`` are the objects underneath."""

    def __init__(self, model: SteerMoEForConditionalGeneration, processor: SteerMoEProcessor, name: str) -> None:
        self.model, self.processor, self.adapter_name = model, processor, name

    @property
    def config(self) -> SteerMoEConfig:
        return self.model.config

    @cached_property
    def dialect(self) -> Dialect:
        """How this LLM writes calls of functions."""
        return find_dialect(self.processor.tokenizer)

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
        for name in ("encoder_layers", "pad_to_window"):
            if getattr(config, name) != getattr(mine, name):
                raise AdapterError(f"{adapter}: its {name} is not that of {self.adapter_name}; load it by itself")
        config.encoder, config.llm = mine.encoder, mine.llm
        model = SteerMoEForConditionalGeneration(config, self.model.frames, self.model.llm).to(self.model.device)
        if isinstance(model.projector, LexicalProjector) and isinstance(self.model.projector, LexicalProjector):
            model.projector.share(self.model.projector)
        return _filled(model, content, folder, str(adapter), self.processor.tokenizer)

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
        return lambda clips: in_batches(lambda some: self._transcribe(some, instruction, generate), clips, size, halved)

    @torch.inference_mode()
    def _transcribe(self, clips: list[np.ndarray], instruction: str | None, generate: dict[str, Any]) -> list[str]:
        """One window each."""
        vectors = self.config.prompt_vectors > 0
        texts, undrafted, drafted = [""] * len(clips), dict[int, Asked](), dict[int, Asked]()
        for i, asked in enumerate(self.asked(clips, instruction)):
            if asked is not None:
                length = len(asked.prompt.ids) + len(asked.audio) + self.config.prompt_vectors + asked.limit
                checked = asked.draft is not None and not generate and can_draft(self.model.llm, length)
                (drafted if checked else undrafted)[i] = asked
        if drafted:
            for i, text in zip(drafted, self._check(list(drafted.values()), vectors), strict=True):
                texts[i] = text
        if undrafted:
            mine = None if "max_new_tokens" in generate else [asked.limit for asked in undrafted.values()]
            options = {"max_new_tokens": max(mine)} if mine else {}
            options |= {"with_prompt": vectors, **generate}
            prompts, audios = zip(*((asked.prompt, asked.audio) for asked in undrafted.values()), strict=True)
            for i, text in zip(undrafted, self._write(prompts, list(audios), mine, **options), strict=True):
                texts[i] = text
        return texts

    @torch.inference_mode()
    def asked(self, clips: Sequence[np.ndarray], instruction: str | None = None) -> list[Asked | None]:
        """What transcribing these windows asks of the LLM; None where no word is heard: it would invent one.

        A transcript has about as many tokens as were heard: what is longer is a loop. Every clip keeps to its own limit,
        so that no text depends on what else is in the batch.
        """
        audios, drafts = self._listen(self._on_device(self.processor.features(clips)))
        told: list[Asked | None] = []
        for i, (clip, audio) in enumerate(zip(clips, audios, strict=True)):
            prompt, draft = self.processor.transcription(clip, instruction), drafts[i] if drafts is not None else None
            told.append(Asked(prompt, audio, draft, int(8 + 1.5 * len(audio))) if draft != [] else None)
        return told

    @torch.inference_mode()
    def embedded(self, asked: Asked) -> torch.Tensor:
        """(S, D_llm): all that the LLM is given, as embeddings."""
        ids = self._on_device(self.processor.ids([asked.prompt]))
        vectors = self.config.prompt_vectors > 0
        return self.model.splice(ids["input_ids"], ids["attention_mask"], [asked.audio], with_prompt=vectors)[0][0]

    def _listen(self, inputs: dict[str, Any]) -> tuple[list[torch.Tensor], list[list[int]] | None]:
        """Windows of ``processor.features`` -> audio tokens (S_i, D_llm) of each and, if lexical, their token ids.

        Where the arg-max hears words, the LLM chooses among the likeliest readings; silence stays silence.
        """
        model, config = self.model, self.config
        heard = model.project(*model.encode(inputs["input_features"], inputs["feature_lengths"]))
        audios = [e[:n] for e, n in zip(heard.embeddings, heard.lengths.tolist(), strict=True)]
        projector = model.projector
        if heard.tokens is None or heard.likeliest is None:
            return audios, None
        tokens = list(heard.tokens)
        arg_max = config.temperature > 0 or config.readings == 1  # mixtures belong to the arg-max path's segments
        if isinstance(projector, LexicalProjector) and not arg_max:
            context = self.processor.before_speech()
            most = [len(context) + len(clip.blank) for clip in heard.likeliest]
            weighed = [i for i, n in enumerate(most) if tokens[i] and full_attention(model.llm, n)]
            scores = [heard.likeliest[i] for i in weighed]
            how = (config.readings, config.llm_weight, config.token_bonus)
            chosen_of = best_readings(model.llm, context, scores, *how) if weighed else []
            for i, chosen in zip(weighed, chosen_of, strict=True):
                if chosen and chosen != tokens[i]:
                    tokens[i] = chosen
                    audios[i] = projector.table[torch.tensor(chosen, device=projector.table.device)].to(audios[i])
        return audios, tokens

    def _check(self, rows: list[Asked], vectors: bool) -> list[str]:
        """The LLM's transcripts of what was drafted: see ``decoding.greedy`` for who prevails."""
        prompts, audios = [asked.prompt for asked in rows], [asked.audio for asked in rows]
        drafts, limits = [asked.draft or [] for asked in rows], [asked.limit for asked in rows]
        ids = self._on_device(self.processor.ids(prompts))
        embeds, mask, _ = self.model.splice(ids["input_ids"], ids["attention_mask"], audios, with_prompt=vectors)
        shared = prompts[0].ids[: prompts[0].ids.index(self.model.audio_token_id)]  # the instruction follows the audio
        told = [row[inside][len(shared) :] for row, inside in zip(embeds, mask.bool(), strict=True)]
        written = greedy(self.model.llm, told, drafts, self.ends, limits, self.config.llm_margin, shared)
        return [text.strip() for text in self.processor.tokenizer.batch_decode(written, skip_special_tokens=True)]

    @property
    def ends(self) -> set[int]:
        """Tokens that end a turn: the tokenizer's, and what the LLM itself was told."""
        told = self.model.llm.generation_config.eos_token_id
        return {self.processor.tokenizer.eos_token_id, *(told if isinstance(told, list) else [told])} - {None}

    def chat(self, messages: Sequence[dict[str, Any]], tools: Any = None, **options: Any) -> str:
        """The LLM's answer to messages with any number of audio parts at any place; of calls, one a line.

        The one-call form of ``Conversation``, which says what messages, ``tools`` and ``options`` may be.
        """
        return str(Conversation(self, messages, tools).answer(**options))

    @torch.inference_mode()
    def audio_tokens(self, audios: Sequence[np.ndarray]) -> list[torch.Tensor]:
        """What the LLM is given of each audio (16 kHz mono, any length): (S_i, D_llm), a few windows at a time."""
        windowed = [windows(audio, self.model.frames.window) for audio in audios]
        flat, heard = [window for cut in windowed for window in cut], list[torch.Tensor]()
        for start in range(0, len(flat), BATCH):
            heard += self._listen(self._on_device(self.processor.features(flat[start : start + BATCH])))[0]
        rows = iter(heard)
        return [torch.cat([next(rows) for _ in cut]) for cut in windowed]

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
        heard = [[token for _ in cut for token in next(queue)] for cut in windowed]
        texts = [self.processor.tokenizer.decode(ids).strip() for ids in heard]
        return texts if many else texts[0]

    def _on_device(self, batch: dict[str, torch.Tensor]) -> dict[str, Any]:
        return {k: v.to(self.model.device) for k, v in batch.items()}

    @torch.inference_mode()
    def _write(
        self, prompts: Sequence[Prompt], audios: list[torch.Tensor], limits: list[int] | None = None, **options: Any
    ) -> list[str]:
        """What the LLM writes after ``prompts`` with ``audios`` in their places; greedy unless options say otherwise.

        ``limits`` are the most new tokens that are kept of each.
        """
        tokenizer = self.processor.tokenizer
        inputs = self._on_device(self.processor.ids(prompts))
        # Some LLMs are told to avoid what was said before: a transcript must repeat what was repeated.
        known = {
            "do_sample": False,
            "repetition_penalty": 1.0,
            "pad_token_id": self.processor.pad_id,
            "eos_token_id": sorted(self.ends),
        }
        options = {**known, **options}
        if audios:
            new = self.model.generate(**inputs, audios=audios, **options)
        else:
            new = self.model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
        rows = [row[: limits[i]] if limits else row for i, row in enumerate(new.tolist())]
        told = options["eos_token_id"]
        ends = set(told if isinstance(told, list) else [told])
        rows = [row[: next((i for i, token in enumerate(row) if token in ends), None)] for row in rows]
        return [text.strip() for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]


def _as_list(audio: Any) -> tuple[list[Any], bool]:
    if isinstance(audio, (list, tuple)):
        return list(audio), True
    return [audio], False


def from_model(model: SteerMoEForConditionalGeneration, name: str = "unsaved", tokenizer: Any = None) -> Ears:
    """Ears for a model in memory, such as one in training."""
    from ..pretrained import load_tokenizer

    tokenizer = tokenizer or load_tokenizer(model.config.llm)
    return Ears(model, SteerMoEProcessor(model.config, tokenizer, model.frames, model.audio_token_id), name)


def load(
    adapter: str | Path = DEFAULT,
    *,
    encoder: str | None = None,
    llm: str | None = None,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    llm_elsewhere: bool = False,
) -> Ears:
    """The shipped adapter, a folder, or a hub id, with the frozen pair it names (fetched on first use).

    ``encoder`` and ``llm`` point to local copies of the same weights. ``device``: CUDA where there is one.
    ``llm_elsewhere``: another process runs the LLM; here are its embeddings, what is heard, and no answers.
    Raises AdapterError if the pair's weights are not those the adapter was trained for.
    """
    folder, content, config = _read(adapter)
    config.encoder, config.llm = encoder or config.encoder, llm or config.llm
    adapters.check_pair(content, folder, config.encoder, config.llm)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    settings = {k: v for k, v in vars(config).items() if k not in ("encoder", "llm")}
    model = SteerMoEForConditionalGeneration.from_pair(
        config.encoder, config.llm, device=device, dtype=dtype, llm_elsewhere=llm_elsewhere, **settings
    )
    return _filled(model, content, folder, str(adapter))


def _read(adapter: str | Path) -> tuple[Path, dict[str, Any], SteerMoEConfig]:
    """An adapter's folder, what its config file says, and the config in it."""
    folder = find_adapter(adapter)
    content = adapters.read_config(folder)
    return folder, content, adapters.load_config(content, folder)


def _filled(
    model: SteerMoEForConditionalGeneration, content: dict[str, Any], folder: Path, name: str, tokenizer: Any = None
) -> Ears:
    model.pair_fingerprint, model.trained = content["pair"], content.get("trained") or {}
    adapters.load_tensors(model, folder)
    return from_model(model, name, tokenizer)

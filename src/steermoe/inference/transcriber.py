"""Windows of audio to their texts: what is heard, what the LLM is asked about it, and what it writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..audio import RATE
from ..config import SteerMoEConfig
from ..lexical import LexicalProjector, Likeliest
from ..model import SteerMoEForConditionalGeneration
from ..phones import Sound
from ..processing import Prompt, SteerMoEProcessor
from ..splice import full_attention
from .decoding import can_draft, greedy
from .readings import best_readings
from .timing import Word, laid_along, words_heard
from .transcripts import Said


@dataclass(frozen=True, eq=False)
class Asked:
    """What the LLM is asked about a window of ``seconds``: ``prompt`` with ``audio`` (S, D_llm) in its place, the ``draft`` (token
    ids) of a lexical projector, the ``words`` that it heard, and how many tokens the LLM may write."""

    prompt: Prompt
    audio: torch.Tensor
    draft: list[int] | None
    words: list[Word]
    limit: int
    seconds: float

    def said(self, text: str) -> Said:
        """The text that was written, with its times."""
        return Said(text, laid_along(text, self.words, self.seconds))


class Transcriber:
    """A model and its processor, a batch of windows at a time."""

    def __init__(self, model: SteerMoEForConditionalGeneration, processor: SteerMoEProcessor) -> None:
        self.model, self.processor = model, processor

    @property
    def config(self) -> SteerMoEConfig:
        return self.model.config

    @property
    def ends(self) -> set[int]:
        """Tokens that end a turn: the tokenizer's, and what the LLM itself was told."""
        told = self.model.llm.generation_config.eos_token_id
        return {self.processor.tokenizer.eos_token_id, *(told if isinstance(told, list) else [told])} - {None}

    @torch.inference_mode()
    def said_in(self, clips: list[np.ndarray], instruction: str | None, generate: dict[str, Any]) -> list[Said]:
        """One window each."""
        vectors = self.config.prompt_vectors > 0
        told, undrafted, drafted = [Said()] * len(clips), dict[int, Asked](), dict[int, Asked]()
        for i, asked in enumerate(self.asked(clips, instruction)):
            if asked is not None:
                length = len(asked.prompt.ids) + len(asked.audio) + self.config.prompt_vectors + asked.limit
                checked = asked.draft is not None and not generate and can_draft(self.model.llm, length)
                (drafted if checked else undrafted)[i] = asked
        if drafted:
            for (i, asked), text in zip(drafted.items(), self._check(list(drafted.values()), vectors), strict=True):
                told[i] = asked.said(text)
        if undrafted:
            mine = None if "max_new_tokens" in generate else [asked.limit for asked in undrafted.values()]
            options = {"max_new_tokens": max(mine)} if mine else {}
            options |= {"with_prompt": vectors, **generate}
            prompts, audios = zip(*((asked.prompt, asked.audio) for asked in undrafted.values()), strict=True)
            written = self._write(prompts, list(audios), mine, **options)
            for (i, asked), text in zip(undrafted.items(), written, strict=True):
                told[i] = asked.said(text)
        return told

    @torch.inference_mode()
    def asked(self, clips: Sequence[np.ndarray], instruction: str | None = None) -> list[Asked | None]:
        """What transcribing these windows asks of the LLM; None where no word is heard: it would invent one.

        A transcript has about as many tokens as were heard: what is longer is a loop. Every clip keeps to its own limit,
        so that no text depends on what else is in the batch.
        """
        audios, drafts, frames = self.listen(self._on_device(self.processor.features(clips)))
        told: list[Asked | None] = []
        for i, (clip, audio) in enumerate(zip(clips, audios, strict=True)):
            draft = drafts[i] if drafts is not None else None
            if draft == []:
                told.append(None)
                continue
            rate = self.model.frames.rate / self.model.projector.kernel
            length = len(clip) / RATE
            words = words_heard(frames[i], self.processor.tokenizer, rate, length) if frames is not None else []
            prompt = self.processor.transcription(clip, instruction)
            told.append(Asked(prompt, audio, draft, words, int(8 + 1.5 * len(audio)), length))
        return told

    @torch.inference_mode()
    def embedded(self, asked: Asked) -> torch.Tensor:
        """(S, D_llm): all that the LLM is given, as embeddings."""
        ids = self._on_device(self.processor.ids([asked.prompt]))
        vectors = self.config.prompt_vectors > 0
        return self.model.splice(ids["input_ids"], ids["attention_mask"], [asked.audio], with_prompt=vectors)[0][0]

    def listen(
        self, inputs: dict[str, Any]
    ) -> tuple[list[torch.Tensor], list[list[int]] | None, list[Likeliest] | None]:
        """Windows of ``processor.features`` -> audio tokens (S_i, D_llm) of each and, if lexical, their token ids and what was read.

        Where the arg-max hears words, the LLM chooses among the likeliest readings; silence stays silence, and so does what
        has words but no phones.
        """
        model, config = self.model, self.config
        heard = model.project(*model.encode(inputs["input_features"], inputs["feature_lengths"]))
        audios = [e[:n] for e, n in zip(heard.embeddings, heard.lengths.tolist(), strict=True)]
        projector = model.projector
        if not isinstance(projector, LexicalProjector) or heard.tokens is None or heard.likeliest is None:
            return audios, None, None
        tokens = list(heard.tokens)
        sounds = [Sound(told, model.phones.said) for told in heard.phones or []] if model.phones is not None else []
        arg_max = config.temperature > 0 or config.readings == 1  # mixtures belong to the arg-max path's segments
        if not arg_max:
            context = self.processor.before_speech()
            most = [len(context) + len(clip.blank) for clip in heard.likeliest]
            weighed = [i for i, n in enumerate(most) if tokens[i] and full_attention(model.llm, n)]
            scores = [heard.likeliest[i] for i in weighed]
            ears = [sounds[i] for i in weighed] if sounds else None
            chosen_of = best_readings(model.llm, context, scores, config, ears) if weighed else []
            for i, chosen in zip(weighed, chosen_of, strict=True):
                if chosen and chosen != tokens[i]:
                    tokens[i] = chosen
                    audios[i] = projector.table[torch.tensor(chosen, device=projector.table.device)].to(audios[i])
        for i, sound in enumerate(sounds):
            if tokens[i] and sound.silent(tuple(tokens[i])):
                tokens[i], audios[i] = [], projector.nothing[None]
        return audios, tokens, heard.likeliest

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

    def _on_device(self, batch: dict[str, torch.Tensor]) -> dict[str, Any]:
        return {k: v.to(self.model.device) for k, v in batch.items()}

"""Audio and chat in, tensors out: prompts with one placeholder an audio, log-mel windows, labels.

How many audio tokens a clip becomes is known only after the encoder has run (lexical.py), so the placeholder
is always one token; the model splices. The text around it is tokenised piece by piece, so that what the user
writes can never become a placeholder.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .audio import decode, windows
from .config import SteerMoEConfig
from .errors import UsageError
from .inference.tools import Dialect, find_dialect, told
from .splice import IGNORED

log = logging.getLogger(__name__)
# Nobody thinks before repeating; templates that know neither word pass over it.
NO_THINKING: dict[str, Any] = {"enable_thinking": False, "thinking": False}


@dataclass
class Prompt:
    """Token ids with placeholders, the audios for them in order, and labels where a response is known."""

    ids: list[int]
    audios: list[np.ndarray] = field(default_factory=list)
    labels: list[int] | None = None


class SteerMoEProcessor:
    """``tokenizer`` is the LLM's, ``frames`` the wrapped encoder (it knows its own features)."""

    def __init__(self, config: SteerMoEConfig, tokenizer: Any, frames: Any, audio_token_id: int) -> None:
        self.config, self.tokenizer, self.frames = config, tokenizer, frames
        self.audio_token_id = audio_token_id
        self._before_speech: list[int] | None = None
        self._said: set[str] = set()
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id

    def _say_once(self, note: str) -> None:
        if note not in self._said:
            self._said.add(note)
            log.warning("%s: %s", self.config.llm, note)

    @cached_property
    def dialect(self) -> Dialect:
        """How this LLM writes calls of functions."""
        return find_dialect(self.tokenizer)

    def tokens(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def chat(self, messages: Sequence[dict[str, Any]], tools: list[Any] | None = None, **template: Any) -> Prompt:
        """Messages with audio parts, through the LLM's own chat template.

        A part is ``{"type": "text", "text": ...}`` or ``{"type": "audio", "path" | "audio" | "bytes": ...}``
        (with ``sampling_rate`` for an array). Parts are joined by a newline, as string templates do.
        What a template refuses to take from the system, it gets at the head of the user's first message. Raises
        UsageError for a part of another kind, messages that the template refuses, or an LLM without a template.
        """
        if self.tokenizer.chat_template is None:
            raise UsageError(f"{self.config.llm} has no chat template; use prompt_mode: raw")
        # A private-use mark that nothing else contains; audio stands where it is.
        mark, said = "\ue0a1", json.dumps([list(messages), tools], ensure_ascii=False, default=lambda _: "")
        while mark in said:
            mark += "\ue0a2"
        audios: list[np.ndarray] = []
        plain = []
        for message in messages:
            content = message.get("content")
            if isinstance(content, list):
                content = "\n".join(self._part(part, mark, audios) for part in content)
            plain.append({**message, "content": content})
        rendered = self._rendered(plain, tools, {"add_generation_prompt": True, **template})
        pieces = rendered.split(mark)
        if len(pieces) - 1 != len(audios):
            raise UsageError(f"the chat template of {self.config.llm} dropped or repeated a message with audio")
        ids = self.tokens(pieces[0])
        for piece in pieces[1:]:
            ids += [self.audio_token_id, *self.tokens(piece)]
        return Prompt(ids, audios)

    def _rendered(self, messages: list[dict[str, Any]], tools: list[Any] | None, options: dict[str, Any]) -> str:
        from jinja2 import TemplateError

        try:
            return self.tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, **options)
        except TemplateError as error:
            first, *rest = messages or [{}]
            if first.get("role") == "system" and rest and rest[0].get("role") == "user":
                joined = {**rest[0], "content": f"{first['content']}\n\n{rest[0]['content']}"}
                text = self._rendered([joined, *rest[1:]], tools, options)
                self._say_once("its chat template takes no system message; it now heads the user's first message")
                return text
            raise UsageError(f"the chat template of {self.config.llm} refuses these messages: {error}") from None

    def _part(self, part: Any, mark: str, audios: list[np.ndarray]) -> str:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and "text" in part:
            return str(part["text"])
        if kind == "audio":
            source = next((part[k] for k in ("path", "audio", "bytes") if k in part), None)
            if source is None:
                raise UsageError("an audio part needs 'path', 'audio' (an array) or 'bytes'")
            audios.append(decode(source, sampling_rate=part.get("sampling_rate")))
            return mark
        raise UsageError(f"content part {part!r}: 'type' must be 'text' (with 'text') or 'audio'")

    def raw(self, audio: np.ndarray, prompt: str) -> Prompt:
        """The paper's prompt: audio, then the bare text; no template, no special tokens."""
        return Prompt([self.audio_token_id, *self.tokens(prompt)], [audio])

    def transcription(
        self, audio: np.ndarray, instruction: str | None = None, tools: list[Any] | None = None
    ) -> Prompt:
        """The prompt that asks for ``audio`` (16 kHz mono) as text, or that it be answered with ``tools`` at hand.

        Raises UsageError for tools without a chat template.
        """
        instruction = instruction if instruction is not None else self.config.instruction
        if tools and (self.config.prompt_mode == "raw" or self.tokenizer.chat_template is None):
            why = "set prompt_mode: chat" if self.tokenizer.chat_template else "it has none, so leave tools out"
            raise UsageError(f"{self.config.llm}: tools are shown by a chat template: {why}")
        if self.config.prompt_mode == "raw":
            return self.raw(audio, instruction)
        if self.tokenizer.chat_template is None:
            self._say_once("has no chat template: it is given the raw prompt (prompt_mode: raw), audio and bare text")
            prompt = self.raw(audio, instruction)
            return Prompt([*self._beginning(), *prompt.ids], prompt.audios)
        if any(word in str(self.tokenizer.chat_template) for word in NO_THINKING):
            self._say_once("its thinking is switched off for transcription")
        parts: list[dict[str, Any]] = [{"type": "audio", "audio": audio, "sampling_rate": 16_000}]
        if instruction:
            parts.append({"type": "text", "text": instruction})
        messages: list[dict[str, Any]] = [{"role": "user", "content": parts}]
        if tools:
            messages, tools = told(self.dialect, messages, tools)
        return self.chat(messages, tools, **NO_THINKING)

    def _beginning(self) -> list[int]:
        """The token with which the tokenizer itself begins a text, where it does: base models count on it."""
        start = self.tokenizer("a")["input_ids"][:1]
        return start if start and start[0] == self.tokenizer.bos_token_id else []

    def before_speech(self) -> list[int]:
        """Tokens after which the LLM would write what somebody says: against these it weighs what it may have heard."""
        if self.tokenizer.chat_template is None:
            return self._beginning() or [self.tokenizer.eos_token_id]
        if self._before_speech is None:
            self._before_speech = self.chat([{"role": "user", "content": "Say something."}], **NO_THINKING).ids
        return self._before_speech

    def answered(self, prompt: Prompt, response: str, max_text: int | None = None) -> Prompt:
        """``prompt`` followed by ``response`` and the end-of-turn token, which alone are labelled.

        ``max_text`` cuts prompt text and response together (the reference cuts at 448).
        """
        answer = [*self.tokens(response), self.tokenizer.eos_token_id]
        ids, labels = prompt.ids + answer, [IGNORED] * len(prompt.ids) + answer
        if max_text is not None:
            end = max_text + prompt.ids.count(self.audio_token_id)
            ids, labels = ids[:end], labels[:end]
        return Prompt(ids, prompt.audios, labels)

    def batch(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """Model inputs for prompts of any lengths: their ``ids``, and all their audio windows (``features``)."""
        return {**self.ids(prompts), **self.features([a for p in prompts for a in p.audios])}

    def ids(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """Right-padded ``input_ids``, ``attention_mask`` and, where responses are known, ``labels``: all (B, S)."""
        longest = max(len(p.ids) for p in prompts)
        rows = [p.ids + [self.pad_id] * (longest - len(p.ids)) for p in prompts]
        out = {
            "input_ids": torch.tensor(rows),
            "attention_mask": torch.tensor([[1] * len(p.ids) + [0] * (longest - len(p.ids)) for p in prompts]),
        }
        if all(p.labels is not None for p in prompts):
            marks = [p.labels + [IGNORED] * (longest - len(p.ids)) for p in prompts if p.labels is not None]
            out["labels"] = torch.tensor(marks)
        return out

    def features(self, audios: Sequence[np.ndarray], multiple: int = 1) -> dict[str, Tensor]:
        """``input_features`` (W, mels, T), ``feature_lengths`` (W,) and ``audio_windows`` (A,): windows of each audio.

        Audio longer than the encoder's window is cut at quiet points into windows; nothing is dropped. The longest
        is padded to a ``multiple`` of encoder input frames.
        """
        if not audios:
            return {}
        cut = [windows(audio, self.frames.window) for audio in audios]
        features, lengths = self.frames.features([w for pieces in cut for w in pieces], multiple)
        counts = torch.tensor([len(pieces) for pieces in cut])
        return {"input_features": features, "feature_lengths": lengths, "audio_windows": counts}

"""``distill``: the frozen LLM reads the transcript and teaches itself to answer the same when it hears it.

What it is asked comes from the prompts of the data; what it answers it writes itself, once, from the transcript. So
transcripts are all that is needed, and whatever it follows as text it learns to follow as speech, calls of functions
among it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..inference.chat import Reply, together
from ..inference.ears import Ears
from ..inference.grammar import Constraint, call_grammar
from ..inference.held import Held, Slot
from ..inference.toolbox import Toolbox, load_tools
from ..inference.writer import Options, Writer, writing
from ..model import SteerMoEForConditionalGeneration
from ..processing import Prompt, SteerMoEProcessor
from ..splice import IGNORED
from .metrics import whole_lines
from .recipe import Source


@dataclass(frozen=True)
class Offer:
    """Functions that the LLM is shown beside what it hears, and whether it must call one."""

    tools: list[dict[str, Any]]
    must_call: bool = False

    @classmethod
    def of(cls, source: Source) -> Offer | None:
        """Raises UsageError for a file that holds no tools."""
        if source.tools is None:
            return None
        tools = load_tools(Path(source.tools))
        return cls(tools.tools if isinstance(tools, Toolbox) else tools, source.tool_choice == "required")

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps([self.tools, self.must_call], sort_keys=True).encode()).hexdigest()[:16]


class Told(NamedTuple):
    """What the LLM answers: a transcript, what is asked of it (the config's instruction where None), and the functions shown."""

    text: str
    prompt: str | None
    offer: str | None


class Teacher:
    """Writes responses and keeps them: in memory, and in ``path``, so that a run that is resumed goes on with the same.

    ``together``: the LLM is shared out over processes, which have to write for as long as one of them does.
    """

    def __init__(
        self,
        model: SteerMoEForConditionalGeneration,
        processor: SteerMoEProcessor,
        most: int,
        path: Path | None = None,
        together: bool = False,
    ) -> None:
        self.model, self.processor, self.most, self.path, self.together = model, processor, most, path, together
        told = model.llm.generation_config.eos_token_id
        self.ends = {processor.tokenizer.eos_token_id, *(told if isinstance(told, list) else [told])} - {None}
        self.offers: dict[str | None, Offer | None] = {None: None}
        self.written: dict[Told, list[int]] = {}
        for row in whole_lines(path) if path is not None else []:
            self.written[Told(row["text"], row["prompt"], row.get("tools"))] = row["tokens"]

    def batch(
        self, texts: Sequence[str], asked: Sequence[str | None], offers: Sequence[Offer | None] | None = None
    ) -> dict[str, Any]:
        """The prompts with their responses as labels, and ``heard``: each transcript in the LLM's own embeddings."""
        offers = offers or [None] * len(texts)
        self.offers |= {offer.digest: offer for offer in offers if offer is not None}
        digests = [offer.digest if offer is not None else None for offer in offers]
        told = [Told(*each) for each in zip(texts, asked, digests, strict=True)]
        ids = {key: self._asked(*key) for key in dict.fromkeys((each.prompt, each.offer) for each in told)}
        new = [each for each in dict.fromkeys(told) if each not in self.written]
        free = [each for each in new if each.offer is None]
        if free or self.together:
            self._write(free or told[:1], ids)
        if calls := [each for each in new if each.offer is not None]:
            self._write_calls(calls, ids)
        prompts = []
        for each in told:
            answer, before = self.written[each], ids[each.prompt, each.offer]
            prompts.append(Prompt(before + answer, labels=[IGNORED] * len(before) + answer))
        return {**self.processor.ids(prompts), "heard": [self._embedded(text) for text in texts]}

    @cached_property
    def _ears(self) -> Ears:
        return Ears(self.model, self.processor, "")

    def _asked(self, prompt: str | None, shown: str | None) -> list[int]:
        """The ids of the prompt, a placeholder where the transcript is heard."""
        offer = self.offers[shown]
        return self.processor.transcription(np.zeros(1, np.float32), prompt, offer.tools if offer else None).ids

    def _embedded(self, text: str) -> Tensor:
        tokens = torch.tensor(self.processor.tokens(text), dtype=torch.long, device=self.model.device)
        return self.model.llm.get_input_embeddings()(tokens).detach()

    def _write(self, told: Sequence[Told], ids: dict[Any, list[int]]) -> None:
        """Greedy, at most ``most`` tokens, the end token included where it comes."""
        inputs: dict[str, Any] = self.processor.ids([Prompt(ids[each.prompt, each.offer]) for each in told])
        inputs = {name: tensor.to(self.model.device) for name, tensor in inputs.items()}
        new = self.model.generate(
            **inputs, audios=[self._embedded(each.text) for each in told], max_new_tokens=self.most, do_sample=False,
            repetition_penalty=1.0, pad_token_id=self.processor.pad_id, eos_token_id=sorted(self.ends),
            synced_gpus=self.together,
        )  # fmt: skip
        ends = [next((i + 1 for i, token in enumerate(row) if token in self.ends), len(row)) for row in new.tolist()]
        self._keep(told, [row[:end] for row, end in zip(new.tolist(), ends, strict=True)])

    def _write_calls(self, told: Sequence[Told], ids: dict[Any, list[int]]) -> None:
        """The same where functions are shown: free text, or calls that are valid against their schemas."""
        ears = self._ears

        def answer(each: Told) -> Generator[Any, Any, Any]:
            offer, asked = self.offers[each.offer], ids[each.prompt, each.offer]
            assert offer is not None
            at = asked.index(self.processor.audio_token_id)
            read: list[Slot] = [*asked[:at], *self.processor.tokens(each.text), *asked[at + 1 :]]
            grammar = Constraint(ears.vocabulary, call_grammar(ears.vocabulary, ears.dialect, offer.tools))
            writer = Writer(ears, Held(self.model.llm), {}, read, Options(max_new_tokens=self.most), grammar,
                            callable=True, must_call=offer.must_call)  # fmt: skip
            yield from writing(writer)
            tokens = [*writer.tokens]
            if writer.calling:
                tokens += self.processor.tokens(ears.dialect.end)
            return tokens if writer.finish == "length" else [*tokens, self.processor.tokenizer.eos_token_id]

        answers: list[Any] = together([Reply(answer(each)) for each in told])
        for each in answers:
            if isinstance(each, Exception):
                raise each
        self._keep(told, answers)

    def _keep(self, told: Sequence[Told], responses: Sequence[list[int]]) -> None:
        rows = []
        for each, tokens in zip(told, responses, strict=True):
            if each in self.written:
                continue
            self.written[each] = tokens
            said = self.processor.tokenizer.decode(tokens, skip_special_tokens=True)
            tools = {"tools": each.offer} if each.offer else {}
            rows.append({"text": each.text, "prompt": each.prompt, **tools, "response": said, "tokens": tokens})
        if self.path is not None:
            with open(self.path, "a", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

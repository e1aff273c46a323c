"""``distill``: the frozen LLM reads the transcript and teaches itself to answer the same when it hears it.

What it is asked comes from the prompts of the data; what it answers it writes itself, once, from the transcript. So
transcripts are all that is needed, and whatever it follows as text it learns to follow as speech.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..model import SteerMoEForConditionalGeneration
from ..processing import Prompt, SteerMoEProcessor
from ..splice import IGNORED
from .metrics import whole_lines


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
        self.written: dict[tuple[str, str | None], list[int]] = {}
        for row in whole_lines(path) if path is not None else []:
            self.written[row["text"], row["prompt"]] = row["tokens"]

    def batch(self, texts: Sequence[str], asked: Sequence[str | None]) -> dict[str, Any]:
        """The prompts with their responses as labels, and ``heard``: each transcript in the LLM's own embeddings."""
        ids = {prompt: self.processor.transcription(np.zeros(1, np.float32), prompt).ids for prompt in asked}
        pairs = list(zip(texts, asked, strict=True))
        new = [pair for pair in dict.fromkeys(pairs) if pair not in self.written]
        if new or self.together:
            self._write(new or pairs[:1], ids)
        prompts = []
        for pair in pairs:
            answer = self.written[pair]
            before = ids[pair[1]]
            prompts.append(Prompt(before + answer, labels=[IGNORED] * len(before) + answer))
        return {**self.processor.ids(prompts), "heard": [self._embedded(text) for text in texts]}

    def _embedded(self, text: str) -> Tensor:
        tokens = torch.tensor(self.processor.tokens(text), device=self.model.device)
        return self.model.llm.get_input_embeddings()(tokens).detach()

    def _write(self, pairs: Sequence[tuple[str, str | None]], ids: dict[str | None, list[int]]) -> None:
        """Greedy, at most ``most`` tokens, the end token included where it comes."""
        inputs: dict[str, Any] = self.processor.ids([Prompt(ids[prompt]) for _, prompt in pairs])
        inputs = {name: tensor.to(self.model.device) for name, tensor in inputs.items()}
        new = self.model.generate(
            **inputs, audios=[self._embedded(text) for text, _ in pairs], max_new_tokens=self.most, do_sample=False,
            repetition_penalty=1.0, pad_token_id=self.processor.pad_id, eos_token_id=sorted(self.ends),
            synced_gpus=self.together,
        )  # fmt: skip
        rows = []
        for (text, prompt), row in zip(pairs, new.tolist(), strict=True):
            if (text, prompt) in self.written:
                continue
            end = next((i + 1 for i, token in enumerate(row) if token in self.ends), len(row))
            self.written[text, prompt] = row[:end]
            said = self.processor.tokenizer.decode(row[:end], skip_special_tokens=True)
            rows.append({"text": text, "prompt": prompt, "response": said, "tokens": row[:end]})
        if self.path is not None:
            with open(self.path, "a", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

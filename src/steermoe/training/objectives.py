"""What is minimised.

``ctc``   on the lexical frame scores: no pass through the LLM.
``phones``  CTC, too, on what hears phones (phones.py).
``ce``    the paper's next-token loss on what the frozen LLM writes from what it hears.
``copy``  the same loss where what it hears is text, with words dropped, doubled and swapped, to be written back
          as it stands: it teaches the prompt vectors of a lexical adapter to ask for a transcript, not for better
          prose, and needs no audio.
``distill``  the frozen LLM's own answers to the transcript, as distributions, taught to itself on the audio (distill.py).
``balance``  the gates' load-balancing term (variants.py), beside another.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import variants
from ..model import SteerMoEForConditionalGeneration, by_rows
from ..processing import Prompt, SteerMoEProcessor
from ..splice import IGNORED
from .recipe import Stage


class Objectives(nn.Module):
    """The weighted sum of a stage's objectives; one encoder pass serves all of them."""

    def __init__(self, model: SteerMoEForConditionalGeneration, stage: Stage) -> None:
        super().__init__()
        self.model, self.weights, self.dropout = model, stage.objectives, stage.dropout

    def counts(self, batch: dict[str, Any]) -> dict[str, int]:
        """What each objective is a mean over: labelled tokens, or clips for `ctc`, `phones` and `balance`."""
        labelled = {"ce": batch} | {name: batch[name] for name in ("copy", "distill") if name in batch}
        return {
            name: int((labelled[name]["labels"] != IGNORED).sum()) if name in labelled else len(batch["targets"])
            for name in self.weights
        }

    def forward(self, batch: dict[str, Any], totals: dict[str, float] | None = None) -> dict[str, Tensor]:
        """-> ``loss`` and each objective's own value.

        ``totals`` are the ``counts`` of all batches of the step, on all processes: values are then this batch's shares of
        the step's, which add up to them.
        """
        model, losses = self.model, {}
        counts = self.counts(batch)
        totals = totals or {name: float(count) for name, count in counts.items()}
        if "copy" in self.weights:
            losses["copy"] = model(**batch["copy"], with_prompt=True, num_items_in_batch=totals["copy"]).loss
        if "entered" in batch:
            h, lengths = batch["entered"]
            watched: Any = variants.routed(model) if "balance" in self.weights else nullcontext([])
            with watched as gates:
                h, lengths = model.leave(h, lengths)
        if "balance" in self.weights:
            even = variants.balance_loss(gates, lengths, model.config.top_k, h.shape[1])
            losses["balance"] = even * (counts["balance"] / totals["balance"])
        if "ctc" in self.weights:
            projector: Any = model.projector
            mean = projector.ctc_loss(h, lengths, batch["targets"], batch.get("negatives"), self.dropout)
            losses["ctc"] = mean * (counts["ctc"] / totals["ctc"])
        if "phones" in self.weights:
            phones: Any = model.phones
            mean = phones.ctc_loss(h, lengths, batch["targets"], self.dropout)
            losses["phones"] = mean * (counts["phones"] / totals["phones"])
        vectors = model.config.prompt_vectors > 0
        if {"ce", "distill"} & set(self.weights):
            audios = model.hear_frames(h, lengths, torch.ones_like(lengths))
        if "ce" in self.weights:
            losses["ce"] = model(
                batch["input_ids"],
                batch["attention_mask"],
                audios=audios,
                labels=batch["labels"],
                with_prompt=vectors,
                num_items_in_batch=totals["ce"],
            ).loss
        if "distill" in self.weights:
            told = batch["distill"]
            inputs = (told["input_ids"], told["attention_mask"])
            with torch.no_grad():
                taught = model.answer_logits(*inputs, told["heard"], told["labels"])
            learned = model.answer_logits(*inputs, audios, told["labels"], vectors)
            losses["distill"] = by_rows(divergence, learned, taught) / totals["distill"]
        losses["loss"] = torch.stack([self.weights[name] * value for name, value in losses.items()]).sum()
        return losses


def divergence(learned: Tensor, taught: Tensor) -> Tensor:
    """KL(taught || learned), summed over rows (M, V) of logits."""
    logs = learned.float().log_softmax(-1), taught.float().log_softmax(-1)
    return F.kl_div(*logs, reduction="sum", log_target=True)


def collate(
    processor: SteerMoEProcessor,
    entered: tuple[Tensor, Tensor],
    texts: Sequence[str],
    stage: Stage,
    vocabulary: int,
    rng: random.Random,
    asked: Sequence[str | None] | None = None,
) -> dict[str, Any]:
    """What entered the first steered layer, and the transcripts, as one batch for ``Objectives``.

    ``asked`` is what ``ce`` asks of each clip; the config's instruction where it is None.
    """
    batch: dict[str, Any] = {"entered": entered, "targets": [processor.tokens(text) for text in texts]}
    if 0 < stage.negatives < vocabulary:
        batch["negatives"] = torch.tensor(rng.sample(range(vocabulary), stage.negatives))
    if "ce" in stage.objectives:
        ids = {prompt: processor.transcription(np.zeros(1, np.float32), prompt).ids for prompt in asked or [None]}
        prompts = [
            processor.answered(Prompt(ids[p]), t) for p, t in zip(asked or [None] * len(texts), texts, strict=True)
        ]
        batch |= processor.ids(prompts)
    return batch


def misheard(tokens: list[int], rng: random.Random) -> list[int]:
    """Tokens as an imperfect ear has them: one in ten dropped, doubled or swapped with its neighbour. Never empty."""
    out: list[int] = []
    for token in tokens:
        fate = rng.random()
        if fate < 0.05 and len(tokens) > 1:
            continue
        out += [token, token] if fate < 0.07 else [token]
        if fate > 0.97 and len(out) > 1:
            out[-1], out[-2] = out[-2], out[-1]
    return out or tokens[:1]


def copies(
    model: SteerMoEForConditionalGeneration, processor: SteerMoEProcessor, texts: Sequence[str], rng: random.Random
) -> dict[str, Any]:
    """Texts as the lexical projector would read them out, and themselves as the response: a batch for ``copy``.

    One in four is several texts in a row: a window of speech may hold 30 s of it. Of clips without words there is nothing to
    copy; where there are no others, it is a full stop.
    """
    texts = [text for text in texts if text.strip()] or ["."]
    asked = processor.transcription(np.zeros(1, np.float32)).ids
    longer = [" ".join(rng.sample(texts, min(4, len(texts)))) if rng.random() < 0.25 else text for text in texts]
    heard = [misheard(processor.tokens(text), rng) for text in longer]
    prompts = [processor.answered(Prompt(asked), processor.tokenizer.decode(ids)) for ids in heard]
    table: Any = model.projector.table
    return {**processor.ids(prompts), "audios": [table[torch.tensor(ids)] for ids in heard]}


def groups(model: SteerMoEForConditionalGeneration, stage: Stage) -> list[dict[str, Any]]:
    """Optimizer groups as in the paper; also sets ``requires_grad`` to what this stage trains."""
    rates = {"vectors": stage.rates.vectors, "router": stage.rates.router}
    rates |= {
        "projector": stage.rates.projector,
        "phones": stage.rates.phones,
        "prompt": stage.rates.prompt,
        "lora": stage.rates.lora,
    }
    chosen: dict[str, list[nn.Parameter]] = {name: [] for name in rates}
    for name, parameter in model.named_parameters():
        if not name.startswith(model.ADAPTER):
            continue
        parameter.requires_grad_(name.startswith(tuple(stage.trains)) and parameter.numel() > 0)
        if not parameter.requires_grad:
            continue
        if name.startswith("steering.router"):
            chosen["router"].append(parameter)
        elif name.startswith("steering."):
            chosen["vectors"].append(parameter)
        else:
            chosen[name.partition(".")[0].removesuffix("_vectors")].append(parameter)
    return [{"params": p, "lr": rates[n], "name": n, "peak": rates[n]} for n, p in chosen.items() if p]

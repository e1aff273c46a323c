"""What the LLM is fed: prompts with audio in their places, as embeddings.

Shapes: B prompts, S tokens of the longest with its audio, D_llm the LLM's width.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache

from .errors import UsageError

IGNORED = -100  # label value that no loss counts


STATES = (
    "rwkv",
    "mamba",
    "mamba2",
    "falcon_mamba",
    "recurrent_gemma",
    "xlstm",
)  # whose configs do not tell it by layer


def only_attends(config: Any) -> bool:
    """Whether every layer of an LLM attends, so that its cache can be cut back anywhere: a recurrent state cannot."""
    kinds = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None) or ["full_attention"]
    return set(kinds) <= {"full_attention", "sliding_attention", "attention"} and config.model_type not in STATES


def border(config: Any) -> int | None:
    """The number of tokens past which an LLM turns all its keys otherwise (LongRoPE, Phi-3's), None: it never does."""
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") != "longrope":
        return None
    told = rope.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
    return None if told is None else int(told)


@cache
def takes_positions(forward: Callable[..., Any]) -> bool:
    """Whether an LLM, by its class's ``forward``, can be told the position of each token."""
    return "position_ids" in inspect.signature(forward).parameters


def full_attention(llm: Any, length: int) -> bool:
    """Whether in ``length`` tokens each attends to all before it, so that a mask alone says who attends to whom and
    the cache can be cut back: not where layers are recurrent, or their sliding window is shorter than that."""
    config = llm.config.get_text_config()
    sliding = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    # By ALiBi, in GPT-Neo's windows, or without positions to be told, a token's place is its slot in the cache: padding would move it.
    by_slot = getattr(config, "alibi", False) or config.model_type == "gpt_neo"
    placed = not by_slot and takes_positions(type(llm).forward)
    turned = border(config)
    return (
        placed and only_attends(config) and (not sliding or length <= sliding) and (turned is None or length <= turned)
    )


def splice(
    llm: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    audios: list[Tensor],
    labels: Tensor | None = None,
    skip: int = 0,
    name: str = "the LLM",
) -> tuple[Tensor, Tensor, Tensor]:
    """Put each audio (S_i, D_llm) where its placeholder is, the id past the vocabulary; left-pad. The first ``skip`` tokens of
    each prompt are left out; ``name`` is the LLM's, for errors.

    Returns embeddings (B, S, D_llm), mask (B, S) and labels (B, S). Raises ValueError when the number of
    placeholders is not the number of audios, UsageError for a prompt longer than the LLM's positions.
    """
    embedding = llm.get_input_embeddings()
    placeholder = embedding.weight.shape[0]
    found = int((input_ids == placeholder).sum())
    if found != len(audios):
        raise ValueError(f"the prompts have {found} audio placeholders, but {len(audios)} audios came")
    queue = iter(audios)
    rows, marks = [], []
    for ids, mask, row_labels in zip(
        input_ids, attention_mask.bool(), labels if labels is not None else input_ids, strict=True
    ):
        ids, row_labels = ids[mask][skip:], row_labels[mask][skip:]
        cuts = (ids == placeholder).nonzero().flatten().tolist()
        parts, part_labels, start = [], [], 0
        for cut in [*cuts, len(ids)]:
            parts.append(embedding(ids[start:cut]))
            part_labels.append(row_labels[start:cut])
            if cut < len(ids):
                parts.append(next(queue).to(parts[-1]))
                part_labels.append(torch.full((len(parts[-1]),), IGNORED, device=ids.device))
            start = cut + 1
        rows.append(torch.cat(parts))
        marks.append(torch.cat(part_labels))
    longest = max(map(len, rows))
    most = getattr(llm.config.get_text_config(), "max_position_embeddings", None)
    if most is not None and skip + longest > most:
        raise UsageError(
            f"a prompt of {skip + longest} tokens with its audio is longer than {name} takes ({most}): give less audio"
        )
    embeds = torch.stack([F.pad(r, (0, 0, longest - len(r), 0)) for r in rows])
    out_labels = torch.stack([F.pad(m, (longest - len(m), 0), value=IGNORED) for m in marks])
    lengths = torch.tensor([len(r) for r in rows], device=embeds.device)
    out_mask = (torch.arange(longest, device=embeds.device) >= longest - lengths[:, None]).long()
    return embeds, out_mask, out_labels


def beginning(llm: Any, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
    """The ids (P,) that all prompts begin with, up to the first audio or what foretells the first label: a system prompt, say."""
    together = [x[m] for x, m in zip(input_ids, attention_mask.bool(), strict=True)]
    told = [x[m] for x, m in zip(labels, attention_mask.bool(), strict=True)]
    least = min(map(len, together)) - 1
    ids, foretold = torch.stack([row[:least] for row in together]), torch.stack([row[1 : least + 1] for row in told])
    end = (ids != ids[0]) | (ids == llm.get_input_embeddings().weight.shape[0]) | (foretold != IGNORED)
    return ids[0, end.any(0).cumsum(0) == 0]


def read(llm: Any, ids: Tensor, rows: int) -> DynamicCache:
    """What the LLM holds of ``ids`` (P,), for each of ``rows`` texts that begin with them: read once, no graph."""
    cache = DynamicCache()
    with torch.no_grad():
        llm(input_ids=ids[None], past_key_values=cache, use_cache=True, logits_to_keep=1)
    cache.batch_repeat_interleave(rows)
    return cache

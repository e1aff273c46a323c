"""Tiny random LLMs of every family, and chat templates with each one's habits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Qwen3 thinks unless it is told not to, which it is told by an empty thought.
THINKING = CHATML.removesuffix("{% endif %}") + (
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
# Gemma calls the assistant model; Gemma and early Mistral refuse a system message.
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<start>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<start>model\n{% endif %}"
)
INST = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]{% else %} {{ m['content'] }}<|im_end|>{% endif %}"
    "{% endfor %}"
)

IDS: dict[str, Any] = {"vocab_size": 300, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0}
BASE: dict[str, Any] = IDS | {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,  # else every token is as likely as any other
    "attention_dropout": 0.1,  # must never act
}
UNTIED = BASE | {"tie_word_embeddings": False}  # tied at random, a Gemma says its last word for ever


class Family(NamedTuple):
    build: Callable[[], PreTrainedModel]
    template: str | None


FAMILIES: dict[str, Family] = {
    "llama": Family(lambda: LlamaForCausalLM(LlamaConfig(**BASE)), CHATML),
    "qwen2": Family(lambda: Qwen2ForCausalLM(Qwen2Config(**BASE)), CHATML),
    "qwen3": Family(lambda: Qwen3ForCausalLM(Qwen3Config(**BASE, head_dim=12)), THINKING),
    "qwen3_moe": Family(
        lambda: Qwen3MoeForCausalLM(
            Qwen3MoeConfig(**BASE, head_dim=12, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
        ),
        THINKING,
    ),
    # A window shorter than a prompt: the one where neither readings nor drafts can be weighed at once.
    "gemma3_text": Family(
        lambda: Gemma3ForCausalLM(
            Gemma3TextConfig(
                **UNTIED, head_dim=12, sliding_window=512, layer_types=["sliding_attention", "full_attention"]
            )
        ),
        NO_SYSTEM,
    ),
    "gemma3_text, short window": Family(
        lambda: Gemma3ForCausalLM(
            Gemma3TextConfig(
                **UNTIED, head_dim=12, sliding_window=8, layer_types=["sliding_attention", "full_attention"]
            )
        ),
        None,
    ),
    "mistral": Family(lambda: MistralForCausalLM(MistralConfig(**BASE, sliding_window=None)), INST),
    "phi": Family(lambda: PhiForCausalLM(PhiConfig(**BASE | {"num_key_value_heads": 4})), None),
    "phi3": Family(lambda: Phi3ForCausalLM(Phi3Config(**BASE)), CHATML),
    "gpt2": Family(
        lambda: GPT2LMHeadModel(
            GPT2Config(**IDS, n_embd=48, n_layer=2, n_head=4, n_positions=512, attn_pdrop=0.1, initializer_range=0.3)
        ),
        None,
    ),
}


def build(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return FAMILIES[name].build().eval().requires_grad_(False)

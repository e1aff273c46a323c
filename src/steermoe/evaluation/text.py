"""The ``text`` suite: proof that text behaviour is untouched.

The LLM is loaded a second time, plain, and both are given the same prompts: logits at every position must be the
same bits, greedy texts the same texts, also after audio was heard, and also for a padded batch.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from . import predictions
from .listener import ears_of
from .predictions import Row
from .provenance import provenance

if TYPE_CHECKING:
    from ..inference.ears import Ears
    from .listener import Listener
    from .suites import Options

PROMPTS = (
    "Hello.",
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "Count from one to ten.",
    "Translate into German: good morning.",
    "What is 12 plus 30?",
    "Name three colours.",
    "Write a short poem about rain.",
    "Explain in one sentence why the sky is blue.",
    "Repeat the word banana three times.",
    "Is water wet? Answer yes or no.",
    'Return the JSON object {"name": "Ada", "age": 36}.',
    "def add(a, b):",
    "Les chats sont",
    "你好,请介绍一下你自己。",
    "Ω ≈ 3.14 ✓ \u00e9\u0301 🙂",
)
NEW_TOKENS = 32


def run(listener: Listener, options: Options) -> dict[str, Any]:
    """Compare the adapter's LLM with the plain one on PROMPTS. UsageError for a server, which shows no logits."""
    from ..pretrained import load_llm

    ears = ears_of(listener, "text")
    plain = load_llm(ears.config.llm, ears.model.llm.dtype).to(ears.model.device).eval()
    rng = np.random.default_rng(0)
    ears.transcribe(rng.normal(0, 0.1, 16_000).astype(np.float32), sampling_rate=16_000)  # may leave no trace
    rows = [_row(ears, plain, prompt) for prompt in PROMPTS]
    same = all(row["logits_equal"] and row["text_equal"] for row in rows)
    batch = _batch_equal(ears, plain)
    result = {
        "suite": "text",
        "data": f"{len(PROMPTS)} fixed prompts",
        "n": len(rows),
        "metrics": {
            "logits_equal": float(np.mean([row["logits_equal"] for row in rows])),
            "text_equal": float(np.mean([row["text_equal"] for row in rows])),
            "batch_equal": float(batch),
        },
        "untouched": same and batch,
        "adapter": listener.name,
        "failures": {},
        "provenance": provenance() | listener.about(),
    }
    if options.out is not None:
        predictions.finish(options.out / "predictions.jsonl", rows)
        text = json.dumps(result, indent=2, ensure_ascii=False) + "\n"
        predictions.replace(options.out / "metrics.json", text)
    return result


@torch.inference_mode()
def _row(ears: Ears, plain: Any, prompt: str) -> Row:
    tokenizer = ears.processor.tokenizer
    chat = tokenizer.chat_template is not None
    if chat:
        message = [{"role": "user", "content": prompt}]
        prompt_text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    ids = torch.tensor([ears.processor.tokens(prompt_text if chat else prompt)], device=ears.model.device)
    ours, theirs = ears.model(input_ids=ids).logits, plain(input_ids=ids).logits
    texts = []
    for model in (ears.model, plain):
        new = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS,
                             do_sample=False, pad_token_id=ears.processor.pad_id)  # fmt: skip
        texts.append(tokenizer.decode(new[0, ids.shape[1] :], skip_special_tokens=True).strip())
    return {
        "id": prompt, "reference": texts[1], "hypothesis": texts[0], "text_equal": texts[0] == texts[1],
        "logits_equal": torch.equal(ours, theirs),
    }  # fmt: skip


@torch.inference_mode()
def _batch_equal(ears: Ears, plain: Any) -> bool:
    """The logits of all prompts in one padded batch."""
    from ..processing import Prompt

    batch = ears.processor.ids([Prompt(ears.processor.tokens(prompt)) for prompt in PROMPTS])
    batch = {key: value.to(ears.model.device) for key, value in batch.items()}
    return torch.equal(ears.model(**batch).logits, plain(**batch).logits)

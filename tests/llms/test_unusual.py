"""LLMs that keep a state, tell places by cache slot, or turn their keys otherwise past a length: right, if slower."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as T
from torch import Tensor

from steermoe.inference.ears import Ears, from_model
from steermoe.inference.held import Held, Wanted, feed
from steermoe.model import SteerMoEForConditionalGeneration
from steermoe.splice import IGNORED, full_attention
from tests.conftest import livened
from tests.llms.families import BASE, UNTIED

SMALL: dict[str, Any] = {
    "vocab_size": 300,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}
LONG_ROPE = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 6, "long_factor": [4.0] * 6,
             "original_max_position_embeddings": 32}  # fmt: skip
STATES: dict[str, Callable[[], Any]] = {
    "jamba": lambda: T.JambaForCausalLM(T.JambaConfig(**BASE | {"num_hidden_layers": 4}, attn_layer_period=2, attn_layer_offset=1,
        num_experts=2, num_experts_per_tok=1, mamba_d_state=8, mamba_dt_rank=8, use_mamba_kernels=False)),
    "mamba": lambda: T.MambaForCausalLM(T.MambaConfig(**SMALL, hidden_size=48, num_hidden_layers=2, state_size=8)),
    "phi3": lambda: T.Phi3ForCausalLM(T.Phi3Config(**BASE, rope_parameters=LONG_ROPE, original_max_position_embeddings=32)),
}  # fmt: skip
SLOTS: dict[str, Callable[[], Any]] = {
    "gpt_neo": lambda: T.GPTNeoForCausalLM(T.GPTNeoConfig(**SMALL, hidden_size=48, num_layers=2, num_heads=4,
        attention_types=[[["global", "local"], 1]], window_size=8)),
    "mpt": lambda: T.MptForCausalLM(T.MptConfig(**SMALL, d_model=48, n_layers=2, n_heads=4)),
    "bloom": lambda: T.BloomForCausalLM(T.BloomConfig(**SMALL, hidden_size=48, n_layer=2, n_head=4)),
}  # fmt: skip


def made(build: Callable[[], Any]) -> Any:
    torch.manual_seed(0)
    return build().eval().requires_grad_(False)


@pytest.mark.parametrize("family", [*STATES, *SLOTS])
def test_turns_are_those_of_the_whole(family: str) -> None:
    """One token at a time and several, on past the 32nd, where Phi-3's keys turn, and back."""
    llm = made((STATES | SLOTS)[family])
    held, told = Held(llm), torch.randint(3, 300, (50,), generator=torch.Generator().manual_seed(3)).tolist()
    with torch.inference_mode():
        for end in (20, 21, 22, 25, 31, 32, 33, 34, 50, 28):
            whole: Tensor = llm(input_ids=torch.tensor([told[:end]]), use_cache=False).logits[0, -1]
            torch.testing.assert_close(held.feed(told[:end], {}), whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", SLOTS)
def test_nobody_joins_where_a_place_is_a_slot(family: str) -> None:
    llm = made(SLOTS[family])
    assert not full_attention(llm, 5)
    texts = [[5, 6, 7, 8], [9, 10, 11, 12, 13, 14, 15]]
    helds = [Held(llm) for _ in texts]
    for held, text in zip(helds, texts, strict=True):
        held.feed(text[:-1], {})
    rows = feed([Wanted(held, text, {}) for held, text in zip(helds, texts, strict=True)])
    for row, text in zip(rows, texts, strict=True):
        whole = llm(input_ids=torch.tensor([text]), use_cache=False).logits[0, -1]
        torch.testing.assert_close(row, whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", SLOTS)
def test_a_batch_equals_its_clips(family: str, pair: Any, tmp_path: Path, speech: Any) -> None:
    made(SLOTS[family]).save_pretrained(tmp_path)
    T.AutoTokenizer.from_pretrained(pair.llm).save_pretrained(tmp_path)
    torch.manual_seed(0)
    model = livened(SteerMoEForConditionalGeneration.from_pair(pair.encoder, str(tmp_path), dtype=torch.float32))
    ears: Ears = from_model(model)
    clips = [speech(1.0 + 0.4 * i, seed=i) for i in range(4)]
    assert ears.transcribe(clips, sampling_rate=16_000) == [ears.transcribe(c, sampling_rate=16_000) for c in clips]


def test_prompt_vectors_count_at_the_edge_of_a_window(pair: Any, tmp_path: Path) -> None:
    config = T.Gemma3TextConfig(
        **UNTIED, head_dim=12, sliding_window=16, layer_types=["sliding_attention", "full_attention"]
    )
    made(lambda: T.Gemma3ForCausalLM(config)).save_pretrained(tmp_path)
    T.AutoTokenizer.from_pretrained(pair.llm).save_pretrained(tmp_path)
    model = SteerMoEForConditionalGeneration.from_pair(
        pair.encoder, str(tmp_path), dtype=torch.float32, projector="linear", prompt_vectors=8
    )
    mark = model.audio_token_id
    rows = [[5, 9, 77, mark, 31, 8, 2], [5, 9, 77, mark, 31, 12, 40, 41, 2], [5, 9, 14, mark, 9, 2]]
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    mask = (ids != 0).long()
    labels = torch.where(mask.bool(), ids, IGNORED)
    labels[:, :4] = IGNORED
    audios, losses = [torch.randn(n, 48, generator=torch.Generator().manual_seed(n)) for n in (3, 6, 1)], []
    for model.share_beginning in (False, True):
        losses.append(float(model(ids, mask, audios=audios, labels=labels, with_prompt=True).loss))
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)

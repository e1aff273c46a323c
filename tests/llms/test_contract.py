"""Every LLM family keeps one contract: its text is untouched, and audio goes in at any place, alone or in a batch."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from steermoe import adapter
from steermoe.errors import UsageError
from steermoe.inference.decoding import can_draft, greedy
from steermoe.inference.ears import Ears, from_model, load
from steermoe.inference.readings import likelihoods
from steermoe.model import SteerMoEForConditionalGeneration
from steermoe.splice import IGNORED, full_attention

from .families import FAMILIES, build

Speech = Callable[..., np.ndarray]
QUESTION = {"role": "user", "content": "very well said the quick brown fox"}


@pytest.fixture(params=FAMILIES, scope="module")
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(family: str, pair: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A family's model and tokenizer as they lie on a hub."""
    path = tmp_path_factory.mktemp("llm")
    build(family).save_pretrained(path)
    tokenizer = AutoTokenizer.from_pretrained(pair.llm)
    tokenizer.chat_template = FAMILIES[family].template
    tokenizer.save_pretrained(path)
    return path


def hearing(folder: Path, pair: Any, liven: Any, dtype: torch.dtype = torch.float32, **config: Any) -> Ears:
    torch.manual_seed(0)
    model = SteerMoEForConditionalGeneration.from_pair(pair.encoder, str(folder), dtype=dtype, **config)
    return from_model(liven(model))


@pytest.fixture(scope="module")
def ears(folder: Path, pair: Any, liven: Any) -> Ears:
    return hearing(folder, pair, liven, prompt_vectors=2, llm_margin=0.0)


@pytest.fixture(scope="module")
def mixed(folder: Path, pair: Any, liven: Any) -> Ears:
    """With the paper's projector."""
    return hearing(folder, pair, liven, projector="linear")


@torch.inference_mode()
def test_text_is_the_plain_llms(family: str, mixed: Ears) -> None:
    plain = build(family)
    ids = torch.randint(3, 300, (2, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    assert torch.equal(mixed.model(ids, mask).logits, plain(input_ids=ids, attention_mask=mask).logits)
    options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False}
    assert torch.equal(
        mixed.model.generate(ids, mask, **options), plain.generate(input_ids=ids, attention_mask=mask, **options)
    )


@torch.inference_mode()
def test_spliced_words_are_words(mixed: Ears) -> None:
    """Audio tokens that are word embeddings give the logits of those words: scales, positions and masks are right."""
    model, words = mixed.model, torch.tensor([[5, 9, 77, 140, 31]])
    embeddings = model.llm.get_input_embeddings()(words[:, 1:4])
    ids = torch.tensor([[5, model.audio_token_id, 31]])
    heard = model(ids, audios=[embeddings[0]]).logits
    assert torch.allclose(heard, model.llm(input_ids=words).logits, atol=1e-4)


def test_what_prompts_begin_with_is_read_once(mixed: Ears, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same loss and the same gradients on the audio as when every row holds it, whatever the padding."""
    model, sizes = mixed.model, (3, 6, 1)
    mark = model.audio_token_id
    rows = [[5, 9, 77, mark, 31, 8, 2], [5, 9, 77, mark, 31, 12, 40, 41, 2], [5, 9, 14, mark, 9, 2]]
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(r) for r in rows], batch_first=True)
    mask = (ids != 0).long()
    labels = torch.where(ids * mask > 0, ids, IGNORED)
    labels[:, :4] = IGNORED
    fed: list[int] = []
    hook = model.llm.register_forward_pre_hook(
        lambda _, __, given: fed.append((given.get("input_ids") if "inputs_embeds" not in given else given["inputs_embeds"]).shape[1]),
        with_kwargs=True,
    )  # fmt: skip

    def learn(shared: bool) -> list[torch.Tensor]:
        monkeypatch.setattr(model, "share_beginning", shared)
        audios = [torch.randn(n, 48, generator=torch.Generator().manual_seed(n)).requires_grad_() for n in sizes]
        fed.clear()
        loss = model(ids, mask, audios=audios, labels=labels).loss
        return [loss, *torch.autograd.grad(loss, audios)]

    try:
        alone = learn(False)
        assert fed == [14]
        for one, other in zip(alone, learn(True), strict=True):
            assert torch.allclose(one, other, atol=1e-5)
        assert fed == ([2, 12] if full_attention(model.llm, 9 + 6) else [14])
    finally:
        hook.remove()


def test_template_round_trip(family: str, mixed: Ears, speech: Speech) -> None:
    """The placeholder stands where the audio stood; the text around it is the template's own."""
    processor, template = mixed.processor, FAMILIES[family].template
    if template is None:
        with pytest.raises(UsageError, match="no chat template"):
            processor.chat([QUESTION])
        return
    audio = {"type": "audio", "audio": speech(0.3), "sampling_rate": 16_000}
    prompt = processor.chat([{"role": "user", "content": [audio, {"type": "text", "text": "fox"}]}])
    at = prompt.ids.index(processor.audio_token_id)
    assert prompt.ids.count(processor.audio_token_id) == len(prompt.audios) == 1
    text = processor.tokenizer.decode(prompt.ids[:at]) + "AUDIO" + processor.tokenizer.decode(prompt.ids[at + 1 :])
    rendered = processor.tokenizer.apply_chat_template(
        [{"role": "user", "content": "AUDIO\nfox"}], tokenize=False, add_generation_prompt=True
    )
    assert text == rendered


def test_system_messages_arrive(family: str, mixed: Ears, caplog: pytest.LogCaptureFixture) -> None:
    if FAMILIES[family].template is None:
        return
    messages = [{"role": "system", "content": "Be brown."}, QUESTION]
    said = [mixed.processor.tokenizer.decode(mixed.processor.chat(messages).ids) for _ in range(2)][-1]
    assert said.index("Be brown.") < said.index("very well said")
    refused = family in ("gemma3_text", "mistral")
    assert [r.message for r in caplog.records if "no system message" in r.message] == [
        f"{mixed.config.llm}: its chat template takes no system message; it now heads the user's first message"
    ] * refused  # once


def test_how_a_transcription_is_asked_for(
    family: str, folder: Path, pair: Any, liven: Any, speech: Speech, caplog: pytest.LogCaptureFixture
) -> None:
    ears = hearing(folder, pair, liven, projector="linear")
    prompts = [ears.processor.transcription(speech(0.3)) for _ in range(2)]
    text = ears.processor.tokenizer.decode([i for i in prompts[1].ids if i != ears.processor.audio_token_id])
    notes = [r.message for r in caplog.records]
    template = FAMILIES[family].template
    if template is None:
        assert text == ears.config.instruction
        assert len(notes) == 1
        assert "no chat template: it is given the raw prompt" in notes[0]
    elif "enable_thinking" in template:
        assert text.endswith("<think>\n\n</think>\n\n")
        assert len(notes) == 1
        assert "thinking is switched off for transcription" in notes[0]
    else:
        assert not notes


def test_batch_is_single(ears: Ears, mixed: Ears, speech: Speech) -> None:
    clips = [speech(s, seed=i) for i, s in enumerate((1.4, 0.4, 2.1))]
    for each in (ears, mixed):
        together = each.transcribe(clips, sampling_rate=16_000)
        assert together == [each.transcribe(clip, sampling_rate=16_000) for clip in clips]
        assert len(set(together)) > 1
    options: dict[str, Any] = {"max_new_tokens": 6, "with_prompt": True}
    prompts = [ears.processor.transcription(clip) for clip in clips]
    batch = ears.processor.batch(prompts)
    many = ears.model.generate(**batch, eos_token_id=None, pad_token_id=0, do_sample=False, **options)
    for row, prompt in zip(many, prompts, strict=True):
        single = ears.processor.batch([prompt])
        one = ears.model.generate(**single, eos_token_id=None, pad_token_id=0, do_sample=False, **options)
        assert torch.equal(row, one[0])


def test_stop_tokens_end_the_answer(mixed: Ears, speech: Speech) -> None:
    """Whatever it would write second is made an end: one token comes, and the end itself is no text."""
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    for seed in range(10):
        clip = speech(0.8, seed)
        inputs = mixed.processor.batch([mixed.processor.transcription(clip)])
        free = mixed.model.generate(**inputs, eos_token_id=None, **options)[0].tolist()
        if stops := [t for i, t in enumerate(free) if i and t not in free[:i]]:
            break  # not the same token over and over
    stop = stops[0]
    known, mixed.model.llm.generation_config.eos_token_id = mixed.model.llm.generation_config.eos_token_id, [2, stop]
    try:
        assert mixed.ends >= {2, stop}
        text = mixed.transcribe(clip, sampling_rate=16_000)
    finally:
        mixed.model.llm.generation_config.eos_token_id = known
    kept = free[: free.index(stop)]
    kept = kept[: kept.index(2)] if 2 in kept else kept
    assert text == mixed.processor.tokenizer.decode(kept, skip_special_tokens=True).strip()


@torch.inference_mode()
def test_drafts_and_readings_equal_token_by_token(family: str, ears: Ears) -> None:
    llm, texts = ears.model.llm, [[7, 30, 41, 7], [7, 30, 9], [88], []]
    assert full_attention(llm, 20) == (family != "gemma3_text, short window")
    if not full_attention(llm, 20):
        assert full_attention(llm, 8)
        return
    for text, chance in zip(texts, likelihoods(llm, [5, 6], texts), strict=True):
        steps = llm(input_ids=torch.tensor([[5, 6, *text]])).logits[0].log_softmax(-1)
        assert chance == pytest.approx(sum(float(steps[1 + i, t]) for i, t in enumerate(text)), abs=1e-3)
    prompt = llm.get_input_embeddings()(torch.tensor([[5, 6, 70]]))
    options: dict[str, Any] = {"max_new_tokens": 9, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    slow = llm.generate(inputs_embeds=prompt, attention_mask=torch.ones(1, 3).long(), **options)[0].tolist()
    assert can_draft(llm, 12)
    for draft in ([], slow, [*slow[:4], 99, *slow[5:]]):
        assert greedy(llm, [prompt[0]], [draft], [], [9]) == [slow]


def test_positions_run_out_in_one_line(family: str, mixed: Ears) -> None:
    most = mixed.model.llm.config.get_text_config().max_position_embeddings
    ids = torch.full((1, most), 7)
    ids[0, 0] = mixed.model.audio_token_id
    with pytest.raises(UsageError, match=rf"{most + 1} tokens with its audio is longer than .* takes \({most}\)"):
        mixed.model.splice(ids, torch.ones_like(ids), [torch.zeros(2, 48)])


def digest(module: Any) -> str:
    state = hashlib.sha256()
    for name, tensor in sorted([*module.named_parameters(), *module.named_buffers()]):
        state.update(name.encode() + tensor.detach().flatten().contiguous().view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


def test_three_steps_teach_the_adapter_alone(
    folder: Path, pair: Any, liven: Any, speech: Speech, tmp_path: Path
) -> None:
    ears = hearing(folder, pair, liven, projector="linear")
    model, processor = ears.model.train(), ears.processor
    frozen, before = digest(model.llm), copy.deepcopy(model.adapter_state())
    prompts = [processor.answered(processor.transcription(speech(s)), "the quick fox") for s in (0.5, 0.9)]
    batch, optimizer = processor.batch(prompts), torch.optim.AdamW(model.trainable().values(), lr=1e-2)
    losses = []
    for _ in range(3):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[2] < losses[0]
    assert digest(model.llm) == frozen
    assert all(not torch.equal(before[name], tensor) for name, tensor in model.adapter_state().items())
    model.save_adapter(tmp_path / "a")
    again = load(tmp_path / "a", encoder=pair.encoder, llm=str(folder), dtype=torch.float32)
    assert all(torch.equal(again.model.adapter_state()[name], t) for name, t in model.adapter_state().items())
    assert json.loads((tmp_path / "a" / adapter.CONFIG).read_text())["shapes"]["llm_width"] == 48


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_dtype_hears(folder: Path, pair: Any, liven: Any, speech: Speech, dtype: torch.dtype) -> None:
    for config in ({"projector": "linear"}, {"prompt_vectors": 2}):
        ears = hearing(folder, pair, liven, dtype, **config)
        assert ears.model.llm.dtype == dtype
        assert all(t.dtype == torch.float32 for t in ears.model.adapter_state().values())
        assert isinstance(ears.transcribe(speech(0.7), sampling_rate=16_000, max_new_tokens=4), str)
        prompt = ears.processor.answered(ears.processor.transcription(speech(0.7)), "fox")
        assert torch.isfinite(ears.model(**ears.processor.batch([prompt])).loss)

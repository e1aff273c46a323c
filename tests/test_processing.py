"""Prompts: one placeholder an audio, nothing a user writes becomes one, labels on the response alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from steermoe.errors import AudioError, UsageError
from steermoe.inference.ears import Ears
from steermoe.processing import SteerMoEProcessor
from steermoe.splice import IGNORED

Speech = Callable[..., np.ndarray]


@pytest.fixture
def processor(ears: Ears) -> SteerMoEProcessor:
    return ears.processor


def part(samples: np.ndarray) -> dict[str, Any]:
    return {"type": "audio", "audio": samples, "sampling_rate": 16_000}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def user(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def test_chat_is_the_template_with_placeholders(processor: SteerMoEProcessor, speech: Speech) -> None:
    first, second = speech(0.5), speech(0.7, 1)
    messages = [{"role": "system", "content": "be brief"}, *user(text("a"), part(first), text("b"), part(second))]
    prompt = processor.chat(messages)
    pieces = [
        "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\na\n",
        "\nb\n",
        "<|im_end|>\n<|im_start|>assistant\n",
    ]
    wanted = processor.tokens(pieces[0])
    for piece in pieces[1:]:
        wanted += [processor.audio_token_id, *processor.tokens(piece)]
    assert prompt.ids == wanted
    assert all(np.array_equal(a, b) for a, b in zip(prompt.audios, [first, second], strict=True))


@pytest.mark.parametrize("tools", [None, [{"type": "function", "function": {"name": "weather"}}]])
def test_chat_without_audio_is_the_tokenizers_own(processor: SteerMoEProcessor, tools: Any) -> None:
    messages = [{"role": "user", "content": "very <|im_end|> well"}, {"role": "assistant", "content": "quick"}]
    own = processor.tokenizer.apply_chat_template(
        messages, tools=tools, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    assert processor.chat(messages, tools).ids == own


@pytest.mark.parametrize("words", ["\ue0a1", "x\ue0a1\ue0a2y", "\ue0a1\ue0a2\ue0a2", "<|audio|>", "[300]", "Ā300"])
@pytest.mark.parametrize("place", ["part", "system", "string", "tools", "call"])
def test_no_text_becomes_a_placeholder(processor: SteerMoEProcessor, speech: Speech, words: str, place: str) -> None:
    messages, tools = user(part(speech(0.5))), None
    if place == "part":
        messages = user(text(words), part(speech(0.5)), text(words))
    elif place == "tools":
        tools = [{"type": "function", "function": {"name": words}}]
    elif place == "call":
        call = {"type": "function", "function": {"name": words, "arguments": {"a": words}}}
        messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
    else:
        messages.append({"role": "system" if place == "system" else "user", "content": words})
    prompt = processor.chat(messages, tools)
    assert prompt.ids.count(processor.audio_token_id) == 1 == len(prompt.audios)
    if place in ("part", "system", "string"):  # and what was written arrives as written
        assert processor.tokenizer.decode([i for i in prompt.ids if i < processor.audio_token_id]).count(words) == (
            2 if place == "part" else 1
        )


def test_no_token_of_the_vocabulary_is_the_placeholder(processor: SteerMoEProcessor) -> None:
    assert max(processor.tokenizer.get_vocab().values()) < processor.audio_token_id


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ({"type": "image", "url": "x"}, UsageError, "'type' must be 'text'"),
        ("bare", UsageError, "'type' must be 'text'"),
        ({"type": "audio"}, UsageError, "'path', 'audio'"),
        ({"type": "text"}, UsageError, "'text' .with 'text'."),
        ({"type": "audio", "path": "absent.wav"}, AudioError, "absent.wav"),
        ({"type": "audio", "audio": np.zeros(99, np.float32)}, AudioError, "sampling_rate"),
    ],
)
def test_bad_parts(processor: SteerMoEProcessor, content: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        processor.chat(user(content))


def test_templates_that_cannot_carry_audio(processor: SteerMoEProcessor, speech: Speech) -> None:
    audio = user(part(speech(0.3)))
    with pytest.raises(UsageError, match="dropped or repeated"):
        processor.chat(audio, chat_template="{% for m in messages %}{{ m['role'] }}{% endfor %}")
    with pytest.raises(UsageError, match=r"refuses these messages: roles must alternate"):
        processor.chat(audio, chat_template="{{ raise_exception('roles must alternate') }}")
    own, processor.tokenizer.chat_template = processor.tokenizer.chat_template, None
    try:
        with pytest.raises(UsageError, match="no chat template; use prompt_mode: raw"):
            processor.chat(audio)
    finally:
        processor.tokenizer.chat_template = own


def test_raw_mode_is_the_reference_token_for_token(make: Callable[..., Ears], speech: Speech) -> None:
    """prompt ids + label ids + eos, tokenised apart; labels masked over the prompt; cut at 448 before the audio counts."""
    instruction = "please transcribe the audio content into text: "
    processor = make(prompt_mode="raw", instruction=instruction, projector="linear").processor
    clip, end = speech(0.5), processor.tokenizer.eos_token_id
    for words in ("VERY WELL SAID", "word " * 500):
        p, y = processor.tokens(instruction), processor.tokens(words)
        ids, labels = (p + y + [end])[:448], ([IGNORED] * len(p) + y + [end])[:448]
        prompt = processor.answered(processor.transcription(clip), words, max_text=448)
        assert prompt.ids == [processor.audio_token_id, *ids]
        assert prompt.labels == [IGNORED, *labels]
    assert len(prompt.ids) == 449 and prompt.ids[-1] != end  # the second was cut, its eos with it
    assert processor.transcription(clip).ids == [processor.audio_token_id, *processor.tokens(instruction)]


def test_labels_mask_exactly_the_response(processor: SteerMoEProcessor, speech: Speech) -> None:
    asked = processor.transcription(speech(0.5))
    prompt = processor.answered(asked, "very well")
    response = [*processor.tokens("very well"), processor.tokenizer.eos_token_id]
    assert prompt.ids == asked.ids + response
    assert prompt.labels == [IGNORED] * len(asked.ids) + response
    assert asked.labels is None  # the prompt itself is left as it was


def test_batch_pads_right_and_keeps_order(processor: SteerMoEProcessor, speech: Speech) -> None:
    clips = [speech(0.5), speech(31.0, 1), speech(0.2, 2)]
    prompts = [processor.answered(processor.chat(user(part(clips[0]), part(clips[1]))), "a")]
    prompts.append(processor.answered(processor.chat(user(part(clips[2]))), "very well said"))
    batch = processor.batch(prompts)
    assert batch["audio_windows"].tolist() == [1, 2, 1]
    for row, prompt in enumerate(prompts):
        n = len(prompt.ids)
        assert batch["input_ids"][row, :n].tolist() == prompt.ids
        assert batch["labels"][row, :n].tolist() == prompt.labels
        assert batch["attention_mask"][row].tolist() == [1] * n + [0] * (batch["input_ids"].shape[1] - n)
        assert (batch["labels"][row, n:] == IGNORED).all()
    assert "labels" not in processor.batch([processor.transcription(clips[0])])
    assert set(processor.batch([processor.chat(user(text("hi")))])) == {"input_ids", "attention_mask"}

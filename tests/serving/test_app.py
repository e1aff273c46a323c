"""The API as the official client sees it."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import requests
from openai import OpenAI

from steermoe import Conversation
from steermoe.inference.ears import Ears
from steermoe.inference.subtitles import subtitles
from steermoe.inspection import words_of
from steermoe.serving.app import _heard
from steermoe.serving.engine import Refusal
from tests.conftest import speechlike
from tests.serving.conftest import wav

Clip = Callable[..., bytes]


def heard(content: bytes) -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(content).decode(), "format": "wav"}}


def user(*parts: Any) -> list[Any]:
    return [{"role": "user", "content": list(parts)}]


def words(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


SAID = base64.b64encode(wav(speechlike(0.3))).decode()
ACT = {
    "type": "function",
    "function": {
        "name": "act",
        "parameters": {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]},
    },
}


def test_a_transcript_in_every_format(ask: OpenAI, ears: Ears, clip: Clip) -> None:
    content = clip(2.0, 1)
    text = ears.transcribe(content)
    assert text
    send: Any = lambda **more: ask.audio.transcriptions.create(model="tiny", file=("a.wav", content), **more)  # noqa: E731
    assert send().text == text
    assert send(response_format="text") == f"{text}\n"
    told = send(response_format="verbose_json", timestamp_granularities=["segment"], language="en", temperature=0)
    assert (told.text, told.duration, told.language) == (text, 2.0, "en")
    assert " ".join(s.text for s in told.segments) == text and told.words is None
    assert all(0 <= s.start < s.end <= 2.0 for s in told.segments)
    (piece,) = ears.stream(content)
    words = send(response_format="verbose_json", timestamp_granularities=["word"])
    assert [(w.word, w.start) for w in words.words] == [(w.text.strip(), round(w.start, 3)) for w in piece.words]
    assert words.segments is None and len(words.words) == len(text.split())
    assert send(response_format="srt") == "\n".join(subtitles([piece], "srt"))
    assert send(response_format="vtt") == "\n".join(subtitles([piece], "vtt"))


def test_long_audio_has_segments_and_streams_them(ask: OpenAI, ears: Ears, clip: Clip) -> None:
    content = clip(35.0, 2)
    pieces = list(ears.stream(content))
    expected = [(s.start, s.end, s.text) for piece in pieces for s in piece.segments]
    told: Any = ask.audio.transcriptions.create(model="tiny", file=content, response_format="verbose_json")
    assert len(pieces) == 2 and [(s.start, s.end) for s in told.segments] == [
        (pytest.approx(start, abs=1e-3), pytest.approx(end, abs=1e-3)) for start, end, _ in expected
    ]
    *deltas, done = ask.audio.transcriptions.create(model="tiny", file=content, stream=True)
    assert [event.type for event in deltas] == ["transcript.text.delta"] * len([p for p in pieces if p.text])
    assert "".join(event.delta for event in deltas) == done.text == told.text == ears.transcribe(content)


def test_an_answer_to_what_was_heard(ask: OpenAI, ears: Ears, clip: Clip) -> None:
    messages = user(heard(clip(1.2, 1)), words("said the fox"))
    expected = Conversation(ears, messages).answer(max_new_tokens=12)
    answer = ask.chat.completions.create(model="tiny", messages=messages, max_tokens=12)
    choice = answer.choices[0]
    assert (choice.message.content, choice.finish_reason) == (expected.text, expected.finish_reason) and expected.text
    assert answer.usage and answer.usage.prompt_tokens == expected.usage.prompt_tokens
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens

    chunks = list(
        ask.chat.completions.create(
            model="tiny",
            messages=messages,
            max_completion_tokens=12,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == expected.text
    assert chunks[-1].usage == answer.usage and not chunks[-1].choices
    assert chunks[-2].choices[0].finish_reason == expected.finish_reason


def test_text_alone_stop_seed_and_turns(ask: OpenAI, ears: Ears) -> None:
    messages: list[Any] = [
        {"role": "developer", "content": "user system"},
        {"role": "user", "content": "very well"},
        {"role": "assistant", "content": [words("said")]},
        {"role": "user", "content": [words("quick"), words("brown")]},
    ]
    plain = [{**m, "role": "system"} if m["role"] == "developer" else m for m in messages]
    drawn: Any = {"temperature": 1.5, "top_p": 0.9, "seed": 7}
    expected = Conversation(ears, plain).answer(max_new_tokens=16, **drawn).text
    send: Any = lambda **more: (  # noqa: E731
        ask.chat.completions.create(model="tiny", messages=messages, max_tokens=16, **drawn, **more).choices[0]
    )
    assert send().message.content == expected and len(expected) > 4
    stop = expected[2:4]
    assert send(stop=[stop]).message.content == expected[: expected.find(stop)].rstrip()


@pytest.mark.parametrize("stream", [False, True])
def test_calls_and_their_results(ask: OpenAI, clip: Clip, stream: bool) -> None:
    messages = user(heard(clip(0.8, 3)))
    more: Any = {"tools": [ACT], "tool_choice": {"type": "function", "function": {"name": "act"}}, "stream": stream}
    answer: Any = ask.chat.completions.create(model="tiny", messages=messages, **more)
    if stream:
        chunks = list(answer)
        calls = [call for c in chunks for call in c.choices[0].delta.tool_calls or ()]
        assert chunks[-1].choices[0].finish_reason == "tool_calls"
    else:
        calls = answer.choices[0].message.tool_calls
        assert answer.choices[0].finish_reason == "tool_calls"
    assert calls[0].function.name == "act" and set(json.loads(calls[0].function.arguments)) == {"on"}
    turn = {"id": calls[0].id, "type": "function"}
    turn |= {"function": {"name": "act", "arguments": calls[0].function.arguments}}
    result: Any = {"role": "tool", "tool_call_id": calls[0].id, "content": [words("done")]}
    messages += [{"role": "assistant", "content": None, "tool_calls": [turn]}, result]
    said = ask.chat.completions.create(model="tiny", messages=messages, tools=[ACT], tool_choice="none", max_tokens=4)
    assert said.choices[0].finish_reason in ("stop", "length")


def test_json_that_fits_its_schema(ask: OpenAI) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    answer = ask.chat.completions.create(model="tiny", messages=user(words("well")), response_format=wanted)
    assert json.loads(answer.choices[0].message.content or "")["n"] in (1, 2)


def test_what_was_heard(url: str, ears: Ears, clip: Clip) -> None:
    """The gates of an arrangement of the page: thinned, in whole numbers, those of the model."""
    content = clip(6.0, 5)
    told = requests.post(f"{url}/v1/steermoe/inspect", data={"model": "tiny"}, files={"file": content}).json()
    assert told["seconds"] == 6.0 and [layer["layer"] for layer in told["layers"]] == [1, 2]
    for layer in told["layers"]:
        gates = (np.array(layer["gates"]) / 255) ** 2 * told["largest"]
        assert gates.shape == (240, ears.config.num_experts) and np.abs(gates.sum(1) - 1).max() < 0.05
    mel = np.array(told["mel"])
    assert mel.shape == (240, 80) and 0 <= mel.min() < 60 and 100 < mel.max() <= 255
    assert [word for _, _, word in told["words"]] == [word for _, _, word in words_of(ears, speechlike(6.0, 5))]
    for wrong in (
        {"data": {"model": "other"}, "files": {"file": content}},
        {"data": {"model": "tiny"}, "files": {"file": b"x"}},
    ):
        assert requests.post(f"{url}/v1/steermoe/inspect", **wrong).status_code in (400, 404)


def test_models(ask: OpenAI, url: str) -> None:
    assert [model.id for model in ask.models.list()] == ["tiny"] and ask.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError) as refused:
        ask.models.retrieve("whisper-1")
    assert refused.value.code == "model_not_found"
    assert requests.get(f"{url}/health").status_code == requests.get(f"{url}/ready").status_code == 200


AUDIO = base64.b64encode(wav(speechlike(0.5))).decode()
LINK = {"type": "input_audio", "input_audio": {"data": "http://127.0.0.1/a.wav", "format": "wav"}}


@pytest.mark.parametrize(
    "part",
    [
        {"type": "audio", "path": "/etc/hostname"},
        {"type": "audio", "audio": "/etc/hostname"},
        {"type": "input_audio", "path": "/etc/hostname", "input_audio": {"data": AUDIO}},
        {"type": "input_audio", "input_audio": {"path": "/etc/hostname"}},
        {"type": "input_audio", "input_audio": {"data": AUDIO, "url": "http://127.0.0.1/a.wav"}},
        {"type": "input_audio", "input_audio": {"data": "/etc/hostname"}},
        {"type": "input_audio", "input_audio": {"data": ""}},
        {"type": "image_url", "image_url": {"url": "http://127.0.0.1/a.png"}},
        LINK,
    ],
)
def test_no_path_and_no_address_is_read(
    ask: OpenAI, part: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from steermoe import audio

    def never(*_: Any) -> None:
        raise AssertionError("a path was looked at")

    monkeypatch.setattr(audio, "_check_file", never)
    (tmp_path / "a.wav").write_bytes(wav(speechlike(0.5)))  # both are there, and could be heard
    reached: list[str] = []

    class Serves(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            reached.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write((tmp_path / "a.wav").read_bytes())

    with ThreadingHTTPServer(("127.0.0.1", 0), Serves) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        text = json.dumps(part).replace("/etc/hostname", str(tmp_path / "a.wav"))
        text = text.replace("http://127.0.0.1/", f"http://127.0.0.1:{server.server_port}/")
        with pytest.raises(openai.BadRequestError) as refused:
            ask.chat.completions.create(model="tiny", messages=user(json.loads(text)))
        server.shutdown()
    assert refused.value.type == "invalid_request_error" and not reached


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"n": 2}, "n:"),
        ({"logprobs": True}, "logprobs"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"function_call": {"name": "f"}}, "function_call"),
        (
            {"messages": [{"role": "tool", "content": [{"type": "input_audio", "input_audio": {"data": SAID}}]}]},
            "a tool's result",
        ),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"required": True}}}}, "'required'"),
        ({"temperature": -1}, "temperature"),
        ({"tool_choice": "required"}, "no such tool"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "name 'a b'"),
        ({"tools": [ACT], "tool_choice": "required", "response_format": {"type": "json_object"}}, "one answer"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": {"a": 1}}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "very " * 3000}]}, "longer than the LLM takes"),
    ],
)
def test_what_is_wrong_with_a_chat_is_said(ask: OpenAI, more: Any, says: str) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match=says):
            ask.chat.completions.create(
                **{"model": "tiny", "messages": user(words("well")), "stream": stream, "max_tokens": 4, **more}
            )


def test_half_a_character_is_refused(url: str) -> None:
    """A lone surrogate is JSON, but no text: neither a tokenizer nor an answer can hold it."""
    half, call = "\ud800", {"name": "act", "description": "\ud800"}
    for broken in (
        {"messages": user(words(half))},
        {"messages": user({"type": "input_audio", half: 1})},
        {"messages": user({"type": half})},
        {"tools": [{"type": "function", "function": call}]},
        {"stop": half},
        {"model": half},
    ):
        body = json.dumps({"model": "tiny", "messages": user(words("well")), "max_tokens": 2, **broken})
        answer = requests.post(f"{url}/v1/chat/completions", data=body, headers={"content-type": "application/json"})
        assert answer.status_code == 400 and answer.json()["error"]["message"], broken


def test_a_chat_is_sent_as_json(url: str) -> None:
    body = json.dumps({"model": "tiny", "messages": user(words("well")), "max_tokens": 2})
    for kind, status in {"text/plain": 400, "application/x-www-form-urlencoded": 400, "application/json": 200}.items():
        answer = requests.post(f"{url}/v1/chat/completions", data=body, headers={"content-type": kind})
        assert answer.status_code == status, kind
    assert "application/json" in requests.post(f"{url}/v1/chat/completions", data=body).json()["error"]["message"]


def test_what_is_wrong_with_a_clip_is_said(ask: OpenAI, url: str, clip: Clip) -> None:
    content = clip(1.0)
    for file, more, says in [
        (b"no audio at all", {}, "not audio"),
        (b"", {}, "0 bytes"),
        (content[: len(content) // 2], {}, "truncated"),
        (clip(81.0), {}, "more than the limit of 80 s; split it"),
        (content, {"temperature": 0.5}, "temperature"),
        (content, {"response_format": "diarized_json"}, "response_format"),
        (content, {"stream": True, "response_format": "srt"}, "stream"),
        (content, {"timestamp_granularities": ["letter"]}, "timestamp_granularities"),
    ]:
        with pytest.raises(openai.BadRequestError, match=says):
            ask.audio.transcriptions.create(**{"model": "tiny", "file": ("a.wav", file), **more})
    with pytest.raises(openai.NotFoundError):
        ask.audio.transcriptions.create(model="other", file=content)
    path = f"{url}/v1/audio/transcriptions"
    for sent in (
        {"data": {"model": "tiny", "file": "/etc/hostname"}},
        {"json": {"model": "tiny", "file": "http://127.0.0.1/a.wav"}},
        {"files": {"file": content}},
        {"files": {"model": (None, "tiny"), "file": (None, "/etc/hostname")}},
        {"data": b"--x\r\nbroken", "headers": {"content-type": "multipart/form-data; boundary=x"}},
        {"data": b"", "headers": {"content-type": "multipart/form-data"}},
    ):
        answer = requests.post(path, **sent)
        assert answer.status_code == 400 and answer.json()["error"]["message"], sent


def test_what_is_too_large(ask: OpenAI, url: str, clip: Clip) -> None:
    large = b"x" * 3_000_001
    with pytest.raises(openai.APIStatusError) as refused:
        ask.audio.transcriptions.create(model="tiny", file=large)
    assert refused.value.status_code == 413 and refused.value.code == "too_large"
    for path in ("audio/transcriptions", "chat/completions"):  # in chunks, its size is found out on the way

        def chunks(form: bool = "audio" in path) -> Any:
            yield b'--x\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n' if form else b" "
            for _ in range(30):
                yield b" " * 100_000

        kind = "multipart/form-data; boundary=x" if "audio" in path else "application/json"
        answer = requests.post(f"{url}/v1/{path}", data=chunks(), headers={"content-type": kind})
        assert answer.status_code == 413, path


def test_a_conversation_in_the_queue_holds_encoded_audio_and_has_one_limit(clip: Clip) -> None:
    def told(*clips: bytes) -> Any:
        parts = [{"type": "input_audio", "input_audio": {"data": base64.b64encode(c).decode()}} for c in clips]
        return _heard([{"role": "user", "content": parts}], 2.0)

    one = clip(1.2)
    assert told(one) == [{"role": "user", "content": [{"type": "audio", "bytes": one}]}]
    with pytest.raises(Refusal, match=r"2 s of audio in one conversation, 2 s are the most"):
        told(one, one)

"""A stub server on this machine that knows two paths of the OpenAI API: what it is sent, and what it may do wrong."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from steermoe.data import Example
from steermoe.errors import SteerMoEError, UsageError
from steermoe.evaluation import endpoint
from steermoe.evaluation.endpoint import Endpoint
from steermoe.evaluation.suites import Options, suite


class Stub(BaseHTTPRequestHandler):
    """Transcribes by length; answers with what was asked, and the clip's length. Fails as ``server.broken`` says."""

    server: Any

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/v1/audio/transcriptions":
            head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
            fields = {
                part.get_param("name", header="content-disposition"): part.get_payload(decode=True)
                for part in message_from_bytes(head + body).get_payload()
            }
            samples, rate = soundfile.read(io.BytesIO(fields["file"]))
            assert (rate, fields["model"]) == (16_000, b"m")
            answer: Any = {"text": f" word {len(samples)} "}
        else:
            asked = json.loads(body)
            assert asked["temperature"] == 0 and asked["model"] == "m"
            parts = asked["messages"][0]["content"]
            parts = [{"type": "text", "text": parts}] if isinstance(parts, str) else parts
            told = []
            for part in parts:
                if part["type"] == "input_audio":
                    samples, _ = soundfile.read(io.BytesIO(base64.b64decode(part["input_audio"]["data"])))
                    told.append(str(len(samples)))
                else:
                    told.append(part["text"])
            answer = {"choices": [{"message": {"role": "assistant", "content": " ".join(told)}}]}
        self.server.seen.append((self.path, self.headers.get("Authorization")))
        status, text = 200, json.dumps(answer)
        if self.server.broken and (problem := self.server.broken.pop(0)):
            status, text = problem
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(endpoint.time, "sleep", lambda _: None)
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    stub: Any = ThreadingHTTPServer(("127.0.0.1", 0), Stub)
    stub.seen, stub.broken = [], []
    threading.Thread(target=stub.serve_forever, daemon=True).start()
    stub.url = f"http://127.0.0.1:{stub.server_port}/v1"
    yield stub
    stub.shutdown()
    stub.server_close()


@pytest.fixture
def clips(tmp_path: Path) -> list[Example]:
    found = []
    for i in range(3):
        soundfile.write(tmp_path / f"{i}.wav", np.full(1_600 + i, 0.1), 16_000)
        found.append(Example(f"c{i}", tmp_path / f"{i}.wav", f"word {1_600 + i}", prompt="say"))
    return found


def test_asr_and_questions_over_http(server: Any, clips: list[Example]) -> None:
    who = Endpoint(server.url + "/", "m", parallel=2)
    result = suite("asr")(who, Options(clips, "mine", batch_size=2))
    assert result["metrics"]["wer"] == 0 and result["n"] == 3
    assert result["adapter"] == f"m at {server.url}" and result["provenance"]["endpoint"] == server.url
    assert server.seen == [("/v1/audio/transcriptions", "Bearer key")] * 3
    assert who.answer(["say", "", "say"], [np.zeros(5), np.zeros(7), None]) == ["5 say", "7", "say"]
    result = suite("gap")(who, Options(clips, "mine"))
    assert result["n"] == 3 and result["metrics"]["accuracy"] == 0
    assert suite("aqa")(who, Options(clips, "mine"))["n"] == 3


def test_a_server_that_stumbles_is_asked_again_and_one_that_is_broken_ends_it(
    server: Any, clips: list[Example]
) -> None:
    who = Endpoint(server.url, "m", parallel=1)
    server.broken = [(503, "busy"), (429, "slow down")]
    assert suite("asr")(who, Options(clips, "mine"))["metrics"]["wer"] == 0
    server.broken = [(500, "no <b>luck</b>")] * 3
    with pytest.raises(SteerMoEError, match=r"audio/transcriptions: 500 no <b>luck"):
        suite("asr")(who, Options(clips, "mine"))
    for problem, words in (
        ((401, "who are you?"), "401 who"),
        ((200, "{}"), "has no text"),
        ((200, "<html>"), "no JSON"),
    ):
        server.broken = [problem] * 3
        with pytest.raises(SteerMoEError, match=words):
            suite("asr")(who, Options(clips, "mine"))


def test_a_clip_that_the_server_refuses_is_listed(server: Any, clips: list[Example]) -> None:
    who = Endpoint(server.url, "m", parallel=1)
    server.broken = [None, (400, "short"), None, None, (400, "too short")]  # of the batch, then of its clips
    result = suite("asr")(who, Options(clips, "mine"))
    assert result["n"] == 2 and [item["id"] for item in result["undecodable"]] == ["c1"]
    assert "400 too short" in result["undecodable"][0]["error"]


def test_what_is_no_server_is_said() -> None:
    with pytest.raises(UsageError, match="--endpoint localhost"):
        Endpoint("localhost:8000", "m")
    with pytest.raises(SteerMoEError, match="cannot be reached"):
        Endpoint("http://127.0.0.1:9/v1", "m").transcribe([np.zeros(10, np.float32)])
    with pytest.raises(UsageError, match="--heard"):
        Endpoint("http://x/v1", "m").hear([])

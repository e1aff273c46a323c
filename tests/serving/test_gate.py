"""Operations: keys, request numbers, logs without content, metrics, the process."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
import requests

from steermoe.errors import UsageError
from steermoe.inference.ears import Ears
from steermoe.serving.gate import Lines, Rate, Settings
from steermoe.serving.run import read_keys
from tests.serving.conftest import client, local, running

Clip = Callable[..., bytes]


def test_keys(ears: Ears, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("first-key\nsecond-key\n")
    keys = read_keys({"STEERMOE_API_KEYS_FILE": str(tmp_path / "keys"), "STEERMOE_API_KEYS": "third-key"})
    assert hashlib.sha256(b"second-key").digest() in keys and len(keys) == 3
    assert read_keys({}) == ()
    for environ in (
        {"STEERMOE_API_KEYS": " , "},
        {"STEERMOE_API_KEYS": ""},
        {"STEERMOE_API_KEYS_FILE": str(tmp_path / "none")},
    ):
        with pytest.raises(UsageError, match="STEERMOE_API_KEYS"):
            read_keys(environ)
    engine = local(ears)
    with running(engine, Settings(keys)) as url:
        engine.loaded.result(timeout=30)
        assert client(url, "third-key").models.list().data
        for key in ("fourth-key", "third-ke", "", "ключ"):
            answer = requests.get(f"{url}/v1/models", headers={"Authorization": f"Bearer {key}".encode()})
            assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
        with pytest.raises(openai.AuthenticationError):
            client(url, "first").audio.transcriptions.create(model="tiny", file=b"x" * 100)
        for path, status in {"/metrics": 401, "/openapi.json": 401, "/health": 200, "/ready": 200}.items():
            assert requests.get(url + path).status_code == status


def test_each_key_has_its_rate(ears: Ears) -> None:
    keys = read_keys({"STEERMOE_API_KEYS": "first second"})
    engine = local(ears)
    with running(engine, Settings(keys, rate=3)) as url:
        engine.loaded.result(timeout=30)
        for key in ("first", "second"):
            for _ in range(3):
                with pytest.raises(openai.NotFoundError):
                    client(url, key).chat.completions.create(model="other", messages=[{"role": "user", "content": "a"}])
            with pytest.raises(openai.RateLimitError) as refused:
                client(url, key).chat.completions.create(model="other", messages=[{"role": "user", "content": "a"}])
            assert refused.value.code == "rate_limit_exceeded"
            assert 1 <= int(refused.value.response.headers["retry-after"]) <= 20
            assert client(url, key).models.list().data  # what costs nothing is not counted


def test_a_rate_fills_evenly() -> None:
    rate = Rate(6)
    assert [rate.wait("a", 100.0) for _ in range(6)] == [0.0] * 6 and rate.wait("a", 100.0) == pytest.approx(10.0)
    assert rate.wait("b", 100.0) == 0.0 and rate.wait("a", 110.0) == 0.0 and rate.wait("a", 115.0) == pytest.approx(5.0)
    for i in range(25_000):
        rate.wait(i, 200.0 + i)
    assert len(rate._due) <= 10_001  # those who sent long ago are forgotten


def test_logs_hold_no_content(url: str, clip: Clip, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "steermoe.serving")
    ask = client(url)
    secret: Any = [{"role": "user", "content": "geheim"}]
    answer = ask.chat.completions.with_raw_response.create(
        model="tiny", messages=secret, max_tokens=4, extra_headers={"X-Request-ID": "mine-1"}
    )
    assert answer.headers["x-request-id"] == "mine-1" and answer.parse().id == "chatcmpl-mine-1"
    heard = ask.audio.transcriptions.create(model="tiny", file=("geheim.wav", clip(1.0))).text
    with pytest.raises(openai.NotFoundError):
        ask.chat.completions.create(model="geheim", messages=secret)
    with pytest.raises(openai.BadRequestError):
        ask.chat.completions.create(model="tiny", messages=secret, response_format={"type": "geheim"})  # type: ignore
    requests.get(f"{url}/geheim?geheim=1", headers={"X-Request-ID": "geheim geheim"})
    # The line is written after the last byte of the answer: one more request, so that all are there.
    requests.get(f"{url}/v1/models/tiny")
    lines = [json.loads(Lines().format(record)) for record in caplog.records if record.name == "steermoe.serving"]
    written = answer.parse().choices[0].message.content
    assert heard and written
    for text in ("geheim", heard, written):
        assert not [line for line in lines if json.dumps(text)[1:-1] in json.dumps(line)] and text not in caplog.text
    known = {"time", "level", "event", "request_id", "method", "path", "status", "seconds", "model", "audio_seconds",
             "prompt_tokens", "completion_tokens"}  # fmt: skip
    assert set().union(*lines) <= known  # what else a line told might be content
    seen = [(line["path"], line["status"]) for line in lines]
    assert seen[:5] == [
        ("/v1/chat/completions", 200),
        ("/v1/audio/transcriptions", 200),
        ("/v1/chat/completions", 404),
        ("/v1/chat/completions", 400),
        ("other", 404),
    ]
    assert lines[0]["request_id"] == "mine-1" and lines[0]["completion_tokens"] > 0 and lines[0]["model"] == "tiny"
    assert lines[1]["audio_seconds"] == 1.0 and re.fullmatch("[0-9a-f]{32}", lines[4]["request_id"])


def test_what_breaks_is_logged_by_kind_and_place(
    ears: Ears, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise KeyError("geheim")

    monkeypatch.setattr("steermoe.serving.local.Conversation", broken)
    engine = local(ears)
    with running(engine) as url:
        engine.loaded.result(timeout=30)
        for stream in (False, True):
            with pytest.raises(openai.InternalServerError) as refused:
                client(url).chat.completions.create(
                    model="tiny", messages=[{"role": "user", "content": "well"}], stream=stream
                )
            assert "geheim" not in str(refused.value) and refused.value.request_id in str(refused.value)
        assert client(url).models.list().data  # it is still up
    lines = [json.loads(Lines().format(record)) for record in caplog.records if record.levelno == logging.ERROR]
    assert [line["error"] for line in lines] == ["KeyError"] * 2 and "local.py" in lines[0]["at"][-2]
    assert "geheim" not in caplog.text


def test_metrics(url: str, clip: Clip) -> None:
    def read(name: str) -> float:
        text = requests.get(f"{url}/metrics").text
        return float(next((line.split()[-1] for line in text.splitlines() if line.startswith(name)), 0))

    taken = 'steermoe_audio_seconds_total{model="tiny"}'
    counted = 'steermoe_requests_total{path="/v1/audio/transcriptions",status="200"}'
    before = read(taken), read(counted)
    client(url).audio.transcriptions.create(model="tiny", file=clip(1.5))
    assert (read(taken), read(counted)) == (before[0] + 1.5, before[1] + 1)
    assert read("steermoe_waiting") == 0
    assert client(url).chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "well"}], max_tokens=3
    )
    assert read('steermoe_tokens_total{kind="completion",model="tiny"}') >= 1


def test_other_sites_and_unknown_paths(url: str) -> None:
    foreign = {"Origin": "http://elsewhere.example", "Access-Control-Request-Method": "POST"}
    answer = requests.options(f"{url}/v1/models", headers=foreign)
    assert answer.status_code == 405 and not [name for name in answer.headers if name.lower().startswith("access-")]
    for path, status in {"/v1/nothing": 404, "/docs": 404, "/redoc": 404}.items():
        answer = requests.get(url + path)
        assert answer.status_code == status and answer.json()["error"]["type"] == "invalid_request_error"
    assert "multipart/form-data" in json.dumps(requests.get(f"{url}/openapi.json").json())


def test_the_command(make: Callable[..., Ears], tmp_path: Path, clip: Clip) -> None:
    """From its start to SIGTERM during a request, which is still answered."""
    make(seed=1).model.save_adapter(tmp_path / "mine")
    command = [sys.executable, "-m", "steermoe", "serve", "--adapter", str(tmp_path / "mine"), "--port"]
    environ = {**os.environ, "STEERMOE_API_KEYS": "a-key"}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        told = subprocess.run([*command, str(taken.getsockname()[1])], env=environ, capture_output=True, text=True)
    assert told.returncode == 2 and re.fullmatch(r"error: cannot listen on .*\n", told.stderr)
    limits = ["--max-mib", "1", "--rate", "1", "--timeout", "600", "--max-seconds", "60"]
    with subprocess.Popen([*command, "0", *limits], env=environ, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        begun = json.loads(process.stderr.readline())
        assert begun["event"] == "serving" and begun["models"] == ["mine"]
        assert json.loads(process.stderr.readline())["event"] == "ready"
        ask = client(begun["url"], "a-key")
        with pytest.raises(openai.APIStatusError) as refused:
            ask.audio.transcriptions.create(model="mine", file=bytes(1 << 20))
        assert refused.value.status_code == 413 and json.loads(process.stderr.readline())["status"] == 413
        with ask.chat.completions.create(
            model="mine", messages=[{"role": "user", "content": "very well"}], max_tokens=60, temperature=2, stream=True
        ) as answer:
            first = next(iter(answer))
            with pytest.raises(openai.RateLimitError):
                ask.chat.completions.create(model="mine", messages=[{"role": "user", "content": "well"}])
            process.send_signal(signal.SIGTERM)
            chunks = [first, *answer]
        assert chunks[-1].choices[0].finish_reason in ("stop", "length")
        lines = [json.loads(process.stderr.readline()) for _ in range(2)]
        assert {(line["event"], line["status"]) for line in lines} == {("request", 200), ("request", 429)}
        assert "a-key" not in str(lines)
        assert process.wait(timeout=30) in (0, -signal.SIGTERM)


def test_a_broken_adapter_ends_the_command(make: Callable[..., Ears], tmp_path: Path) -> None:
    make(seed=1).model.save_adapter(tmp_path / "mine")
    (tmp_path / "mine" / "adapter_model.safetensors").write_bytes(b"broken")
    command = [sys.executable, "-m", "steermoe", "serve", "--adapter", str(tmp_path / "mine"), "--port", "0"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert told.returncode == 1 and told.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in told.stderr

"""What the server makes of those who mean it ill, or whose line breaks: 4xx or 503, never 500, and the others notice nothing.

STEERMOE_FUZZ requests are made by the slow tests, 10,000 if it is not set.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import logging
import os
import random
import socket
import struct
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import requests
import schemathesis
import soundfile
from hypothesis import HealthCheck, Phase, given, settings

from steermoe import Conversation
from steermoe.inference.ears import Ears
from steermoe.serving.gate import Settings
from tests.conftest import speechlike
from tests.serving.conftest import client, local, running, wav

MANY = int(os.environ.get("STEERMOE_FUZZ", "10000"))
MOST = 200_000  # bytes of a request
CLIP = wav(speechlike(1.0, 1))
AUDIO = base64.b64encode(CLIP).decode()
SAID: list[Any] = [{"role": "user", "content": "very well"}]
FORM = {"model": b"tiny", "file": CLIP}
CHAT: dict[str, Any] = {
    "model": "tiny",
    "max_tokens": 3,
    "messages": [
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": AUDIO, "format": "wav"}}]}
    ],
}


def encoded(samples: np.ndarray, rate: int = 16_000, **how: str) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, **how)
    return buffer.getvalue()


def floats(value: float) -> bytes:
    """A clip of which one sample is ``value``."""
    samples = speechlike(1.0, 2)
    samples[7000] = value
    return encoded(samples, format="WAV", subtype="FLOAT")


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("clip.wav", bytes(20_000_000))
    return buffer.getvalue()


def lying(rate: int = 16_000, channels: int = 1, bits: int = 16, said: int = 32_000, kind: int = 1) -> bytes:
    """A WAV whose header says something else than is there."""
    align = channels * bits // 8 % 65536
    head = struct.pack("<HHIIHH", kind, channels, rate, rate * align % 2**32, align, bits)
    return b"".join([b"RIFF", struct.pack("<I", (said + 36) % 2**32), b"WAVEfmt ", struct.pack("<I", 16), head, b"data",
                     struct.pack("<I", said), CLIP[44:]])  # fmt: skip


CLIPS = {
    "NaN": floats(float("nan")),
    "infinite": floats(float("inf")),
    "far too loud": floats(3e38),
    "zip": zipped(),
    "an hour of silence": encoded(np.zeros(3600 * 16_000, np.float32), format="FLAC"),
    "FLAC": encoded(speechlike(0.5), format="FLAC"),
    "MP3": encoded(speechlike(0.5), format="MP3"),
    "Ogg": encoded(speechlike(0.5), format="OGG", subtype="VORBIS"),
    "no samples": encoded(np.zeros(0, np.float32), format="WAV"),
    "one sample": encoded(np.zeros(1, np.float32), format="WAV"),
    "huge rate": lying(rate=2**31),
    "no rate": lying(rate=0),
    "highest rate": lying(rate=768_000),
    "no channels": lying(channels=0),
    "many channels": lying(channels=65_535),
    "no bits": lying(bits=0),
    "longer than it is": lying(said=2**31 - 1),
    "endless": lying(said=2**32 - 1),
    "A-law": lying(kind=6, bits=8),
    "unknown kind": lying(kind=0xFFFE),
}


def form(fields: dict[str, bytes], boundary: str = "edge") -> bytes:
    parts = [
        f'--{boundary}\r\ncontent-disposition: form-data; name="{name}"{"; filename=a" * (name == "file")}\r\n\r\n'.encode()
        + value
        + b"\r\n"
        for name, value in fields.items()
    ]
    return b"".join([*parts, f"--{boundary}--\r\n".encode()])


def request(path: str, body: bytes, kind: str, **headers: str) -> bytes:
    told = {"Host": "x", "Content-Type": kind, "Content-Length": str(len(body)), "Connection": "close", **headers}
    lines = [f"POST /v1/{path} HTTP/1.1", *(f"{name.replace('_', '-')}: {value}" for name, value in told.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def upload(body: bytes, **headers: str) -> bytes:
    return request("audio/transcriptions", body, "multipart/form-data; boundary=edge", **headers)


def asked(body: bytes | dict[str, Any], **headers: str) -> bytes:
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    return request("chat/completions", body, "application/json", **headers)


def mangled(chance: random.Random, data: bytes) -> bytes:
    at, to = sorted(chance.randrange(len(data) + 1) for _ in range(2))
    some = chance.randbytes(chance.randrange(1, 40))
    return chance.choice(
        [
            data[:at],
            data[:at] + data[to:],
            data[:to] + data[at:],
            data[:at] + some + data[at:],
            data[:at] + some + data[at + len(some) :],
            data[:at] + bytes(len(some)) + data[at + len(some) :],
            data.replace(
                chance.choice([b"\r\n", b":", b"edge", b'"', b"{", b"form-data"]), chance.choice([some, b""]), 1
            ),
        ]
    )


def hostile(chance: random.Random) -> tuple[str, bytes]:
    """A request, and its kind."""
    name, clip = chance.choice(list(CLIPS.items()))
    fields = {**FORM, "file": clip}
    heard = {"type": "input_audio", "input_audio": {"data": base64.b64encode(clip).decode()}}
    deep, wide = chance.choice(["[", '{"a":', '{"messages":[']) * 9_000, "9" * chance.choice([30, 400, 5000])
    odd: Any = chance.choice([None, [], {}, -1, 1e308, 2**70, "\x00", "\ud800", "x" * 5000, [[]], {"a": [1]}, True])
    where = chance.choice(["model", "messages", "tools", "tool_choice", "response_format", "stop", "seed", "temperature",
                           "max_tokens", "stream", "stream_options", "top_p", "n"])  # fmt: skip
    return chance.choice(
        [
            (f"clip: {name}", upload(form(fields))),
            (f"clip in a chat: {name}", asked({**CHAT, "messages": [{"role": "user", "content": [heard]}]})),
            ("clip, mangled", upload(form({**fields, "file": mangled(chance, clip)}))),
            ("form, mangled", upload(mangled(chance, form(FORM)))),
            ("JSON, mangled", asked(mangled(chance, json.dumps(CHAT).encode()))),
            ("request, mangled", mangled(chance, upload(form(FORM)))),
            ("head, mangled", mangled(chance, asked(CHAT)[:180]) + asked(CHAT)[180:]),
            ("deep", asked(deep.encode())),
            ("a long number", asked(f'{{"model": "tiny", "messages": [], "seed": {wide}}}'.encode())),
            ("an odd value", asked({**CHAT, where: odd})),
            ("compressed", asked(gzip.compress(json.dumps(CHAT).encode()), Content_Encoding="gzip")),
            ("too large", upload(form({**FORM, "file": bytes(MOST)}))),
            ("too large, it says", upload(b"x", Content_Length=str(chance.choice([MOST + 1, 2**63, 10**30])))),
            ("a length below zero", upload(b"x", Content_Length="-5")),
            ("many fields", upload(form({f"f{i}": b"x" for i in range(40)}))),
            ("a long head", upload(form(FORM), X_Long="x" * chance.choice([1000, 70_000, 300_000]))),
            ("no boundary", request("audio/transcriptions", form(FORM), "multipart/form-data")),
            ("another path", request(chance.choice(["", "models", "x/%00/../..", "models/%ff"]), b"", "text/plain")),
        ]
    )


def exchange(
    url: str, raw: bytes, stop: int | None = None, slowly: float = 0.0, rude: bool = False, patience: float = 60.0
) -> int | None:
    """The status that is answered to ``raw``, of which ``stop`` bytes are sent; None where there is none within ``patience``
    (seconds), after which no more is sent."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as line:
        if rude:  # a reset, not a farewell
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        try:
            line.sendall(raw[:stop])
            if stop is not None:
                time.sleep(slowly)
                return None
            line.settimeout(patience)
            try:
                head = line.recv(64)
            except TimeoutError:
                line.shutdown(socket.SHUT_WR)
                head = line.recv(64)
        except OSError:  # answered and closed before all was sent
            return None
    return int(head.split()[1]) if head.startswith(b"HTTP/1.1 ") else None


@pytest.fixture(scope="module")
def besieged(ears: Ears) -> Iterator[str]:
    engine = local(ears)
    with running(engine, Settings(max_bytes=MOST, max_seconds=20.0, patience=0.7)) as url:
        engine.loaded.result(timeout=60)
        yield url


@pytest.fixture
def broken(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """What the server logs as its own fault."""
    found: list[str] = []

    class Faults(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            fields = getattr(record, "fields", {})
            if fields.get("status", 500) not in (503, 499):
                found.append(f"{record.getMessage()} {fields} {record.exc_info}")

    handler = Faults(logging.ERROR)
    loggers = [logging.getLogger(name) for name in ("steermoe.serving", "uvicorn.error", "asyncio")]
    for logger in loggers:
        logger.addHandler(handler)
    yield found
    for logger in loggers:
        logger.removeHandler(handler)


def besiege(url: str, ears: Ears, count: int) -> Counter[Any]:
    """``count`` hostile requests, some broken off, from eight sides, while right requests get the answers they get alone."""
    heard, said = ears.transcribe(CLIP), Conversation(ears, SAID).answer(max_new_tokens=8).text
    seen, wrong, done = Counter[Any](), list[Any](), threading.Event()

    def attack(number: int) -> None:
        chance = random.Random(number)
        kind, raw = hostile(chance)
        stop = chance.randrange(len(raw) + 1) if chance.random() < 0.2 else None
        patience = 1.0 if "mangled" in kind else 60.0  # for the rest of what is never sent
        status = exchange(url, raw, stop, chance.choice([0.0, 0.0, 0.05, 0.3]), chance.random() < 0.5, patience)
        if status is not None and status >= 500 and status != 503:
            wrong.append((number, kind, status))
        seen[status] += 1
        seen[kind.partition(":")[0]] += 1

    def ask_on() -> int:
        ask, times = client(url, max_retries=50), 0
        while not done.is_set():
            assert ask.audio.transcriptions.create(model="tiny", file=("a.wav", CLIP)).text == heard
            answer = ask.chat.completions.create(model="tiny", messages=SAID, max_tokens=8)
            assert answer.choices[0].message.content == said
            times += 1
        return times

    with ThreadPoolExecutor(9) as pool:
        asking = pool.submit(ask_on)
        try:
            list(pool.map(attack, range(count)))
        finally:
            done.set()
        seen["answered meanwhile"] = asking.result()
    assert wrong == []
    return seen


def test_hostile_requests(besieged: str, ears: Ears, broken: list[str]) -> None:
    seen = besiege(besieged, ears, 90)
    assert seen[400] > 20 and seen[200] > 2 and seen["answered meanwhile"] > 0 and broken == []


@pytest.mark.slow
def test_many_hostile_requests(besieged: str, ears: Ears, broken: list[str]) -> None:
    seen = besiege(besieged, ears, MANY)
    print(seen)
    assert seen[400] > MANY // 4 and seen[200] > MANY // 50 and broken == []


def test_samples_that_are_no_numbers_disturb_no_batch(besieged: str, ears: Ears) -> None:
    """Hostile and right clips at once, so that they wait for the same batch."""
    clips = [wav(speechlike(0.8 + 0.1 * i, i)) for i in range(4)]
    sent = [clip for one in clips for clip in (one, CLIPS["NaN"], CLIPS["infinite"], CLIPS["far too loud"])]

    def send(clip: bytes) -> Any:
        answer = requests.post(f"{besieged}/v1/audio/transcriptions", data={"model": "tiny"}, files={"file": clip})
        return answer.status_code, answer.json().get("text")

    with ThreadPoolExecutor(16) as pool:
        told = list(pool.map(send, sent))
    assert told[::4] == [(200, ears.transcribe(clip)) for clip in clips]
    assert {status for status, _ in told[1::4] + told[2::4]} == {400}
    assert {status for status, _ in told[3::4]} <= {200, 400}


def test_slow_senders_hold_up_nobody(besieged: str, ears: Ears) -> None:
    raw = upload(form(FORM))
    host, port = besieged.removeprefix("http://").split(":")
    lines = [socket.create_connection((host, int(port)), timeout=30) for _ in range(40)]
    try:
        for i, line in enumerate(lines):
            line.sendall(raw[: 20 + 5 * i])  # some within the head, some within the body
        assert client(besieged).audio.transcriptions.create(model="tiny", file=CLIP).text == ears.transcribe(CLIP)
        assert lines[-1].recv(64).startswith(b"HTTP/1.1 408")
    finally:
        for line in lines:
            line.close()


FITTING, UNFITTING = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE
POSTS = ("/v1/chat/completions", "/v1/audio/transcriptions", "/v1/steermoe/inspect")
OPERATIONS = [(path, "POST", mode) for path in POSTS for mode in (FITTING, UNFITTING)]
OPERATIONS += [("/v1/models/{name}", "GET", FITTING)]


def by_the_schema(url: str, count: int) -> Counter[int]:
    """Requests that fit the server's own OpenAPI schema, and some that do not quite."""
    schema, seen = schemathesis.openapi.from_url(f"{url}/openapi.json"), Counter[int]()

    def ask(case: schemathesis.Case) -> None:
        if isinstance(case.body, dict) and "model" in case.body:
            case.body.update(model="tiny")  # or it would be refused for its name alone
        answer = case.call(timeout=60)
        assert answer.status_code < 500 or answer.status_code == 503, answer.text
        seen[answer.status_code] += 1

    for path, method, mode in OPERATIONS:
        strategy = schema[path][method].as_strategy(generation_mode=mode)
        settings(
            max_examples=max(1, count // len(OPERATIONS)),
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )(given(strategy)(ask))()
    return seen


def test_requests_made_from_the_schema(besieged: str, broken: list[str]) -> None:
    assert sum(by_the_schema(besieged, 32).values()) > 10 and broken == []


@pytest.mark.slow
def test_many_requests_made_from_the_schema(besieged: str, broken: list[str]) -> None:
    seen = by_the_schema(besieged, MANY // 4)
    print(seen)
    assert seen[400] and broken == []

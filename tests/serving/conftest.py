"""A real server on a free port, the tiny random pair behind it."""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import openai
import pytest
import soundfile
import uvicorn

from steermoe.inference.ears import Ears
from steermoe.serving.app import create_app
from steermoe.serving.gate import Settings
from steermoe.serving.local import Local


def wav(samples: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, 16_000, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


@contextmanager
def running(engine: Any, settings: Settings = Settings()) -> Iterator[str]:  # noqa: B008
    """Its URL."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_app(engine, settings), log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=30)
        listening.close()
        assert not thread.is_alive()


def local(ears: Ears, **options: Any) -> Local:
    return Local({"tiny": None}, load=lambda _: ears, **options)


def client(url: str, key: str = "none", **options: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, **{"max_retries": 0, "timeout": 60.0, **options})


@pytest.fixture(scope="session")
def url(ears: Ears) -> Iterator[str]:
    engine = local(ears)
    with running(engine, Settings(max_bytes=3_000_000, max_seconds=80.0)) as url:
        engine.loaded.result(timeout=30)
        yield url


@pytest.fixture
def ask(url: str) -> openai.OpenAI:
    return client(url)


@pytest.fixture
def clip() -> Callable[..., bytes]:
    from tests.conftest import speechlike

    return lambda seconds, seed=0: wav(speechlike(seconds, seed))

"""``steermoe serve``: the keys, the socket, the process."""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import uvicorn

from ..errors import UsageError
from ..inference.ears import Ears, load
from .app import create_app
from .gate import Lines, Settings, log
from .local import Local, named
from .vllm import Vllm

VLLM_KEY = "STEERMOE_VLLM_API_KEY"
KEYS, KEYS_FILE = "STEERMOE_API_KEYS", "STEERMOE_API_KEYS_FILE"
GRACE = 30  # seconds in which requests under way may end


def read_keys(environ: Mapping[str, str] = os.environ) -> tuple[bytes, ...]:
    """SHA-256 digests of the keys in either variable; a variable that is set but holds none is an error, not an open door."""
    digests: list[bytes] = []
    for name in (KEYS, KEYS_FILE):
        if (value := environ.get(name)) is None:
            continue
        try:
            keys = (Path(value).read_text() if name == KEYS_FILE else value).replace(",", " ").split()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{name}={value}: cannot be read ({type(error).__name__}); one key a line") from None
        if not keys:
            raise UsageError(f"{name} is set but holds no key; unset it to serve without keys")
        digests += [hashlib.sha256(key.encode()).digest() for key in keys]
    return tuple(digests)


def serve(
    adapters: Sequence[str],
    host: str,
    port: int,
    *,
    max_queue: int,
    max_seconds: float,
    max_mib: int,
    timeout: float,
    rate: int | None,
    vllm: str | None = None,
    vllm_model: str | None = None,
    dtype: str | None = None,
) -> None:
    """Until it is interrupted. ``timeout`` is an answer's; for the rest see ``Settings``. Raises AdapterError and UsageError
    for what stands in the way of serving."""
    settings = Settings(read_keys(), max_bytes=max_mib << 20, max_seconds=max_seconds, rate=rate)
    engine = _engine(adapters, max_queue, timeout, vllm, vllm_model, partial(load, dtype=dtype))
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        said = getattr(error, "strerror", None) or error
        raise UsageError(f"cannot listen on --host {host} --port {port}: {said}; choose another") from None
    _log_to_stderr()
    address, at, *_ = listening.getsockname()
    open_door = not settings.keys and host not in ("127.0.0.1", "localhost", "::1")
    note = f"no key is asked for: whoever reaches the port may use it; set {KEYS}" if open_door else ""
    url = f"http://{f'[{address}]' if ':' in address else address}:{at}"
    log.info("serving", extra={"fields": {"url": url, "models": engine.models, **({"note": note} if note else {})}})
    # The log is ours, and says nothing of the software.
    config = uvicorn.Config(
        create_app(engine, settings), log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=GRACE
    )  # fmt: skip
    server = uvicorn.Server(config)

    def loaded(_: object) -> None:
        if engine.loaded.exception():
            server.should_exit = True
        else:
            log.info("ready")

    engine.loaded.add_done_callback(loaded)
    with listening:
        server.run(sockets=[listening])
    if engine.loaded.done():
        engine.loaded.result()  # what went wrong


def _engine(
    adapters: Sequence[str],
    max_queue: int,
    timeout: float,
    vllm: str | None,
    vllm_model: str | None,
    load: Callable[..., Ears],
) -> Local | Vllm:
    if vllm is not None:
        key = os.environ.get(VLLM_KEY)
        return Vllm(named(adapters), vllm, model=vllm_model, key=key, max_queue=max_queue, timeout=timeout, load=load)
    if vllm_model is not None:
        raise UsageError(f"--vllm-model {vllm_model}: give the server, too: --vllm URL")
    return Local(named(adapters), max_queue=max_queue, timeout=timeout, load=load)


def _log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines())
    for name, level in (
        ("steermoe.serving", logging.INFO),
        ("uvicorn", logging.WARNING),
        ("python_multipart", logging.ERROR),
    ):
        logging.getLogger(name).handlers = [handler]
        logging.getLogger(name).setLevel(level)
        logging.getLogger(name).propagate = False

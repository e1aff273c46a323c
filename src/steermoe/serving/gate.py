"""What every request passes: a number, the key, the size, a place in the queue; then one line in the log and the metrics.

Logs hold no content: no text, no file name, no query, no path that is not one of ours, of an exception its kind and place.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import re
import time
import traceback
import uuid
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from datetime import UTC, datetime
from math import ceil
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from .engine import Engine, Refusal
from .protocol import refused

log = logging.getLogger("steermoe.serving")
OPEN = ("/", "/health", "/ready")  # what needs no key
NAMES = 10_000  # senders that are kept in mind, but for those who sent within the last minute
Scope = MutableMapping[str, Any]


@dataclass(frozen=True)
class Settings:
    """``keys`` are SHA-256 digests of the API keys, none: no key is asked for. ``max_bytes`` limits a request's body,
    ``max_seconds`` its audio, ``patience`` (seconds) the time in which a body must have come, ``rate`` how many requests a
    minute each key (without keys: each address) may send, None: any number."""

    keys: tuple[bytes, ...] = ()
    max_bytes: int = 25 << 20
    max_seconds: float = 7200.0
    patience: float = 60.0
    rate: int | None = None


class Rate:
    """Of each name a burst of ``rate`` requests, and from there on as many a minute."""

    def __init__(self, rate: int) -> None:
        self.gap = 60.0 / rate
        self._due: dict[Any, float] = {}  # when all that were sent would have come evenly

    def wait(self, name: Any, now: float) -> float:
        """Seconds until ``name`` may send its next request; 0, and it is counted."""
        due = max(self._due.get(name, now), now)
        if (early := due + self.gap - now - 60.0) > 1e-6:
            return early
        if len(self._due) > NAMES:
            self._due = {name: due for name, due in self._due.items() if due > now}
        self._due[name] = due + self.gap
        return 0.0


class Metrics:
    def __init__(self, engine: Engine) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("steermoe_requests", "Requests", ["path", "status"], registry=self.registry)
        self.seconds = Histogram(
            "steermoe_request_seconds", "From the first byte to the last", ["path"], registry=self.registry
        )
        self.audio = Counter(
            "steermoe_audio_seconds", "Audio that was taken, seconds", ["model"], registry=self.registry
        )
        self.tokens = Counter("steermoe_tokens", "Tokens of chat", ["model", "kind"], registry=self.registry)
        waiting = Gauge("steermoe_waiting", "Requests in the queue", registry=self.registry)
        waiting.set_function(lambda: engine.waiting)

    def note(self, path: str, status: int, seconds: float, facts: dict[str, Any]) -> None:
        self.requests.labels(path, status).inc()
        self.seconds.labels(path).observe(seconds)
        if "audio_seconds" in facts:
            self.audio.labels(facts["model"]).inc(facts["audio_seconds"])
        for kind in ("prompt_tokens", "completion_tokens"):
            if kind in facts:
                self.tokens.labels(facts["model"], kind.removesuffix("_tokens")).inc(facts[kind])


def response(error: Refusal) -> JSONResponse:
    after = {"retry-after": str(error.retry_after)} if error.retry_after else {}
    also = {"www-authenticate": "Bearer"} if error.status == 401 else {}
    return JSONResponse(refused(error), error.status, after | also)


class Gate:
    """The ASGI middleware around all else. Endpoints leave what may be logged in ``scope["facts"]``."""

    def __init__(self, app: Any, engine: Engine, settings: Settings, metrics: Metrics) -> None:
        self.app, self.engine, self.settings, self.metrics = app, engine, settings, metrics
        self.rate = Rate(settings.rate) if settings.rate else None

    async def __call__(self, scope: Scope, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers, began, status, failed = Headers(scope=scope), time.monotonic(), 0, dict[str, Any]()
        asked = headers.get("x-request-id", "")
        name = asked if re.fullmatch(r"[A-Za-z0-9._-]{1,64}", asked) else uuid.uuid4().hex
        scope["facts"], scope["request_id"] = dict[str, Any](), name

        async def answer(message: Scope) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).update({"x-request-id": name, "x-content-type-options": "nosniff"})
            await send(message)

        try:
            self._admit(scope, headers)
            await self.app(scope, self._limited(receive), answer)
        except Refusal as error:
            await response(error)(scope, receive, answer)
        except Exception as error:
            failed = where(error)
            if not status:
                broken = Refusal(f"something broke here; its id is {name}", 500, "internal_error")
                await response(broken)(scope, receive, answer)
        finally:
            path, seconds = getattr(scope.get("route"), "path", "other"), time.monotonic() - began
            self.metrics.note(path, status, seconds, scope["facts"])
            level = logging.ERROR if failed or status >= 500 else logging.INFO
            known = {"request_id": name, "method": scope["method"], "path": path}
            fields = {**known, "status": status, "seconds": round(seconds, 4), **scope["facts"], **failed}
            log.log(level, "request", extra={"fields": fields})
        return None

    def _admit(self, scope: Scope, headers: Headers) -> None:
        sender: Any = (scope.get("client") or [None])[0]
        if self.settings.keys and scope["path"] not in OPEN:
            scheme, _, key = headers.get("authorization", "").partition(" ")
            digest = hashlib.sha256(key.strip().encode()).digest()
            same = [hmac.compare_digest(digest, known) for known in self.settings.keys]  # all: no time tells which
            if scheme.lower() != "bearer" or not any(same):
                raise Refusal("give a valid key as `Authorization: Bearer KEY`", 401, "invalid_api_key")
            sender = digest
        if scope["method"] == "POST":
            if (
                int(length if (length := headers.get("content-length", "")).isdecimal() else 0)
                > self.settings.max_bytes
            ):
                raise self._too_large()
            if self.rate and (wait := self.rate.wait(sender, time.monotonic())):
                said = f"{self.settings.rate} requests a minute are allowed; wait {ceil(wait)} s"
                raise Refusal(said, 429, "rate_limit_exceeded", retry_after=ceil(wait))
            self.engine.admit()  # before anything is read

    def _limited(self, receive: Callable[..., Any]) -> Callable[..., Any]:
        """A body that comes whole, in time and within the limit; HTTPException, which FastAPI lets pass, if not."""
        loop, got, whole = asyncio.get_running_loop(), 0, False
        until = loop.time() + self.settings.patience

        async def limited() -> Any:
            nonlocal got, whole
            try:
                async with asyncio.timeout_at(None if whole else until):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, f"the body did not come within {self.settings.patience:g} s") from None
            got += len(message.get("body", b""))
            whole = whole or not message.get("more_body")
            if got > self.settings.max_bytes:
                raise HTTPException(413, str(self._too_large()))
            return message

        return limited

    def _too_large(self) -> Refusal:
        return Refusal(f"a request may have {self.settings.max_bytes} bytes; send less", 413, "too_large")


def where(error: BaseException) -> dict[str, Any]:
    """Of an exception what holds nothing of a request: its kind, and the lines of code it came through."""
    frames = traceback.extract_tb(error.__traceback__)[-8:]
    return {"error": type(error).__name__, "at": [f"{frame.filename}:{frame.lineno}" for frame in frames]}


class Lines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        fields = getattr(record, "fields", {})
        broken = where(record.exc_info[1]) if record.exc_info and record.exc_info[1] else {}
        said = {"time": when, "level": record.levelname.lower(), "event": record.getMessage(), **fields, **broken}
        return json.dumps(said, ensure_ascii=False)

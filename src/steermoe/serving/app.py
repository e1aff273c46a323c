"""The HTTP server: every path of the API, from a request to its answer."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from python_multipart.exceptions import FormParserError
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse

from ..audio import RATE, pieces
from ..errors import AudioError, UsageError
from ..inference.chat import Answer
from ..inference.transcripts import Piece
from . import protocol
from .engine import Engine, Refusal
from .gate import Gate, Metrics, Settings, log, response, where
from .protocol import ChatRequest, TranscriptionRequest

CHAT_SECONDS = 600.0  # of audio in one conversation: an LLM's context holds no more
PAGE = (Path(__file__).parent / "page.html").read_bytes()
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; "
    "media-src blob:; img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
GONE = Response(status_code=499)  # nobody reads it
FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    **(fields := TranscriptionRequest.model_json_schema()),
                    "properties": {**fields["properties"], "file": {"type": "string", "format": "binary"}},
                    "required": ["file", *fields["required"]],
                }
            }
        },
    }
}


def create_app(engine: Engine, settings: Settings = Settings()) -> FastAPI:  # noqa: B008
    """The application; it starts ``engine`` with itself, and closes it."""
    metrics, since = Metrics(engine), int(time.time())

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        engine.start()
        yield
        await run_in_threadpool(engine.close)

    app = FastAPI(title="steermoe", lifespan=life, docs_url=None, redoc_url=None)  # their pages load from elsewhere
    app.add_middleware(Gate, engine=engine, settings=settings, metrics=metrics)

    def model(name: str) -> str:
        if name not in engine.models:
            served = ", ".join(engine.models)
            raise Refusal(f"there is no such model here; there is {served}", 404, "model_not_found", "model")
        return name

    @app.post("/v1/audio/transcriptions", openapi_extra=FORM)
    async def transcriptions(request: Request) -> Response:
        asked, audio = await _form(request, settings)
        model(asked.model)
        if asked.stream and asked.response_format not in ("json", "text"):
            raise Refusal(f"stream: not with {asked.response_format}; use json", param="stream")
        seconds = await run_in_threadpool(_measured, audio, settings.max_seconds, "file")
        told = engine.transcribe(asked.model, audio, seconds)
        request.scope["facts"].update(model=asked.model, audio_seconds=round(seconds, 3))
        if asked.stream:
            return await _streamed(request, told, _transcript_events)
        whole = await _unless_gone(request, _all(told))
        if whole is None:
            return GONE
        value = protocol.transcription(asked, whole, seconds)
        return PlainTextResponse(value) if isinstance(value, str) else JSONResponse(value)

    @app.post("/v1/chat/completions")
    async def completions(request: Request, asked: ChatRequest) -> Response:
        model(asked.model)
        messages = await run_in_threadpool(_heard, asked.plain(), min(settings.max_seconds, CHAT_SECONDS))
        told = engine.chat(asked.model, messages, asked.tools or [], asked.options())
        facts = request.scope["facts"]
        facts.update(model=asked.model)
        head = {"id": f"chatcmpl-{request.scope['request_id']}", "created": int(time.time()), "model": asked.model}

        def noted(answer: Answer) -> Answer:
            used = answer.usage
            facts.update(prompt_tokens=used.prompt_tokens, completion_tokens=used.completion_tokens)
            return answer

        async def events(told: AsyncIterator[Any]) -> AsyncIterator[dict[str, Any]]:
            yield protocol.chunk(head, {"role": "assistant", "content": ""})
            async for item in told:
                if isinstance(item, Answer):
                    with_usage = asked.stream_options is not None and asked.stream_options.include_usage
                    for last in protocol.last_chunks(head, noted(item), with_usage):
                        yield last
                else:
                    yield protocol.chunk(head, {"content": item})

        if asked.stream:
            return await _streamed(request, told, events, end="data: [DONE]\n\n")
        whole = await _unless_gone(request, _all(told))
        return GONE if whole is None else JSONResponse(protocol.completion(head, noted(whole[-1])))

    @app.post("/v1/steermoe/inspect", openapi_extra=FORM)
    async def inspect(request: Request) -> Response:
        """What was heard, for a page to draw: the spectrogram, its words, and every layer's gates (``inspection.seen``)."""
        asked, audio = await _form(request, settings)
        model(asked.model)
        seconds = await run_in_threadpool(_measured, audio, settings.max_seconds, "file")
        whole = await _unless_gone(request, _all(engine.inspect(asked.model, audio, seconds)))
        return GONE if whole is None else JSONResponse(whole[0])

    def about(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": since, "owned_by": "steermoe"}

    @app.get("/v1/models")
    async def models() -> Any:
        return {"object": "list", "data": [about(name) for name in engine.models]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> Any:
        return about(model(name))

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return Response(PAGE, media_type="text/html; charset=utf-8", headers={"content-security-policy": POLICY})

    @app.get("/health")
    async def health() -> Any:
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> Any:
        try:
            engine.admit()
        except Refusal as error:
            if error.status == 503:  # a full queue is no reason to send a server home
                raise
        return {"status": "ready"}

    @app.get("/metrics")
    async def numbers() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.exception_handler(Refusal)
    async def refuse(request: Request, error: Refusal) -> Response:
        return response(error)

    @app.exception_handler(UsageError)
    @app.exception_handler(AudioError)
    async def wrong(request: Request, error: Exception) -> Response:
        return response(_as_refusal(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return response(protocol.invalid(error.errors()))

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return GONE

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> Response:
        told = response(Refusal(str(error.detail), error.status_code))
        told.headers.update(error.headers or {})
        return told

    return app


def _as_refusal(error: Exception) -> Refusal:
    if isinstance(error, Refusal):
        return error
    if isinstance(error, UsageError | AudioError):
        return Refusal(_said(error))
    return Refusal("something broke here", 500, "internal_error")


def _said(error: Exception) -> str:
    said, limit, _ = str(error).partition("; raise --max-duration")  # which is not the client's to raise
    return f"{said}; split it" if limit else said


async def _form(request: Request, settings: Settings) -> tuple[TranscriptionRequest, bytes]:
    """The fields and the file of a multipart form, read into memory: nothing is written to a disk."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise Refusal("a multipart/form-data body is needed, with `file` and `model`")
    parser = MultiPartParser(request.headers, request.stream(), max_files=1, max_fields=32)
    parser.spool_max_size = settings.max_bytes + 1
    try:
        form = await parser.parse()
    except (MultiPartException, FormParserError) as error:
        raise Refusal(f"the form cannot be read: {getattr(error, 'message', 'broken')}") from None
    upload = form.get("file")
    if not isinstance(upload, UploadFile):
        raise Refusal("an uploaded file is needed; paths and addresses are not read", param="file")
    named = {name: form.getlist(name) if name.endswith("[]") else form[name] for name in form if name != "file"}
    return protocol.checked(named), await upload.read()


def _measured(audio: bytes, limit: float, where: str) -> float:
    """Seconds of an encoded clip. All of it is read once, never held whole: what is broken is refused before it waits, as what
    came in the field ``where``."""
    try:
        return sum(map(len, pieces(audio, 30.0, max_duration=limit))) / RATE
    except AudioError as error:
        raise Refusal(f"{where}: {_said(error).removeprefix(f'<{len(audio)} bytes>: ')}", param=where) from None


def _heard(messages: list[dict[str, Any]], limit: float) -> list[dict[str, Any]]:
    """The messages with their audio as encoded bytes that can be read, ``limit`` seconds in all. Raises Refusal and AudioError."""
    seconds = 0.0
    for i, message in enumerate(messages):
        for k, part in enumerate(message["content"] if isinstance(message["content"], list) else []):
            if part["type"] != "input_audio":
                continue
            where = f"messages.{i}.content.{k}.input_audio.data"
            try:
                source = base64.b64decode(part["input_audio"]["data"], validate=True)
            except ValueError:
                raise Refusal(f"{where}: no base64 of an audio file; addresses are not read", param=where) from None
            seconds += _measured(source, limit, where)
            if seconds > limit:
                raise Refusal(f"{seconds:.0f} s of audio in one conversation, {limit:g} s are the most", param=where)
            message["content"][k] = {"type": "audio", "bytes": source}
    return messages


async def _all(told: AsyncGenerator[Any]) -> list[Any]:
    return [item async for item in told]


async def _unless_gone(request: Request, answer: Coroutine[Any, Any, list[Any]]) -> list[Any] | None:
    """The answer; None, and its work withdrawn, where the client has left."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    answering, leaving = asyncio.ensure_future(answer), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return answering.result() if answering.done() else None
    finally:
        answering.cancel()
        leaving.cancel()


async def _streamed(request: Request, told: AsyncGenerator[Any], events: Any, end: str = "") -> Response:
    """Server-sent ``events(told)``. What is wrong before the first piece is raised, later it is an event of its own."""
    first = await _unless_gone(request, _first(told))
    if first is None:
        return GONE

    async def joined() -> AsyncIterator[Any]:
        for item in first:
            yield item
        async for item in told:
            yield item

    async def lines() -> AsyncIterator[str]:
        try:
            async for event in events(joined()):
                yield f"data: {json.dumps(event, ensure_ascii=False)}\n\n"
        except Exception as error:
            refusal = _as_refusal(error)
            if refusal.status == 500:
                fields = {"request_id": request.scope["request_id"], **where(error)}
                log.error("stream", extra={"fields": fields})
            yield f"data: {json.dumps(protocol.refused(refusal))}\n\n"
            return
        yield end

    quick = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(
        lines(), media_type="text/event-stream", headers=quick, background=BackgroundTask(told.aclose)
    )


async def _first(told: AsyncGenerator[Any]) -> list[Any]:
    async for item in told:
        return [item]
    return []


async def _transcript_events(told: AsyncIterator[Piece]) -> AsyncIterator[dict[str, Any]]:
    said = ""
    async for piece in told:
        if piece.text:
            delta = f" {piece.text}" if said else piece.text
            said += delta
            yield {"type": "transcript.text.delta", "delta": delta}
    yield {"type": "transcript.text.done", "text": said}

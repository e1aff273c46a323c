"""The engine of those who outgrow one machine: what is heard here, an unmodified LLM answers in a vLLM server.

The encoder, the steering and the projector run in one thread of this process, clips that wait together; of the LLM only the
embeddings are here. Every request goes on by itself from there, as vLLM batches what it is sent.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import numpy as np

from ..audio import pieces
from ..inference.chat import Answer, Conversation, further
from ..inference.ears import BATCH, Ears, load
from ..inference.transcripts import Piece, Said
from ..inference.writer import step
from ..inspection import seen
from .completions import Away, Server
from .elsewhere import Heard, Tokens, checked
from .engine import Refusal, not_ready, too_late

T = TypeVar("T")


@dataclass(eq=False)
class Clip:
    """A window that waits to be heard; None comes of one without a word."""

    model: str
    samples: np.ndarray
    heard: asyncio.Future[Heard | None]


class Vllm:
    """``adapters`` by the names that requests use, their LLM in the vLLM server at ``url``; ``loaded`` as ``Local``'s.

    At most ``max_queue`` requests are under way. Readings are not weighed: the LLM that would judge them is not here.
    """

    def __init__(
        self,
        adapters: dict[str, Any],
        url: str,
        *,
        model: str | None = None,
        key: str | None = None,
        max_queue: int = 64,
        timeout: float = 900.0,
        load: Callable[..., Ears] = load,
    ) -> None:
        self.models, self.max_queue, self.timeout = list(adapters), max_queue, timeout
        self.server = Server(url, model, key, timeout)
        self.loaded: Future[None] = Future()
        self.waiting = 0
        self._adapters, self._load, self._ears = adapters, load, dict[str, Ears]()
        self._thread = ThreadPoolExecutor(1, "ears")  # all that hears
        self._clips, self._arrived = deque[Clip](), asyncio.Event()
        self._closed = False

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._running = self._loop.create_task(self._run())

    def close(self) -> None:
        self._closed = True
        self._thread.shutdown(wait=False, cancel_futures=True)
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(timeout=30)

    async def _end(self) -> None:
        self._running.cancel()
        await asyncio.gather(self._running, return_exceptions=True)
        await self.server.close()

    def admit(self) -> None:
        if self._closed or not self.loaded.done():
            raise not_ready(self._closed)
        if self.server.problem is not None:
            raise Away(self.server.problem)
        if self.waiting >= self.max_queue:
            raise Refusal(f"{self.waiting} requests are under way; try again later", 429, "queue_full", None, 5)

    def transcribe(self, model: str, audio: bytes, seconds: float) -> AsyncGenerator[Piece]:
        self.admit()
        return self._pieces(model, audio, seconds)

    def chat(
        self, model: str, messages: list[dict[str, Any]], tools: list[dict[str, Any]], options: dict[str, Any]
    ) -> AsyncGenerator[str | Answer]:
        self.admit()
        return self._said(model, messages, tools, options)

    def inspect(self, model: str, audio: bytes, seconds: float) -> AsyncGenerator[dict[str, Any]]:
        self.admit()
        return self._seen(self._ears[model], audio, seconds)

    async def _run(self) -> None:
        try:
            await self._loop.run_in_executor(self._thread, self._load_all)
        except BaseException as error:
            self._closed = True
            self.loaded.set_exception(error)
            return
        self.loaded.set_result(None)
        await _together([self.server.watch(next(iter(self._ears.values()))), self._hear_all()])

    def _load_all(self) -> None:
        first: Ears | None = None
        for name, adapter in self._adapters.items():
            ears = self._ears[name] = first.with_adapter(adapter) if first else self._load(adapter, llm_elsewhere=True)
            ears.config.readings = 1
            first = first or ears

    async def _pieces(self, model: str, audio: bytes, seconds: float) -> AsyncGenerator[Piece]:
        """The first window alone, then more and more at once, as the local engine's streams."""
        with self._place() as within:
            windows, size = self._ears[model].cut(audio, None, seconds + 1), 1
            while some := await within(asyncio.to_thread(_some, windows, size)):
                told = await within(_together(self._said_in(model, samples) for _, samples in some))
                for (piece, _), said in zip(some, told, strict=True):
                    yield piece.filled(said)
                size = min(2 * size, BATCH)

    async def _said_in(self, model: str, samples: np.ndarray) -> Said:
        clip = Clip(model, samples, self._loop.create_future())
        self._clips.append(clip)
        self._arrived.set()
        heard = await clip.heard
        if heard is None:
            return Said()
        ears = self._ears[model]
        ids = await checked(self.server, heard, ears.model.llm.get_input_embeddings(), ears.ends)
        return heard.asked.said(ears.processor.tokenizer.decode(ids, skip_special_tokens=True).strip())

    async def _said(self, model: str, messages: Any, tools: Any, options: Any) -> AsyncGenerator[str | Answer]:
        with self._place() as within:
            talk = Conversation(self._ears[model], messages, tools)
            beginning, writer = talk.beginning(None, **options), None
            while writer is None:  # others are heard between its windows
                writer = await within(self._loop.run_in_executor(self._thread, further, beginning))
            writer.forcing = False  # in a stream the LLM itself writes what is forced
            steps, token = writer.steps(), None
            async with aclosing(Tokens(self.server, writer)) as tokens:
                while (item := await within(asyncio.to_thread(step, steps, token))) is not None:
                    token = None
                    if isinstance(item, str):
                        yield item
                    else:
                        token = await within(tokens.next(item.closing))
            yield talk.end(writer)

    async def _seen(self, ears: Ears, audio: bytes, seconds: float) -> AsyncGenerator[dict[str, Any]]:
        windows = pieces(audio, ears.model.frames.window, max_duration=seconds + 1)
        with self._place() as within:
            yield await within(self._loop.run_in_executor(self._thread, lambda: seen(ears, next(windows))))

    @contextmanager
    def _place(self) -> Iterator[Callable[[Awaitable[T]], Awaitable[T]]]:
        """A request's place among those under way; it gives what waits for something, all together until ``timeout``."""
        until = self._loop.time() + self.timeout

        async def within(what: Awaitable[T]) -> T:
            try:
                async with asyncio.timeout_at(until):
                    return await what
            except TimeoutError:
                raise too_late(self.timeout) from None

        self.waiting += 1
        try:
            yield within
        finally:
            self.waiting -= 1

    async def _hear_all(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while left := [clip for clip in self._clips if not clip.heard.done()]:
                taken = [clip for clip in left if clip.model == left[0].model][:BATCH]
                self._clips = deque(clip for clip in left if clip not in taken)
                await self._hear(taken)

    async def _hear(self, clips: Sequence[Clip]) -> None:
        try:
            told = await self._loop.run_in_executor(self._thread, self._listen, clips)
        except Exception as error:  # one clip must not cost the others their text: each by itself
            for clip in clips if len(clips) > 1 else []:
                await self._hear([clip])
            if len(clips) == 1 and not clips[0].heard.done():
                clips[0].heard.set_exception(error)
            return
        for clip, heard in zip(clips, told, strict=True):
            if not clip.heard.done():
                clip.heard.set_result(heard)

    def _listen(self, clips: Sequence[Clip]) -> list[Heard | None]:
        ears = self._ears[clips[0].model]
        told: list[Heard | None] = []
        for asked in ears.asked([clip.samples for clip in clips]):
            margin = ears.config.llm_margin if asked and asked.draft else 0.0
            told.append(Heard(asked, ears.embedded(asked), margin) if asked else None)
        return told


def _some(windows: Iterator[T], count: int) -> list[T]:
    return list(islice(windows, count))


async def _together(work: Iterable[Awaitable[T]]) -> list[T]:
    """All results; where one fails or the caller leaves, none goes on."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()

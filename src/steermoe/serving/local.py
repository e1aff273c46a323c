"""The engine of one machine: adapters of one pair in this process, all torch work in one thread.

Three lanes share the time evenly, so that no kind of request waits for all of another: short clips, a batch of those that
wait at once; longer audio, a few windows of each a turn; chat, a batch of conversations a token further each pass of the
LLM. The turn is the lane's that has had the least. Within a lane it is first come, first begun.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from math import ceil
from pathlib import Path
from typing import Any

from torch import Tensor

from ..audio import RATE, pieces
from ..data import load_source
from ..errors import UsageError
from ..inference.chat import Answer, Conversation, Reply, further
from ..inference.ears import BATCH, Ears, load
from ..inference.find import find_adapter
from ..inference.held import Wanted, feed
from ..inference.transcripts import Piece
from ..inspection import seen
from .engine import PATIENCE, Refusal, not_ready, too_late

SHORT = 30.0  # seconds: clips up to here are batched with others; what is longer fills batches by itself
GATHER = 0.03  # seconds in which those who were answered together may ask again, to be heard together again


class Job:
    """A request. ``begin`` gives the ``work`` that makes its answer: an iterator of pieces; or a generator that hears a
    conversation and returns its Reply, which is then the work, and whose next token takes what is ``wanted``."""

    def __init__(self, model: str, begin: Callable[[Ears], Any], audio: bytes = b"") -> None:
        self.model, self.begin, self.audio = model, begin, audio
        self.work: Any = None
        self.wanted: Wanted | None = None
        self.hears, self.gone, self.worked = False, False, 0.0
        self._loop, self._items = asyncio.get_running_loop(), asyncio.Queue[Any]()

    def give(self, *items: Any) -> None:
        """From the worker's thread: pieces of the answer, None at its end, or the exception in its way."""
        try:
            for item in items:
                self._loop.call_soon_threadsafe(self._items.put_nowait, item)
        except RuntimeError:  # the loop has ended: nobody listens
            self.gone = True

    async def items(self, timeout: float) -> AsyncGenerator[Any]:
        until = self._loop.time() + timeout
        try:
            while True:
                try:
                    async with asyncio.timeout_at(until):
                        item = await self._items.get()
                except TimeoutError:
                    raise too_late(timeout) from None
                if item is None:
                    return
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            self.gone = True


class Lane:
    """Jobs that wait, and those that are under way; ``step`` takes them further. ``had`` is the time they were given."""

    def __init__(self, step: Callable[[Lane], None]) -> None:
        self.waiting: deque[Job] = deque()
        self.current: list[Job] = []
        self.step, self.had = step, 0.0

    def __bool__(self) -> bool:
        return bool(self.waiting or self.current)


class Local:
    """``adapters`` by the names that requests use; ``loaded`` tells when they are there, or what went wrong."""

    def __init__(
        self, adapters: dict[str, Any], *, max_queue: int = 64, timeout: float = 900.0, load: Callable[..., Ears] = load
    ) -> None:
        self.models, self.max_queue, self.timeout = list(adapters), max_queue, timeout
        self.loaded: Future[None] = Future()
        self._adapters, self._load = adapters, load
        self._ears: dict[str, Ears] = {}
        self._clips, self._long, self._chat = self._lanes = Lane(self._batch), Lane(self._read_on), Lane(self._write_on)
        self._changed = threading.Condition()
        self._closed = False
        self._last = 0, 0.0  # clips that were heard at once, and when they were done
        self._pace = 1.0  # seconds a request takes, the last ones counting most
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def waiting(self) -> int:
        return sum(len(lane.waiting) for lane in self._lanes)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout=30)

    def admit(self) -> None:
        if self._closed or not self.loaded.done():
            raise not_ready(self._closed)
        if (waiting := self.waiting) >= self.max_queue:
            after = min(PATIENCE, max(1, ceil(self._pace * waiting)))
            raise Refusal(f"{waiting} requests wait already; try again in {after} s", 429, "queue_full", None, after)

    def transcribe(self, model: str, audio: bytes, seconds: float) -> AsyncGenerator[Piece]:
        job = Job(model, lambda ears: ears.stream(audio, max_duration=seconds + 1), audio)
        return self._queued(self._clips if seconds <= SHORT else self._long, job)

    def chat(
        self, model: str, messages: list[dict[str, Any]], tools: list[dict[str, Any]], options: dict[str, Any]
    ) -> AsyncGenerator[str | Answer]:
        def begin(ears: Ears) -> Generator[None, None, Reply]:
            talk = Conversation(ears, messages, tools)
            return talk.reply((yield from talk.beginning(None, **options)))

        return self._queued(self._chat, Job(model, begin))

    def inspect(self, model: str, audio: bytes, seconds: float) -> AsyncGenerator[dict[str, Any]]:
        def look(ears: Ears) -> Iterator[dict[str, Any]]:
            yield seen(ears, next(pieces(audio, ears.model.frames.window, max_duration=seconds + 1)))

        return self._queued(self._long, Job(model, look))

    def _queued(self, lane: Lane, job: Job) -> AsyncGenerator[Any]:
        with self._changed:
            self.admit()
            lane.waiting.append(job)
            self._changed.notify()
        return job.items(self.timeout)

    def _run(self) -> None:
        try:
            first: Ears | None = None
            for name, adapter in self._adapters.items():
                self._ears[name] = first.with_adapter(adapter) if first else self._load(adapter)
                first = first or self._ears[name]
                _warm(self._ears[name])
        except BaseException as error:
            self._closed = True
            self.loaded.set_exception(error)
            return
        self.loaded.set_result(None)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or any(self._lanes))
                if self._closed:
                    break
            began, busy = time.monotonic(), [lane for lane in self._lanes if lane]
            lane = min(busy, key=lambda lane: lane.had)
            lane.step(lane)
            least, lane.had = lane.had, lane.had + time.monotonic() - began
            for idle in (other for other in self._lanes if other not in busy):
                idle.had = max(idle.had, least)  # what it did not ask for is not owed to it
        for job in [job for lane in self._lanes for job in (*lane.current, *lane.waiting)]:
            job.give(Refusal("the server is shutting down", 503, "not_ready", retry_after=5))

    def _take(self, lane: Lane, most: int = 1) -> list[Job]:
        """The first jobs in line whose clients are still there, all of one model."""
        with self._changed:
            waiting = [job for job in lane.waiting if not job.gone]
            taken = [job for job in waiting if job.model == waiting[0].model][:most]
            lane.waiting = deque(job for job in waiting if job not in taken)
        return taken

    def _batch(self, lane: Lane) -> None:
        size, ended = self._last
        with self._changed:
            left = ended + GATHER - time.monotonic()
            self._changed.wait_for(lambda: self._closed or len(lane.waiting) >= size, max(0.0, left))
        if jobs := self._take(lane, most=BATCH):
            began = time.monotonic()
            self._hear(jobs)
            self._last = len(jobs), time.monotonic()
            self._paced((self._last[1] - began) / len(jobs))

    def _hear(self, jobs: list[Job]) -> None:
        try:
            told = list(self._ears[jobs[0].model].transcripts([job.audio for job in jobs]))
        except Exception as error:  # one clip must not cost the others their text: each by itself
            for job in jobs if len(jobs) > 1 else []:
                self._hear([job])
            if len(jobs) == 1:
                jobs[0].give(error)
            return
        for job, each in zip(jobs, told, strict=True):
            job.give(*([each.error] if each.error else [*each.pieces, None]))

    def _read_on(self, lane: Lane) -> None:
        """A few windows more of one job; then it is the next one's turn."""
        began = time.monotonic()
        if len(lane.current) < BATCH:
            lane.current += self._take(lane)
        for job in lane.current[:1]:
            try:
                job.work = job.work or job.begin(self._ears[job.model])
                item = None if job.gone else next(job.work, None)
            except Exception as error:
                item = error
            job.give(item)
            job.worked += time.monotonic() - began
            ended = item is None or isinstance(item, Exception)
            lane.current = lane.current[1:] + ([] if ended else [job])
            if ended:
                self._paced(job.worked)

    def _write_on(self, lane: Lane) -> None:
        """A token more of a batch of jobs, and a few windows of one that is not heard yet, which may have waited until now."""
        began = time.monotonic()
        if len(lane.current) < BATCH:
            for job in self._take(lane):
                job.hears = True
                lane.current.append(job)
        for job in [job for job in lane.current if job.hears][:1]:
            self._hear_on(job)
        self._feed([job for job in lane.current if job.wanted])
        for job in lane.current:
            job.worked += (time.monotonic() - began) / len(lane.current)
            if not (job.hears or job.wanted):
                self._paced(job.worked)
        lane.current = [job for job in lane.current if job.hears or job.wanted]

    def _hear_on(self, job: Job) -> None:
        try:
            job.work = job.work or job.begin(self._ears[job.model])
            reply = None if job.gone else further(job.work)
        except Exception as error:
            job.hears = False
            job.give(error)
            return
        job.hears = reply is None and not job.gone
        if reply is not None:
            job.work = reply
            self._go_on(job)

    def _go_on(self, job: Job, logits: Tensor | None = None) -> None:
        """Give what can be written until more is ``wanted``."""
        item: Any = None
        try:
            while not job.gone and isinstance(item := job.work.step(logits), str):
                job.give(item)
                logits = None
            if item is None:
                job.give(job.work.answer, None)
        except Exception as error:
            item = None
            job.give(error)
        job.wanted = item

    def _feed(self, jobs: list[Job]) -> None:
        try:
            told = feed([job.wanted for job in jobs if job.wanted])
        except Exception as error:  # as in _hear
            for job in jobs if len(jobs) > 1 else []:
                self._feed([job])
            if len(jobs) == 1:
                jobs[0].wanted = None
                jobs[0].give(error)
            return
        for job, logits in zip(jobs, told, strict=True):
            self._go_on(job, logits)

    def _paced(self, seconds: float) -> None:
        self._pace += 0.2 * (seconds - self._pace)


def _warm(ears: Ears) -> None:
    """What is made at a first request is made now: of each kind one is answered, about speech that comes with the package."""
    audio = load_source("librivox")[1].load()
    ears.transcribe(audio, sampling_rate=RATE)
    heard = {"type": "audio", "audio": audio, "sampling_rate": RATE}
    tool = {"type": "function", "function": {"name": "ready"}}
    with suppress(UsageError):  # not every LLM can call
        ears.chat([{"role": "user", "content": [heard]}], [tool], tool_choice="required")


def named(adapters: Sequence[str]) -> dict[str, Path]:
    """Adapters by the names that requests use: a shipped name, a hub id without its commit, or a folder's own name.

    Raises AdapterError for one that is not there and UsageError for two of one name.
    """
    found: dict[str, Path] = {}
    for adapter in adapters:
        folder = find_adapter(adapter)
        local = Path(adapter).expanduser()
        name = str(adapter).partition("@")[0]
        if local.exists():
            own = local.resolve()
            name = own.parent.name if own.name == "adapter" else own.name
        if name in found:
            raise UsageError(f"--adapter {adapter}: there is another named {name}; rename its folder")
        found[name] = folder
    return found

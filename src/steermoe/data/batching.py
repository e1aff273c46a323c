"""Batches of similar length by a budget of audio seconds, and their decoding ahead of use by threads."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from ..errors import AudioError, DataError
from .manifest import Example

T = TypeVar("T")
HEADERS = 8  # files whose headers are read at a time
JITTER = 0.1  # lengths are compared up to this share, so that batches differ from epoch to epoch
AHEAD = 3  # batches in work beyond the one in use


def measured(clips: Sequence[Example]) -> tuple[list[Example], list[tuple[int, str]]]:
    """``clips``, each with its duration, from the file's header where the manifest does not say; and (index, why) of those
    that cannot be read, whose duration stays unknown."""
    from ..audio import duration

    def seconds(clip: Example) -> float | str:
        if clip.duration is not None:
            return clip.duration
        try:
            return (clip.end or duration(clip.audio)) - (clip.start or 0.0)
        except (AudioError, OSError) as error:
            return str(error)

    if all(clip.duration is not None for clip in clips):
        return list(clips), []
    with ThreadPoolExecutor(HEADERS, thread_name_prefix="headers") as pool:
        found = list(pool.map(seconds, clips, chunksize=64))
    known = [c if isinstance(s, str) else replace(c, duration=s) for c, s in zip(clips, found, strict=True)]
    return known, [(i, s) for i, s in enumerate(found) if isinstance(s, str)]


def check_share(broken: int, total: int, most: float, last: str) -> None:
    """Raises DataError when more than the share ``most`` of all clips cannot be read, and more than one: that is no longer bad
    luck."""
    if broken > max(1, most * total) or (total and broken == total):
        limit = f"more than {most:.1%} (data.max_skipped)"
        raise DataError(f"{broken} of {total} audio files cannot be read, {limit}; the last: {last}")


def by_duration(
    durations: Sequence[float],
    max_seconds: float,
    seed: int = 0,
    epoch: int = 0,
    max_items: int | None = None,
) -> list[list[int]]:
    """Batches of indices into ``durations`` (seconds); every index is in exactly one.

    A batch's cost is what it takes once padded, its longest times its size: at most ``max_seconds``, and at most
    ``max_items`` items. What is longer than the budget gets a batch of its own. Order and make-up depend on
    nothing but the arguments: to resume, leave out the batches already used (``batches[done:]``).
    """
    if not max_seconds > 0 or (max_items is not None and max_items < 1):
        raise DataError(f"max_seconds={max_seconds}, max_items={max_items}: a batch must have room; use 60 and None")
    rng = random.Random(f"{seed}/{epoch}")
    keys = [length * rng.uniform(1 - JITTER, 1 + JITTER) for length in durations]
    batches: list[list[int]] = []
    longest = 0.0
    for index in sorted(range(len(keys)), key=lambda i: (keys[i], i)):
        longest = max(longest, durations[index])
        batch = batches[-1] if batches else []
        if not batch or longest * (len(batch) + 1) > max_seconds or len(batch) == max_items:
            batches.append([])
            longest = durations[index]
        batches[-1].append(index)
    rng.shuffle(batches)
    return batches


@dataclass(frozen=True)
class Batch(Generic[T]):
    """One batch, loaded: its number in the list, the indices that could be loaded, and what was loaded."""

    number: int
    indices: list[int]
    items: list[T]


def load_batches(
    examples: Sequence[Example],
    batches: Iterable[Sequence[int]],
    load_fn: Callable[[Example, int], T],
    workers: int = 2,
    max_skipped: float = 0.01,
) -> BatchLoader[T]:
    """Iterate over ``batches`` in order, each example loaded by ``load_fn(example, number of its batch)``, ``workers``
    threads working ahead.

    Files that cannot be read (AudioError, OSError) are left out of their batch and listed in ``skipped`` as
    (index, message); for a batch of which nothing is left the next clip that can be read stands in, so that every
    process takes part in every step. More than the share ``max_skipped`` of all examples is a DataError (check_share).
    Decoding releases the GIL, so threads are enough.
    """
    return BatchLoader(examples, batches, load_fn, workers, max_skipped)


class BatchLoader(Generic[T]):
    """What ``load_batches`` returns: iterate over it; ``skipped`` grows as files turn out to be broken."""

    def __init__(
        self,
        examples: Sequence[Example],
        batches: Iterable[Sequence[int]],
        load_fn: Callable[[Example, int], T],
        workers: int,
        max_skipped: float,
    ) -> None:
        self.examples, self.batches, self.load_fn = examples, batches, load_fn
        self.workers, self.max_skipped = max(1, workers), max_skipped
        self.skipped: list[tuple[int, str]] = []

    def __iter__(self) -> Iterator[Batch[T]]:
        waiting: deque[tuple[int, Sequence[int], list[Future[T]]]] = deque()
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="decode")
        try:
            for number, batch in enumerate(self.batches):
                waiting.append((number, batch, [pool.submit(self.load_fn, self.examples[i], number) for i in batch]))
                if len(waiting) > AHEAD:
                    yield from self._finished(*waiting.popleft())
            while waiting:
                yield from self._finished(*waiting.popleft())
        finally:  # also when the caller stops early
            pool.shutdown(wait=True, cancel_futures=True)

    def _finished(self, number: int, batch: Sequence[int], futures: list[Future[Any]]) -> Iterator[Batch[T]]:
        indices, items = [], []
        for index, future in zip(batch, futures, strict=True):
            try:
                items.append(future.result())
                indices.append(index)
            except (AudioError, OSError) as error:
                self._skip(index, str(error))
        index = batch[-1]
        while not items:  # ends: the share of broken files is checked each time
            index = (index + 1) % len(self.examples)
            try:
                items, indices = [self.load_fn(self.examples[index], number)], [index]
            except (AudioError, OSError) as error:
                self._skip(index, str(error))
        yield Batch(number, indices, items)

    def _skip(self, index: int, message: str) -> None:
        self.skipped.append((index, message))
        check_share(len({i for i, _ in self.skipped}), len(self.examples), self.max_skipped, message)

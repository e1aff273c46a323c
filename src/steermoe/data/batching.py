"""Batches of similar length by a budget of audio seconds, and their decoding ahead of use by threads."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ..errors import AudioError, DataError
from .manifest import Example

T = TypeVar("T")
JITTER = 0.1  # lengths are compared up to this share, so that batches differ from epoch to epoch
AHEAD = 3  # batches in work beyond the one in use


def durations_of(examples: Sequence[Example]) -> list[float]:
    """Seconds of each example; where the manifest does not say, from the file's header. Raises AudioError."""
    from ..audio import duration

    lengths = []
    for example in examples:
        length = example.duration
        if length is None:
            length = (example.end or duration(example.audio)) - (example.start or 0.0)
        lengths.append(length)
    return lengths


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
    batches: Sequence[Sequence[int]],
    load_fn: Callable[[Example, int], T],
    workers: int = 2,
    max_skipped: float = 0.01,
) -> BatchLoader[T]:
    """Iterate over ``batches`` in order, each example loaded by ``load_fn(example, number of its batch)``, ``workers``
    threads working ahead.

    Files that cannot be read (AudioError, OSError) are left out of their batch and listed in ``skipped`` as
    (index, message); batches of which nothing is left are not yielded. More than the share ``max_skipped`` of
    all examples is a DataError: that is no longer bad luck. Decoding releases the GIL, so threads are enough.
    """
    return BatchLoader(examples, batches, load_fn, workers, max_skipped)


class BatchLoader(Generic[T]):
    """What ``load_batches`` returns: iterate over it; ``skipped`` grows as files turn out to be broken."""

    def __init__(
        self,
        examples: Sequence[Example],
        batches: Sequence[Sequence[int]],
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
        if items:
            yield Batch(number, indices, items)

    def _skip(self, index: int, message: str) -> None:
        self.skipped.append((index, message))
        broken, total = len({i for i, _ in self.skipped}), len(self.examples)
        if broken > self.max_skipped * total:
            raise DataError(
                f"{broken} of {total} audio files cannot be read, more than {self.max_skipped:.1%}; the last: {message}"
            )

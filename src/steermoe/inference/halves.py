"""A batch in two halves on a CPU, each on half of its threads: while one is in Python, the other computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from threading import Barrier, Lock
from typing import Any, TypeVar

import torch

T = TypeVar("T")
_LOCK = Lock()
_pool: tuple[int, ThreadPoolExecutor] | None = None  # and the number of threads that it shares out


def _workers() -> ThreadPoolExecutor | None:
    """Two threads, each of which computes on half of the caller's; None where there is one only."""
    global _pool
    threads = torch.get_num_threads()
    if threads < 2:
        return None
    with _LOCK:
        if _pool is None or _pool[0] != threads:
            pool = ThreadPoolExecutor(2, "steermoe-half", _compute_on, (threads // 2,))
            both = Barrier(2)
            list(pool.map(lambda _: both.wait(), range(2)))
            torch.set_num_threads(threads)  # for all threads to come
            _pool = threads, pool
        return _pool[1]


def _compute_on(threads: int) -> None:
    """The number of this thread's own. Asked for once, it stays: a thread takes the last that was set when first it asks."""
    torch.set_num_threads(threads)
    torch.get_num_threads()


def in_batches(work: Callable[[list[Any]], list[T]], items: Sequence[Any], size: int, halved: bool) -> list[T]:
    """``work`` on at most ``size`` items at a time, one result an item, in their order.

    ``halved``: on two halves of that at once, by threads in the caller's context. Of items that are sorted by length each
    half has some of all, so that both have as much to do.
    """
    pool = _workers() if halved and min(len(items), size) > 1 else None
    if pool is None:
        return [each for start in range(0, len(items), size) for each in work(list(items[start : start + size]))]
    places = [
        range(start + i, min(start + size, len(items)), 2) for start in range(0, len(items), size) for i in (0, 1)
    ]
    # The last are the longest: begun first, none is waited for at the end.
    running = [
        (part, pool.submit(copy_context().run, work, [items[i] for i in part])) for part in reversed(places) if part
    ]
    done = {i: each for part, future in running for i, each in zip(part, future.result(), strict=True)}
    return [done[i] for i in range(len(items))]

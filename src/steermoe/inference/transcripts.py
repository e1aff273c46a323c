"""From windows of audio to transcripts: many sources in their order, or one as it is written."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..errors import AudioError

AHEAD = 4  # batches of windows that are read before they are heard, those of a length together


@dataclass
class Piece:
    """A window of audio, from ``start`` to ``end`` (seconds), and its text."""

    start: float
    end: float
    text: str = ""


@dataclass
class Transcript:
    """What is said in one source: its ``pieces``, the ``seconds`` of work they took, or the ``error`` in their way."""

    pieces: list[Piece] = field(default_factory=list)
    seconds: float = 0.0
    error: AudioError | None = None

    @property
    def text(self) -> str:
        return " ".join(piece.text for piece in self.pieces if piece.text)

    @property
    def duration(self) -> float:
        return self.pieces[-1].end if self.pieces else 0.0


Cut = Callable[[Any], Iterator[tuple[Piece, np.ndarray]]]  # a source -> its pieces, without text, and their samples
Write = Callable[[list[np.ndarray]], list[str]]  # windows -> their texts, some at a time


def in_order(sources: Iterable[Any], cut: Cut, write: Write, batch_size: int) -> Iterator[Transcript]:
    """A transcript of each source, in their order. See ``Ears.transcripts``."""
    begun: deque[Transcript] = deque()
    waiting: list[tuple[Piece, Transcript, np.ndarray]] = []

    def work() -> None:
        waiting.sort(key=lambda each: len(each[2]))  # little padding in the encoder
        began = time.perf_counter()
        texts = write([samples for _, _, samples in waiting])
        rate = (time.perf_counter() - began) / max(1, sum(len(samples) for _, _, samples in waiting))
        for (piece, told, samples), text in zip(waiting, texts, strict=True):
            piece.text = text
            told.seconds += rate * len(samples)
        waiting.clear()

    for source in sources:
        told = Transcript()
        try:
            for piece, samples in cut(source):
                told.pieces.append(piece)
                waiting.append((piece, told, samples))
                if len(waiting) >= AHEAD * batch_size:
                    work()
        except AudioError as error:
            told.error = error
        begun.append(told)
        while begun and not any(other is begun[0] for _, other, _ in waiting):
            yield begun.popleft()
    work()
    yield from begun


def as_written(pieces: Iterable[tuple[Piece, np.ndarray]], write: Write, batch_size: int) -> Iterator[Piece]:
    """The pieces with their texts: the first alone, then more and more at once. See ``Ears.stream``."""
    waiting: list[tuple[Piece, np.ndarray]] = []
    size = 1

    def written() -> list[Piece]:
        texts = write([samples for _, samples in waiting]) if waiting else []
        done = [replace(piece, text=text) for (piece, _), text in zip(waiting, texts, strict=True)]
        waiting.clear()
        return done

    for each in pieces:
        waiting.append(each)
        if len(waiting) == size:
            yield from written()
            size = min(2 * size, batch_size)
    yield from written()

"""From windows of audio to transcripts: many sources in their order, or one as it is written."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from ..errors import AudioError
from .timing import Word, segments

AHEAD = 4  # batches of windows that are read before they are heard, those of a length together


class Said(NamedTuple):
    """The text of a window of audio, and when each of its words was said, from the window's start; [] if that is not known."""

    text: str = ""
    words: Sequence[Word] = ()


@dataclass(frozen=True)
class Piece:
    """A window of audio, from ``start`` to ``end`` (seconds), its text and, read by a lexical projector, its ``words``."""

    start: float
    end: float
    text: str = ""
    words: Sequence[Word] = ()

    def filled(self, said: Said) -> Piece:
        words = [Word(self.start + word.start, self.start + word.end, word.text) for word in said.words]
        return replace(self, text=said.text, words=words)

    @property
    def segments(self) -> list[Word]:
        """Sentences, or less of them (``timing.segments``); the whole where nobody knows when its words were said."""
        whole = [Word(self.start, self.end, self.text)] if self.text else []
        return segments(self.words) or whole


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
Write = Callable[[list[np.ndarray]], list[Said]]  # windows -> what is said in them, some at a time


def in_order(sources: Iterable[Any], cut: Cut, write: Write, batch_size: int) -> Iterator[Transcript]:
    """A transcript of each source, in their order. See ``Ears.transcripts``."""
    begun: deque[Transcript] = deque()
    waiting: list[tuple[int, Transcript, np.ndarray]] = []  # the number of a piece of a transcript

    def work() -> None:
        waiting.sort(key=lambda each: len(each[2]))  # little padding in the encoder
        began = time.perf_counter()
        texts = write([samples for _, _, samples in waiting])
        rate = (time.perf_counter() - began) / max(1, sum(len(samples) for _, _, samples in waiting))
        for (i, told, samples), said in zip(waiting, texts, strict=True):
            told.pieces[i] = told.pieces[i].filled(said)
            told.seconds += rate * len(samples)
        waiting.clear()

    for source in sources:
        told = Transcript()
        try:
            for piece, samples in cut(source):
                waiting.append((len(told.pieces), told, samples))
                told.pieces.append(piece)
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
        done = [piece.filled(said) for (piece, _), said in zip(waiting, texts, strict=True)]
        waiting.clear()
        return done

    for each in pieces:
        waiting.append(each)
        if len(waiting) == size:
            yield from written()
            size = min(2 * size, batch_size)
    yield from written()

"""Transcripts as players read them, SubRip and WebVTT, and as JSON."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator
from typing import Any

from .timing import Word
from .transcripts import Piece


def subtitles(pieces: Iterable[Piece], form: str) -> Iterator[str]:
    """Cue by cue, each with an empty line after it, ``srt`` or ``vtt``. Where nothing is said, nothing is shown."""
    point = "," if form == "srt" else "."
    if form == "vtt":
        yield "WEBVTT\n"
    for number, said in enumerate((said for piece in pieces for said in piece.segments), start=1):
        text = " ".join(said.text.split()).replace("-->", "->")  # a player would take it for the next cue
        head, text = (f"{number}\n", text) if form == "srt" else ("", html.escape(text, quote=False))
        yield f"{head}{_clock(said.start, point)} --> {_clock(said.end, point)}\n{text}\n"


def _clock(seconds: float, point: str) -> str:
    whole = round(seconds * 1000)
    return f"{whole // 3_600_000:02}:{whole // 60_000 % 60:02}:{whole // 1000 % 60:02}{point}{whole % 1000:03}"


def timed(words: Iterable[Word], name: str = "text") -> list[dict[str, Any]]:
    """To the millisecond, each word or segment under ``name``."""
    return [{"start": round(w.start, 3), "end": round(w.end, 3), name: w.text.strip()} for w in words]

"""Things to ask that call for a function: what is said, the tools, and which calls are right.

A source is one small module with ``load_tasks(split, root) -> list[ToolTask]``; one line in SOURCES names it.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..audio import RATE, decode
from ..errors import DataError
from ..packages import cache_root

SOURCES = {"spoken_orders": "orders", "bfcl": "bfcl", "home": "home"}


@dataclass(frozen=True)
class Accepted:
    """The right call: per argument the values that count as right; "" among them: the argument may be left out."""

    name: str
    arguments: dict[str, list[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class ToolTask:
    """``text`` as it is written, ``audio`` as somebody said it; where there is no recording, a voice that training never
    heard says the text. ``accepted`` is None where no tool fits and none may be called. ``group`` is counted apart, too.
    ``compare``: how strings are (evaluation/tools.py)."""

    id: str
    tools: list[dict[str, Any]]
    accepted: Accepted | None
    text: str | None = None
    audio: Path | None = None
    group: str = ""
    compare: Literal["words", "bfcl"] = "words"

    def load(self) -> np.ndarray:
        """(N,) float32 mono at 16 kHz. Raises AudioError."""
        return decode(self.audio if self.audio is not None else spoken(self.text or ""))


def tool(name: str, description: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """A tool as the OpenAI API has it."""
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def spoken(text: str) -> Path:
    """``text`` said by one of the voices that are held out of training (tts.HELD_OUT), made on first use."""
    import soundfile

    from .synth import speak
    from .tts import HELD_OUT

    digest = hashlib.sha256(text.encode()).hexdigest()
    voice = HELD_OUT[int(digest, 16) % len(HELD_OUT)]
    target = cache_root() / "data" / "spoken" / voice / f"{digest[:32]}.flac"
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(f".{target.stem}.{os.getpid()}.flac")
        soundfile.write(beside, speak(text, "kokoro", voice, 1.0, 1.0), RATE, subtype="PCM_16")
        os.replace(beside, target)
    return target


def load_tasks(spec: str, root: Path | None = None) -> list[ToolTask]:
    """The tasks of ``NAME[:SPLIT]``; ``root`` is the folder of a source that is not fetched. Raises DataError."""
    name, _, split = spec.partition(":")
    if name not in SOURCES:
        near = get_close_matches(name, SOURCES, n=1, cutoff=0.5)
        guess = f"did you mean {near[0]!r}? " if near else ""
        raise DataError(f"{spec}: no such source of tool tasks; {guess}there are {', '.join(SOURCES)}")
    tasks: list[ToolTask] = import_module(f".{SOURCES[name]}", __package__).load_tasks(split, root)
    return tasks

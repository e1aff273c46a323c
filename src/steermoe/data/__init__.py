"""Sources of speech with text: ``load_source("fotaq:train")`` or a manifest of your own.

A source is one small module with ``load(split, root) -> list[Example]``; one line in SOURCES names it.
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path

from ..errors import DataError
from .manifest import Example, read_manifest, write_manifest

__all__ = ["SOURCES", "Example", "load_source", "read_manifest", "write_manifest"]

Source = Callable[[str, Path | None], list[Example]]


def _source(module: str, default: str) -> Source:
    """The ``load`` of a module that is imported when it is called; an empty split becomes ``default``."""

    def load(split: str, root: Path | None = None) -> list[Example]:
        examples: list[Example] = import_module(f".{module}", __name__).load(split or default, root)
        return examples

    return load


SOURCES: dict[str, Source] = {
    "fotaq": _source("fotaq", "train"),
    "asterisk": _source("asterisk", "test"),
    "librivox": _source("librivox", "test"),
    "questions": _source("questions", "test"),
    "sounds": _source("sounds", "train"),
    "synth": _source("synth", "train"),
}


def load_source(spec: str, root: Path | None = None) -> list[Example]:
    """The examples of ``NAME[:SPLIT]`` (see SOURCES) or of a manifest (a path that ends in .jsonl or exists).

    ``root`` is where a manifest's relative audio paths start, or the folder of a source that is not fetched.
    Raises DataError, which names the nearest source if there is none of that name.
    """
    path = Path(spec).expanduser()
    name, _, split = spec.partition(":")
    if name in SOURCES:
        return SOURCES[name](split, root)
    if path.is_file():
        return read_manifest(path, root)
    if path.suffix == ".jsonl" or path.parent != Path("."):
        raise DataError(f"{spec}: no such manifest; the sources by name are {', '.join(SOURCES)}")
    near = get_close_matches(name, SOURCES, n=1, cutoff=0.5)
    guess = f"did you mean {near[0]!r}? " if near else ""
    raise DataError(f"{spec}: no such source; {guess}there are {', '.join(SOURCES)}, or give a manifest (.jsonl)")

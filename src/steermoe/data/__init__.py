"""Sources of speech with text: ``load_source("fotaq:train")`` or a manifest of your own.

A source is one small module with ``load(split, root, **options) -> list[Example]``; one line in SOURCES names it.
Options are written as in an address: ``parquet:train.parquet?text=sentence``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from urllib.parse import parse_qsl

from ..errors import DataError
from .manifest import Example, read_manifest, write_manifest

__all__ = ["SOURCES", "Example", "load_source", "read_manifest", "write_manifest"]

Source = Callable[..., list[Example]]


def _source(module: str, default: str) -> Source:
    """The ``load`` of a module that is imported when it is called; an empty split becomes ``default``.

    Raises DataError for an option that it does not take.
    """

    def load(split: str, root: Path | None = None, **options: str) -> list[Example]:
        function = import_module(f".{module}", __name__).load
        try:
            inspect.signature(function).bind(split, root, **options)
        except TypeError as error:
            raise DataError(f"{module}: takes no such option ({error})") from None
        examples: list[Example] = function(split or default, root, **options)
        return examples

    return load


SOURCES: dict[str, Source] = {
    "fotaq": _source("fotaq", "train"),
    "bass": _source("bass", "train"),
    "drascula": _source("drascula", "train"),
    "asterisk": _source("asterisk", "test"),
    "librivox": _source("librivox", "test"),
    "questions": _source("questions", "test"),
    "sounds": _source("sounds", "train"),
    "quiet": _source("quiet", "train"),
    "synth": _source("synth", "train"),
    "librispeech": _source("librispeech", "test-clean"),
    "aishell1": _source("aishell1", "test"),
    "aishell2": _source("aishell2", "test"),
    "clotho_aqa": _source("clotho_aqa", "test"),
    "common_voice": _source("common_voice", "test"),
    "folder": _source("folder", "."),
    "parquet": _source("parquet", "."),
    "webdataset": _source("webdataset", "."),
    "hub": _source("hub", ""),
}


def load_source(spec: str, root: Path | None = None) -> list[Example]:
    """The examples of ``NAME[:SPLIT][?OPTION=VALUE&...]`` (see SOURCES) or of a manifest (a path that ends in .jsonl or exists).

    ``root`` is where a manifest's relative audio paths start, or the folder of a source that is not fetched.
    Raises DataError, which names the nearest source if there is none of that name.
    """
    path = Path(spec).expanduser()
    name, _, split = spec.partition(":")
    if name in SOURCES:
        split, _, options = split.partition("?")
        try:
            told = dict(parse_qsl(options, keep_blank_values=True, strict_parsing=True)) if options else {}
        except ValueError:
            raise DataError(f"{spec}: {options!r} is no OPTION=VALUE") from None
        return SOURCES[name](split, root, **told)
    if path.is_file():
        return read_manifest(path, root)
    if path.is_dir():
        raise DataError(
            f"{spec}: is a folder: write folder:{spec} if each recording's text lies beside it, or name a manifest in it"
        )
    if path.suffix == ".jsonl" or path.parent != Path("."):
        raise DataError(f"{spec}: no such manifest; the sources by name are {', '.join(SOURCES)}")
    near = get_close_matches(name, SOURCES, n=1, cutoff=0.5)
    guess = f"did you mean {near[0]!r}? " if near else ""
    raise DataError(f"{spec}: no such source; {guess}there are {', '.join(SOURCES)}, or give a manifest (.jsonl)")

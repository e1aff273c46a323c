"""The suites by name. Each is a module here with ``run(listener, options) -> result``, the value of ``--json``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from .collect import Shard

if TYPE_CHECKING:
    from ..data import Example
    from .listener import Listener


@dataclass(frozen=True)
class Suite:
    """``data``: what it is run on where nothing is named, None if something must be. ``examples``: whether that is a source
    or manifest of examples; a suite without brings, or loads, its own tasks."""

    data: str | None
    examples: bool = True


SUITES = {
    "asr": Suite(None),  # word error rates of a transcriber
    "aqa": Suite(None),  # questions about audio, answered right or wrong
    "gap": Suite("questions:test"),  # the same questions as text, as speech and through a transcript
    "robustness": Suite(None),  # asr under noise, speeds, rooms, telephone and gain
    "silence": Suite("quiet:test"),  # what is heard where nothing is said
    "tools": Suite(None, examples=False),  # the right function with the right arguments
    "text": Suite("", examples=False),  # proof that text behaviour is untouched
}


@dataclass(frozen=True)
class Options:
    """What is measured on, and how; who is measured is the listener."""

    examples: Sequence[Example] = ()
    data: str = ""
    root: Path | None = None
    limit: int | None = None
    normalizer: str = "english"
    batch_size: int = 8
    baseline: bool = False
    heard: bool = False
    tool_choice: str = "auto"
    out: Path | None = None
    shard: Shard | None = None


def examples_for(
    name: str, data: str | None, root: Path | None = None, limit: int | None = None
) -> tuple[list[Example], str]:
    """The examples that suite ``name`` runs on, and what they are called in results.

    Raises UsageError for a suite that there is not, or that needs ``data`` and has none; DataError.
    """
    from ..data import load_source

    if name not in SUITES:
        raise UsageError(f"--suite {name}: there are {', '.join(SUITES)}")
    if (data := data or SUITES[name].data) is None:
        from ..data.tool_tasks import SOURCES

        wanted = "NAME[:SPLIT] or a manifest" if SUITES[name].examples else f"one of {', '.join(SOURCES)}"
        raise UsageError(f"--suite {name} needs --data SOURCE: {wanted}")
    if not SUITES[name].examples:
        return [], data
    examples = load_source(data, root)
    return (examples, data) if limit is None else (examples[:limit], f"{data}[:{limit}]")


def suite(name: str) -> Callable[[Listener, Options], dict[str, Any]]:
    """The ``run`` of a suite's module."""
    run: Callable[[Listener, Options], dict[str, Any]] = import_module(f".{name}", __package__).run
    return run

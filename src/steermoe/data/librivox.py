"""``librivox``: five sentences of "Sense and Sensibility", 25 seconds, that come with this package.

A LibriVox reading (public domain), cut and transcribed for the tests of PocketSphinx (BSD licence: see
``examples/LICENSE`` beside the audio). For trying things out; far too few to measure anything.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import DataError
from .manifest import Example, read_manifest

EXAMPLES = Path(__file__).parent.parent / "examples"


def load(split: str = "test", root: Path | None = None) -> list[Example]:
    """The five examples; nothing is fetched and ``root`` is not used."""
    if split not in ("", "test"):
        raise DataError(f"librivox has no split {split!r}; it has test")
    return read_manifest(EXAMPLES / "transcripts.jsonl")

"""``librispeech``: read English, 1,000 hours (Panayotov et al., 2015; openslr.org/12, CC BY 4.0), as its archives unpack.

``SPLIT/SPEAKER/CHAPTER/SPEAKER-CHAPTER-NUMBER.flac`` beside ``SPEAKER-CHAPTER.trans.txt``; texts are in capitals.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import DataError
from .manifest import Example
from .shipped import choose, find, pairs, there

SPLITS = (
    "train-clean-100", "train-clean-360", "train-other-500", "dev-clean", "dev-other", "test-clean", "test-other",
)  # fmt: skip


def load(split: str, root: Path | None = None) -> list[Example]:
    """The utterances of one split; ``root`` is the folder LibriSpeech or the one above. Raises DataError."""
    choose("librispeech", split, SPLITS)
    folder = find(f"librispeech:{split}", root, split, f"LibriSpeech/{split}")
    examples = []
    for book in sorted(folder.glob("*/*/*.trans.txt")):
        for number, name, text in pairs(book):
            audio = there(book.with_name(f"{name}.flac"), f"{book}:{number}")
            examples.append(Example(name, audio, text, speaker=name.split("-")[0], language="en"))
    if not examples:
        raise DataError(f"librispeech:{split}: {folder} holds no */*/*.trans.txt; unpack the archive again")
    return examples

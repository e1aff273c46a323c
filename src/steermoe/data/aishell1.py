"""``aishell1``: read Mandarin, 178 hours (Bu et al., 2017; openslr.org/33, Apache 2.0), as data_aishell.tgz unpacks.

``wav/SPLIT/SPEAKER/NAME.wav`` and one list of all texts, whose words stand apart. The speakers' own archives
(``wav/S0002.tar.gz``) have to be unpacked, too.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import DataError
from .manifest import Example
from .shipped import choose, find, joined, pairs

SPLITS = ("train", "dev", "test")


def load(split: str, root: Path | None = None) -> list[Example]:
    """The utterances of one split that have a text (a few have none); ``root`` is data_aishell or the folder above."""
    choose("aishell1", split, SPLITS)
    book = "transcript/aishell_transcript_v0.8.txt"
    texts = {name: joined(text) for _, name, text in pairs(find("aishell1", root, book, f"data_aishell/{book}"))}
    folder = find(f"aishell1:{split}", root, f"wav/{split}", f"data_aishell/wav/{split}")
    examples = [
        Example(audio.stem, audio, texts[audio.stem], speaker=audio.parent.name, language="zh")
        for audio in sorted(folder.glob("*/*.wav"))
        if audio.stem in texts
    ]
    if not examples:
        raise DataError(f"aishell1:{split}: {folder} holds no */*.wav that has a text; unpack wav/*.tar.gz there")
    return examples

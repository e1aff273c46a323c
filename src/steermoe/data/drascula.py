"""``drascula``: acted English from the game Drascula: The Vampire Strikes Back (Debian's package of it).

Fifty minutes, 11 kHz, 8 bits, ten characters. The licence allows free redistribution with the game's readme; the audio is
unpacked into the cache and never becomes part of this project.

A clip (``.ALS``) is bare samples; its name is a character's letters and the number of the text in that character's table. All
tables are in ``drascula.dat`` (big-endian), in six languages. Texts are in capitals.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..packages import Package, unpacked
from .held_out import load_package
from .manifest import Example, write_manifest
from .texts import sentence_case

PACKAGE = Package("deb", "drascula", "1.0+ds4-2", "ed4af8e2d41ad446e2f3b73533daa1804e2f13f62f596c0b02b8dc39544f22b4")
LAYOUT = "v2"  # of the unpacked folder; a new one when its contents change
RATE = 11_025
TABLES = 7251  # where the number of languages is, which the tables follow
# The letters of a table's clips -> who speaks, in the order of the tables.
CHARACTERS = {
    "": "John Hacker", "D": "Drascula", "B": "drunkard", "BJ": "BJ", "E": "monster", "I": "Igor", "L": "werewolf",
    "P": "pianist", "T": "innkeeper", "VB": "Von Braun",
}  # fmt: skip
# Words that are written with capitals, in these texts.
NAMES = (
    "America Billie Braun Christmas Desiderio Drascula Elvis Emilio Emma Garcia Gibraltar God Hacker Hamlet Igor Jesus John Johnny "
    "Oxford Plato Tchaikovsky Transilvania Transilvanian Yoda BJ British Japanese OK TV"
).split()


def load(split: str = "train", root: Path | None = None) -> list[Example]:
    """The examples of ``train`` or ``valid``; ``root`` is not used. Fetches the package on first use.

    No line of text is on both sides, nor in a test. The speakers are the same on both.
    """
    return load_package("drascula", split, PACKAGE, LAYOUT, _build)


def _build(scratch: Path) -> None:
    import soundfile

    folder = unpacked(PACKAGE) / "usr/share/scummvm/drascula/en"
    rows = []
    for letters, texts in tables_of((folder / "drascula.dat").read_bytes()):
        for number, text in enumerate(texts, start=1):
            clip = folder / f"{letters}{number}.ALS"
            if not clip.is_file() or not (text := clean(text)):
                continue
            samples = np.frombuffer(clip.read_bytes(), np.uint8).astype(np.float32) / 128 - 1
            name = clip.stem
            soundfile.write(scratch / f"{name}.flac", samples, RATE, subtype="PCM_S8")
            row = {"audio": f"{name}.flac", "text": text, "duration": len(samples) / RATE, "id": name}
            rows.append(row | {"speaker": CHARACTERS[letters], "language": "en"})
    write_manifest(scratch / "manifest.jsonl", rows)


def clean(text: str) -> str:
    """A line with the capitals of a sentence and of NAMES; empty if it is no plain text."""
    text = " ".join(text.split())
    if not re.fullmatch(r"[A-Z .,:;!?'\"-]*[A-Z]{2}[A-Z .,:;!?'\"-]*", text):
        return ""
    names = {name.lower(): name for name in NAMES}
    return sentence_case(re.sub(r"[a-z]+", lambda word: names.get(word[0], word[0]), text.lower()))


def tables_of(data: bytes) -> Iterator[tuple[str, list[str]]]:
    """Each character's letters and English texts, from number 1.

    A table: how many texts, then for each language its size and that many bytes, in which before every text stands how far behind it
    the next one is.
    """
    (languages,) = struct.unpack_from(">H", data, TABLES)
    at = TABLES + 2
    for letters in CHARACTERS:
        (count,) = struct.unpack_from(">H", data, at)
        at += 2
        for language in range(languages):
            (size,) = struct.unpack_from(">H", data, at)
            if language == 0:
                yield letters, _texts(data[at + 2 : at + 2 + size], count)
            at += 2 + size


def _texts(data: bytes, count: int) -> list[str]:
    texts, at = [], 4
    for _ in range(count - 1):  # the first, number 0, is empty
        at += struct.unpack_from(">H", data, at - 2)[0]
        texts.append(data[at : data.index(b"\0", at)].decode("latin-1"))
    return texts

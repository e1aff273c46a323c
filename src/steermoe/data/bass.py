"""``bass``: acted British English from the game Beneath a Steel Sky (Debian's package of it).

Nearly two hours, 11 kHz, 8 bits, many speakers, whom the files do not name. The licence allows free
redistribution with the game's readme; the audio is unpacked into the cache and never becomes part of this project.

``sky.dnr`` is the index of ``sky.dsk`` (integers are little-endian): a count, then number (2 bytes), offset and size (3 each) of
every file, with a flag or two in their highest bits. Files are 22 bytes of header and, mostly, RNC data (``unpack``).
Texts are in eight files of Huffman codes, whose tree only the game's program has; the clip of a text is found by its number.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..packages import Package, unpacked
from .held_out import load_package
from .manifest import Example, write_manifest
from .texts import sentence_case

PACKAGE = Package(
    "deb", "beneath-a-steel-sky", "0.0372-8", "e2a25c880220c26a4dfd42904b878cc655afa1c72895f9c932befbd078622934"
)
LAYOUT = "v2"  # of the unpacked folder; a new one when its contents change
RATE = 11_025
HEADER = 22
TEXTS, CLIPS = 60_600, 50_000  # numbers of the first file of English texts and of the first clip
SECTIONS = (0, 600, 1100, 2430, 3380, 4530, 5080, 5230)  # the first clip of each section of texts

CAPITALS = ("LINC", "OK", "ID", "TV", "CD")  # words that are not just stressed

# The tree, a node before its two subtrees: ^ a node, ~ a character that English lines do not have, else a character.
TREE = (
    "^^^ ^ea^^^os^tn^^.ir^^^^^\0Eu^mA^^^lI^dR^^NST^^^^^Ohc^Dg^^^LC^pU^^!yM^^^^^PvH^?b^^^'f,^GB^^^^^VkF^qw^^^K-W^J~"
    '^^^^zY^j~^^^Q~)^^Z~~^^^^^~~~^~:^^^~~~^^xX~^^^^^~~2^^0~1^^^~(~^~~^^^^39^~4^^^~8~^"~^^^^&~^56^^~~^~~^^^^~7~^^~~^~~~'
)


def load(split: str = "train", root: Path | None = None) -> list[Example]:
    """The examples of ``train`` or ``valid``; ``root`` is not used. Fetches the package on first use.

    No line of text is on both sides, nor in a test. The speakers are the same on both.
    """
    return load_package("bass", split, PACKAGE, LAYOUT, _build)


def _build(scratch: Path) -> None:
    import soundfile

    folder = unpacked(PACKAGE) / "usr/share/scummvm/beneath-a-steel-sky"
    disk = Disk((folder / "sky.dnr").read_bytes(), (folder / "sky.dsk").read_bytes())
    rows = []
    for section, first in enumerate(SECTIONS):
        for number, text in enumerate(texts_of(disk.read(TEXTS + section))):
            if CLIPS + first + number not in disk.entries or not (text := clean(text)):
                continue
            name = f"{section}-{number:04d}"
            samples = np.frombuffer(disk.read(CLIPS + first + number)[HEADER:], np.uint8).astype(np.float32) / 128 - 1
            soundfile.write(scratch / f"{name}.flac", samples, RATE, subtype="PCM_S8")
            rows.append({"audio": f"{name}.flac", "text": text, "duration": len(samples) / RATE, "id": name})
    write_manifest(scratch / "manifest.jsonl", [row | {"speaker": "someone", "language": "en"} for row in rows])


def clean(text: str) -> str:
    """A line as it is spoken: without asides in brackets, and STRESSED words as others; empty if it is no plain text."""
    text = " ".join(re.sub(r"\([^)]*\)", " ", text).split())
    if not re.fullmatch(r"[A-Za-z0-9 .,:;!?'\"&-]*[A-Za-z][A-Za-z0-9 .,:;!?'\"&-]*", text):
        return ""
    return sentence_case(
        re.sub(r"\b(A|[A-Z]+('?[A-Z]+)+)\b", lambda m: m[0] if m[0] in CAPITALS else m[0].lower(), text)
    )


class Disk:
    """The files of ``sky.dsk`` by number."""

    def __init__(self, index: bytes, data: bytes) -> None:
        (count,) = struct.unpack_from("<I", index)
        if len(index) != 4 + 8 * count:
            raise DataError(f"sky.dnr has {len(index)} bytes for {count} files: not the file of {PACKAGE.version}")
        self.data = data
        self.entries: dict[int, tuple[int, int]] = {}
        for at in range(4, len(index), 8):
            self.entries[int.from_bytes(index[at : at + 2], "little")] = (
                int.from_bytes(index[at + 2 : at + 5], "little"),
                int.from_bytes(index[at + 5 : at + 8], "little"),
            )

    def read(self, number: int) -> bytes:
        """A file, unpacked; with its header, unless bit 22 of its size says that it has none."""
        offset, size = self.entries[number]
        start = (offset & 0x7FFFFF) << (4 if offset >> 23 else 0)
        data = self.data[start : start + (size & 0x3FFFFF)]
        if size >> 23 or not data[0] & 0x80:
            return data
        return (b"" if size >> 22 & 1 else data[:HEADER]) + unpack(data[HEADER:])


def texts_of(data: bytes) -> Iterator[str]:
    """The texts of one file, by number from 0.

    Two offsets, of a table of lengths and of the codes; the lengths of blocks of 32 texts; the table, one byte for each text but the
    last of a block. Lengths are in units of two bits; in the table, the highest bit multiplies by eight.
    """
    lengths, codes, *_ = struct.unpack_from("<2H", data)
    blocks = (lengths - 4) // 2 + 1
    bits = "".join(f"{byte:08b}" for byte in data[codes:])
    start = 0
    for block in range(blocks):
        at = start
        for number in range(32):
            if 2 * at >= len(bits):
                return
            yield _decode(bits, 2 * at)
            length = data[lengths + 32 * block + number]
            at += (length & 0x7F) << 3 if length & 0x80 else length
        if block < blocks - 1:
            start += struct.unpack_from("<H", data, 4 + 2 * block)[0]


def _codes(tree: str) -> dict[str, str]:
    """Code -> character of TREE's leaves."""
    codes, waiting = {}, [""]
    for node in tree:
        code = waiting.pop()
        if node == "^":
            waiting += [code + "1", code + "0"]
        else:
            codes[code] = node
    return codes


_CHARACTERS = _codes(TREE)


def _decode(bits: str, at: int) -> str:
    """The text whose codes begin at bit ``at``; it ends with a zero."""
    text, code = "", ""
    for bit in bits[at : at + 4096]:
        code += bit
        if code in _CHARACTERS:
            if _CHARACTERS[code] == "\0":
                break
            text, code = text + _CHARACTERS[code], ""
    return text


class _Bits:
    """Bits of little-endian words of 16, lowest first; whole bytes may stand between two words."""

    def __init__(self, data: bytes, at: int) -> None:
        self.data, self.at = data, at
        self.buffer = self.count = 0

    def peek(self, count: int) -> int:
        held = self.buffer
        if count > self.count:
            held |= int.from_bytes(self.data[self.at : self.at + 2], "little") << self.count
        return held & ((1 << count) - 1)

    def take(self, count: int) -> int:
        value = self.peek(count)
        if count > self.count:
            self.buffer |= int.from_bytes(self.data[self.at : self.at + 2], "little") << self.count
            self.at += 2
            self.count += 16
        self.buffer >>= count
        self.count -= count
        return value

    def table(self) -> list[tuple[int, int, int]]:
        """(length, code, symbol) of a canonical Huffman code, shortest first; codes are read lowest bit first."""
        lengths = [self.take(4) for _ in range(self.take(5))]
        code, table = 0, []
        for length in range(1, 16):
            code <<= 1
            for symbol, its in enumerate(lengths):
                if its == length:
                    table.append((length, int(f"{code:0{length}b}"[::-1], 2), symbol))
                    code += 1
        return table

    def value(self, table: list[tuple[int, int, int]]) -> int:
        """A number: its symbol is how many binary digits it has."""
        ahead = self.peek(16)
        for length, code, symbol in table:
            if ahead & ((1 << length) - 1) == code:
                self.take(length)
                return symbol if symbol < 2 else 1 << (symbol - 1) | self.take(symbol - 1)
        raise DataError("RNC data: a code that is not in its table")


def unpack(data: bytes) -> bytes:
    """RNC ProPack data of method 1: stretches of plain bytes in turn with repetitions of earlier ones. Raises DataError."""
    if data[:4] != b"RNC\1":
        raise DataError(f"RNC data begins with {data[:4]!r}")
    (size,) = struct.unpack_from(">I", data, 4)
    bits, out = _Bits(data, 18), bytearray()
    bits.take(2)
    for _ in range(data[17]):  # chunks
        plain, distance, length = bits.table(), bits.table(), bits.table()
        for left in range(bits.take(16), 0, -1):
            if count := bits.value(plain):
                out += data[bits.at : bits.at + count]
                bits.at += count
            if left > 1:
                start = len(out) - bits.value(distance) - 1
                for at in range(start, start + bits.value(length) + 2):
                    out.append(out[at])
    if len(out) != size:
        raise DataError(f"RNC data: {len(out)} bytes where {size} are promised")
    return bytes(out)

"""Beneath a Steel Sky: files packed with RNC, texts in Huffman codes, lines as they are spoken."""

from __future__ import annotations

import struct

import pytest

from steermoe.data import bass, load_source
from steermoe.data.fotaq import line_key
from steermoe.errors import DataError


class Packer:
    """Writes what bass.unpack reads: bits into words of 16, lowest first, plain bytes between them."""

    def __init__(self) -> None:
        self.out = bytearray()
        self.word, self.used = -2, 16

    def bits(self, value: int, count: int) -> None:
        for i in range(count):
            if self.used == 16:
                self.word, self.used = len(self.out), 0
                self.out += b"\0\0"
            self.out[self.word + self.used // 8] |= (value >> i & 1) << self.used % 8
            self.used += 1

    def table(self, lengths: list[int]) -> None:
        self.bits(len(lengths), 5)
        for length in lengths:
            self.bits(length, 4)

    def file(self, size: int, chunks: int = 1) -> bytes:
        return b"RNC\1" + struct.pack(">2I", size, len(self.out)) + bytes(5) + bytes([chunks]) + bytes(self.out)


def packed() -> Packer:
    """Writes "abc", six bytes from three back (they overlap), "."."""
    packer = Packer()
    packer.bits(0, 2)
    packer.table([0, 1, 1])  # plain: symbols 1 (code 0) and 2 (code 1)
    packer.table([0, 0, 1])  # distance
    packer.table([0, 0, 0, 1])  # length
    packer.bits(2, 16)
    packer.bits(1, 1), packer.bits(1, 1)  # symbol 2 and one digit behind its first: 3
    packer.out += b"abc"
    packer.bits(0, 1), packer.bits(0, 1)  # 2, a distance of 3
    packer.bits(0, 1), packer.bits(0, 2)  # 4, a length of 6
    packer.bits(0, 1)  # 1
    packer.out += b"."
    return packer


def test_plain_bytes_and_repetitions_are_unpacked() -> None:
    assert bass.unpack(packed().file(10)) == b"abcabcabc."


def test_data_that_is_broken_is_refused() -> None:
    with pytest.raises(DataError, match="10 bytes where 11 are promised"):
        bass.unpack(packed().file(11))
    with pytest.raises(DataError, match="begins with"):
        bass.unpack(b"RNC\2" + packed().file(10)[4:])


def test_a_disk_gives_files_with_and_without_headers() -> None:
    header = b"\x80" + bytes(21)
    files = [header + packed().file(10), b"\x80plain" + bytes(10)]
    data = files[0] + bytes(-len(files[0]) % 16) + files[1]
    second = (len(files[0]) + 15) // 16

    def entry(number: int, offset: int, size: int) -> bytes:
        return struct.pack("<H", number) + offset.to_bytes(3, "little") + size.to_bytes(3, "little")

    index = struct.pack("<I", 3) + entry(7, 0, len(files[0])) + entry(8, 0, len(files[0]) | 1 << 22)
    index += entry(9, second | 1 << 23, len(files[1]) | 1 << 23)
    disk = bass.Disk(index, data)
    assert disk.read(7) == header + b"abcabcabc." and disk.read(8) == b"abcabcabc." and disk.read(9) == files[1]
    with pytest.raises(DataError, match=r"sky\.dnr"):
        bass.Disk(index + b"x", data)


def text_file(texts: list[str]) -> bytes:
    """What bass.texts_of reads: every text on a pair of bits, lengths of texts, and of blocks of 32."""
    codes = {character: code for code, character in bass._CHARACTERS.items()}
    coded = ["".join(codes[c] for c in text + "\0") for text in texts]
    coded = [code + "0" * (len(code) % 2) for code in coded]
    coded = [code + "0" * (-len(code) % 16 if len(code) >= 256 else 0) for code in coded]  # steps of eight pairs
    blocks = [coded[i : i + 32] for i in range(0, len(coded), 32)]
    lengths = bytearray(32 * len(blocks))
    for b, block in enumerate(blocks):
        for i, code in enumerate(block):
            pairs = len(code) // 2
            lengths[32 * b + i] = pairs if pairs < 128 else 0x80 | pairs >> 3
    sizes = struct.pack(f"<{len(blocks) - 1}H", *(sum(map(len, block)) // 2 for block in blocks[:-1]))
    bits = "".join(coded)
    bits += "0" * (-len(bits) % 8)
    body = bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))
    at = 4 + len(sizes)
    return struct.pack("<2H", at, at + len(lengths)) + sizes + bytes(lengths) + body


def test_texts_are_found_by_their_numbers() -> None:
    texts = [f"Line {'a' * (n % 7)}, n" for n in range(40)] + ["It is a long line " * 8, "Why?"]
    read = list(bass.texts_of(text_file(texts)))
    assert read[: len(texts)] == texts


def test_lines_are_cleaned() -> None:
    assert bass.clean("I don't WORK here. WHAT do you want?") == "I don't work here. What do you want?"
    assert bass.clean("I'LL ask A man of LINC's (sighs) AGAIN. A fool!") == "I'll ask a man of LINC's again. A fool!"
    assert bass.clean("~~~") == bass.clean("?") == ""


@pytest.mark.slow
def test_the_real_bass() -> None:
    sides = {name: load_source(f"bass:{name}") for name in ("train", "valid")}
    train, valid = ({line_key(e.text) for e in side} for side in sides.values())
    assert len(sides["train"]) > 3200 and len(sides["valid"]) > 100 and not train & valid
    assert 1.7 < sum(e.duration or 0 for e in sides["train"]) / 3600 < 2.0
    assert "Do you know who I am, lad?" in {e.text for e in sides["train"]}
    assert all(len(e.load()) == pytest.approx(16_000 * (e.duration or 0), abs=2) for e in sides["valid"])

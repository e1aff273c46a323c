"""What an Ogg file holds (RFC 3533): decoders stop behind its first recording, and where it was cut off, and tell neither."""

from __future__ import annotations

from mmap import mmap

HEADER, BEGINS = 27, 2  # bytes of a page before its table; the flag of a stream's first page


def wrong(data: bytes | mmap) -> str | None:
    """Why ``data`` cannot be heard whole: it was cut off within a page, or another recording follows the first."""
    at, going = 0, False
    while data[at : at + 4] == b"OggS":
        if data[at + 5] & BEGINS and going:
            return "holds several recordings one behind another (a chained Ogg); split it"
        going = going or not data[at + 5] & BEGINS  # all streams of a recording begin before any goes on
        table = data[at + HEADER : at + HEADER + data[at + HEADER - 1]]
        at += HEADER + len(table) + sum(table)
    return f"truncated, {at - len(data)} bytes of its last page are missing; copy it again" if at > len(data) else None

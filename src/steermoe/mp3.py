"""How long an MP3 is (ISO/IEC 11172-3 and 13818-3, layer III).

Most say it in their first frame, by Xing's header. One that was streamed or piped does not, and decoders then guess from the rate
of the first frames, and stop where the guess says: where the rate varies, too early. Its frames are counted here, and said.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from mmap import mmap

Data = bytes | mmap
KBITS = {
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),  # MPEG 1
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),  # MPEG 2 and 2.5
}
HERTZ = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}  # by version
BEHIND = 512  # bytes of tags that may follow the last frame
SIDE = {(True, False): 32, (True, True): 17, (False, False): 17, (False, True): 9}  # bytes; MPEG 1?, mono?


def _frame(data: Data, at: int) -> tuple[int, int, int] | None:
    """(bytes, samples, hertz) of the frame whose header lies at ``at``; None where there is none."""
    if at + 4 > len(data) or data[at] != 0xFF or data[at + 1] & 0xE6 != 0xE2:  # eleven ones, then layer III
        return None
    version, rate, which = data[at + 1] >> 3 & 3, data[at + 2] >> 4, data[at + 2] >> 2 & 3
    if version not in HERTZ or not 0 < rate < 15 or which == 3:
        return None
    samples, hertz = 1152 if version == 3 else 576, HERTZ[version][which]
    return samples // 8 * KBITS[version == 3][rate] * 1000 // hertz + (data[at + 2] >> 1 & 1), samples, hertz


def _frames(data: Data) -> Iterator[tuple[int, int, int]]:
    """(place, samples, hertz) of every frame, past what lies before and between them."""
    at = 10 + sum((b & 127) << 7 * i for i, b in enumerate(data[9:5:-1])) if data[:3] == b"ID3" else 0
    behind = False  # a frame
    while 0 <= at < len(data) - 4:
        found = _frame(data, at)
        # Bytes of anything may look like a header: it follows a frame, or another follows it.
        if behind := found is not None and (behind or _frame(data, at + found[0]) is not None):
            size, samples, hertz = found
            yield at, samples, hertz
            at += size
        else:
            at = data.find(b"\xff", at + 1)


def told(data: Data, guess: int) -> bytes | None:
    """The MP3 ``data`` behind a first frame that says how many follow, if it has none and ``guess`` (samples) is not what it holds,
    or has one that speaks of less: of the first of several that were joined."""
    frames = _frames(data)
    if (first := next(frames, None)) is None:
        return None
    at, samples, hertz = first
    head, mpeg1 = data[at : at + 4], samples == 1152
    side = SIDE[mpeg1, head[3] >> 6 == 3]
    marks = at + 4 + side
    known: int | None = None
    if data[marks : marks + 4] in (b"Xing", b"Info"):
        flags, known, size = struct.unpack(">III", data[marks + 4 : marks + 16])
        if flags & 1 == 0 or (flags & 2 and len(data) - at < size + BEHIND):
            return None
    elif data[at + 36 : at + 40] == b"VBRI":
        known = struct.unpack(">I", data[at + 50 : at + 54])[0]
    places = [place for place, *_ in frames]
    count = len(places) + (known is None)  # a header's own frame holds no sound
    if known is not None:
        if count <= known + 1:  # fewer are another's to tell
            return None
        at = places[0]  # joined: what it says is of the first part alone
    elif abs(samples * count - guess) <= samples:
        return None
    # A header as the first, but without a checksum or padding, and of 64 kbit/s, which has room.
    header = bytes([head[0], head[1] | 1, KBITS[mpeg1].index(64) << 4 | head[2] & 0b1100, head[3]])
    size = samples // 8 * 64_000 // hertz
    body = b"Xing" + struct.pack(">II", 1, count)
    return (header + bytes(side) + body).ljust(size, b"\0") + data[at:]

"""From anything that holds speech to what a model reads: mono, 16 kHz, float32.

Files are read by libsndfile (WAV, FLAC, MP3, Ogg Vorbis and Opus, AIFF ...) in blocks, so that two hours at
192 kHz need no more memory than their result. Nothing is ever cut silently: what is too long, broken or
empty is refused with an AudioError that names the file and the fix.
"""

from __future__ import annotations

import io
import mmap
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from . import mp3, ogg
from .errors import AudioError

RATE = 16_000  # samples a second, of everything that leaves this module
MAX_DURATION = 7200.0  # seconds
SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aiff", ".aif", ".au", ".caf", ".w64", ".rf64")
RATES = (2_000, 768_000)  # what a header may claim, in Hz
STREAM = 0x7FFF0000  # bytes: what a header that was never finished claims, or more
UNKNOWN = 1 << 60  # frames: what libsndfile says of a length that a header does not
BLOCK = 1 << 20  # samples read at a time
QUIET = 0.05  # seconds: a cut is made in the middle of the quietest stretch of this length
FLAC = b"fLaC\0\0\0\x22"  # how each begins
_UNREADABLE = "not audio that can be read (WAV, FLAC, MP3, Ogg Vorbis and Opus can); convert it to FLAC first"


class Readable(Protocol):
    """What gives all of an encoded clip."""

    def read(self) -> bytes: ...


AudioSource = str | Path | bytes | BinaryIO | Readable | np.ndarray


def decode(
    source: AudioSource,
    sampling_rate: int | None = None,
    max_duration: float = MAX_DURATION,
    *,
    start: float | None = None,
    end: float | None = None,
) -> np.ndarray:
    """(N,) float32 mono at 16 kHz, from a path, encoded bytes, a binary file object or an array.

    Channels are averaged. An array needs its ``sampling_rate`` (files state their own); of a 2-D array the
    shorter axis is the channels; integers are scaled to [-1, 1). ``start`` and ``end`` (seconds) choose a
    part. Raises AudioError for whatever is absent, empty, broken, not finite or longer than
    ``max_duration`` seconds: that is checked before anything is decoded.
    """
    return np.ascontiguousarray(np.concatenate(list(_read(source, sampling_rate, max_duration, start, end))))


def pieces(
    source: AudioSource, seconds: float, sampling_rate: int | None = None, max_duration: float = MAX_DURATION
) -> Iterator[np.ndarray]:
    """``windows(decode(source), seconds)``, read as it is asked for: memory does not grow with the length of a file."""
    longest = _longest(seconds)
    held = np.zeros(0, np.float32)
    for block in _read(source, sampling_rate, max_duration):
        held = np.concatenate([held, block])
        while len(held) > longest:
            cut = _quietest(held[:longest])
            yield held[:cut].copy()
            held = held[cut:]
    yield held


def duration(source: str | Path | bytes | BinaryIO | Readable) -> float:
    """Seconds, as the header says: nothing is decoded."""
    name = _name(source)
    with _opened(source, name, heard=False) as file:
        return float(file.frames / _rate(file.samplerate, name))


def find_audio(path: Path) -> list[Path]:
    """A file -> [it]; a folder -> the audio files in it (not in its folders), sorted. AudioError if none."""
    path = Path(path)
    if not path.is_dir():
        _check_file(path)
        return [path]
    found = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file() and p.name[0] != ".")
    if not found:
        raise AudioError(f"{path}: no audio in this folder (looked for *{', *'.join(SUFFIXES)})")
    return found


def windows(samples: np.ndarray, seconds: float = 30.0) -> list[np.ndarray]:
    """Pieces of at most ``seconds``, cut at the quietest point of each one's last fifth.

    samples: (N,) at 16 kHz. Concatenated, the pieces equal the input exactly; they are views of it.
    """
    longest = _longest(seconds)
    cut_off = []
    while len(samples) > longest:
        cut = _quietest(samples[:longest])
        cut_off.append(samples[:cut])
        samples = samples[cut:]
    return [*cut_off, samples]


def _longest(seconds: float) -> int:
    if int(seconds * RATE) < 1:
        raise AudioError(f"windows(seconds={seconds}): a window must hold at least one sample; use 30")
    return int(seconds * RATE)


def _quietest(window: np.ndarray) -> int:
    """Where to cut: 1 <= index <= len(window), in the last fifth."""
    first, width = max(1, len(window) * 4 // 5), int(QUIET * RATE)
    power = np.square(window[first:], dtype=np.float64)
    if len(power) <= width:
        return len(window)
    sums = np.cumsum(np.concatenate([[0.0], power]))
    return first + int(np.argmin(sums[width:] - sums[:-width])) + width // 2


def _name(source: Any) -> str:
    if isinstance(source, str | Path):
        return str(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return f"<{len(source)} bytes>"
    if hasattr(source, "__array__"):
        return f"<array {'x'.join(map(str, np.shape(source)))}>"
    return str(getattr(source, "name", f"<{type(source).__name__}>"))


def _check_file(path: Path) -> None:
    if not path.exists():
        raise AudioError(f"{path}: no such file; check the path")
    if path.is_dir():
        raise AudioError(f"{path}: is a folder; name an audio file in it")
    if path.is_file() and path.stat().st_size == 0:
        raise AudioError(f"{path}: empty file (0 bytes); record or copy it again")


def _opened(source: Any, name: str, heard: bool = True) -> Any:
    """The soundfile.SoundFile of a path, bytes or binary file object. What is ``heard`` is read anyway, and so looked through for
    what libsndfile would leave out."""
    import soundfile

    if isinstance(source, str | Path):
        _check_file(Path(source))
        handle: Any = os.fsencode(source)  # whatever its name is encoded in
        if not Path(source).is_file():  # a pipe: read once, and whole
            handle = io.BytesIO(Path(source).read_bytes())
    else:
        if hasattr(source, "read"):
            source = source.read()
        if isinstance(source, str):
            raise AudioError(f"{name}: gives text; open it in binary mode ('rb')")
        if not isinstance(source, bytes | bytearray | memoryview):
            kind = type(source).__name__
            raise AudioError(f"{name}: cannot read audio from {kind}; give a path, bytes, a binary file or an array")
        if not len(source):
            raise AudioError(f"{name}: empty (0 bytes); record or send it again")
        handle = io.BytesIO(source)
    try:
        file = soundfile.SoundFile(handle)
        if file.format in ("MP3", "MPEG") and (whole := mp3.told(_bytes(handle), file.frames)):
            file.close()
            file = soundfile.SoundFile(io.BytesIO(whole))
        wrong = _wrong(file, handle, heard)
    except (soundfile.SoundFileError, OSError) as error:
        raise AudioError(f"{name}: {_UNREADABLE} [{_reason(error)}]") from None
    if wrong:
        file.close()
        raise AudioError(f"{name}: {wrong}")
    return file


def _wrong(file: Any, handle: Any, heard: bool) -> str | None:
    """Why a file that was opened cannot be heard whole, of which libsndfile says nothing."""
    if file.format == "OGG" and heard:
        return ogg.wrong(_bytes(handle))
    if file.format == "FLAC" and not 0 < file.frames < UNKNOWN:  # libsndfile cannot read those to the end
        return "a FLAC that does not say how long it is, as a stream's; convert it: flac -d, then flac"
    if file.format == "FLAC" and heard and _bytes(handle).find(FLAC, 1) > 0:
        return "holds several recordings one behind another; split it"
    # A file is shortened to what is there, and only the log tells (WAV, AIFF, AU, W64, RF64); a stream's header holds the
    # largest number.
    told = r"^\s*(?:data|SSND|Data Size|riff|Riff size)\s*: (\d+) \(should be (\d+)\)"
    short = re.search(told, file.extra_info, re.M)
    if short and int(short[2]) + 16 < int(short[1]) < STREAM:  # some writers count their padding
        return f"truncated, {short[2]} of the {short[1]} bytes its header says; copy it again"
    return None


def _bytes(handle: Any) -> bytes | mmap.mmap:
    if isinstance(handle, io.BytesIO):
        return handle.getvalue()
    with open(handle, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _reason(error: Exception) -> str:
    text = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    return " ".join(str(text).split()).rstrip(".")


def _rate(rate: float, name: str) -> int:
    if not RATES[0] <= rate <= RATES[1] or rate != int(rate):
        raise AudioError(f"{name}: a sampling rate of {rate} Hz; it must be whole, from {RATES[0]} to {RATES[1]}")
    return int(rate)


def _part(
    frames: int, rate: int, start: float | None, end: float | None, max_duration: float, name: str
) -> tuple[int, int | None]:
    """First and last frame asked for; the last is None where the header does not know the length."""
    known = 0 < frames < UNKNOWN  # a stream's header holds 0 or the largest number there is
    first, last = round((start or 0.0) * rate), None if end is None else round(end * rate)
    if first < 0 or (last is not None and last <= first):
        raise AudioError(f"{name}: start={start}, end={end} is no part; it needs 0 <= start < end (seconds)")
    if known and (first >= frames or (last or 0) > frames + rate // 10):
        raise AudioError(f"{name}: start={start}, end={end} lies outside its {frames / rate:.2f} s")
    if known:
        last = min(frames, frames if last is None else last)
    if last is not None and (last - first) / rate > max_duration:
        length = (last - first) / rate
        raise AudioError(
            f"{name}: {length:.1f} s long, more than the limit of {max_duration:g} s; "
            f"raise --max-duration (max_duration={int(length) + 1}) or split it"
        )
    return first, last


def _blocks(file: Any, first: int, last: int | None, limit: int, name: str) -> Iterator[np.ndarray]:
    """Mono float32 blocks of frames [first, last); AudioError where the file holds fewer than it says."""
    import soundfile

    wanted, got = (last - first if last is not None else None), 0
    try:
        if first:
            file.seek(first)
        size = max(1, BLOCK // file.channels)
        while wanted is None or got < wanted:
            block = file.read(min(size, (limit + 1 if wanted is None else wanted) - got), "float32", always_2d=True)
            if not len(block):
                break
            got += len(block)
            if wanted is None and got > limit:
                seconds = limit / file.samplerate
                raise AudioError(f"{name}: longer than the limit of {seconds:g} s; raise --max-duration or split it")
            yield block.mean(axis=1) if block.shape[1] > 1 else block[:, 0]
    except (soundfile.SoundFileError, OSError) as error:
        seconds = got / file.samplerate
        raise AudioError(f"{name}: broken after {seconds:.2f} s [{_reason(error)}]; copy it again") from None
    # An MP3's length is an estimate where its first frame does not state it.
    spare = file.samplerate // 4 if "MP" in file.format else 0
    if wanted is not None and got + spare < wanted:
        told, real = wanted / file.samplerate, got / file.samplerate
        raise AudioError(f"{name}: truncated, {real:.2f} s of the {told:.2f} s its header says; copy it again")


def _mono(array: np.ndarray, name: str) -> np.ndarray:
    """(N,) or 2-D of any real type -> (N,) float32."""
    if array.ndim not in (1, 2) or array.dtype.kind not in "fiu":
        raise AudioError(f"{name}: {array.ndim} axes of {array.dtype}; give (N,) or (N, channels) real numbers")
    if array.dtype.kind in "iu":
        info = np.iinfo(array.dtype)
        middle = (int(info.max) + 1) // 2 if array.dtype.kind == "u" else 0
        array = ((array.astype(np.float64) - middle) / (int(info.max) + 1 - middle)).astype(np.float32)
    if array.ndim == 2:
        array = array.mean(axis=int(array.shape[1] <= array.shape[0]), dtype=np.float32)
    return array.astype(np.float32, copy=False)


def _read(
    source: AudioSource,
    sampling_rate: int | None,
    max_duration: float,
    start: float | None = None,
    end: float | None = None,
) -> Iterator[np.ndarray]:
    """See ``decode``: the samples block by block, at least one of them."""
    name = _name(source)
    if isinstance(source, np.ndarray) or hasattr(source, "__array__"):
        samples = _mono(np.asarray(source), name)
        if sampling_rate is None:
            raise AudioError(f"{name}: an array does not say its rate; pass sampling_rate=16000 (or what it is)")
        rate, frames = _rate(sampling_rate, name), len(samples)
        first, last = _part(frames, rate, start, end, max_duration, name)
        yield from _resampled(iter([samples[first:last]]), rate, name)
        return
    with _opened(source, name) as file:
        rate = _rate(file.samplerate, name)
        first, last = _part(file.frames, rate, start, end, max_duration, name)
        yield from _resampled(_blocks(file, first, last, int(max_duration * rate), name), rate, name)


def _resampled(blocks: Iterator[np.ndarray], rate: int, name: str) -> Iterator[np.ndarray]:
    """The blocks at 16 kHz, all samples finite, at least one."""
    import soxr

    stream = soxr.ResampleStream(rate, RATE, 1, dtype="float32") if rate != RATE else None
    got = 0
    for block in blocks:
        if not np.isfinite(block).all():
            raise AudioError(f"{name}: holds samples that are NaN or infinite; export it again as 16-bit audio")
        made = block if stream is None else stream.resample_chunk(block)
        got += len(made)
        yield np.asarray(made, np.float32)
    if stream is not None:
        rest = stream.resample_chunk(np.zeros(0, np.float32), last=True)
        got += len(rest)
        yield rest
    if not got:
        raise AudioError(f"{name}: holds no samples; record or export it again")

"""Whatever a user hands over becomes 16 kHz mono float32, or an AudioError of one line that helps."""

from __future__ import annotations

import io
import os
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from steermoe import mp3
from steermoe.audio import RATE, decode, duration, find_audio, pieces, windows
from steermoe.errors import AudioError


def tone(seconds: float, rate: int = RATE, hertz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def wav(samples: np.ndarray, rate: int = RATE, **kw: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, **({"format": "WAV", "subtype": "PCM_16"} | kw))
    return file.getvalue()


def refused(source: object, **kw: object) -> str:
    with pytest.raises(AudioError) as info:
        decode(source, **kw)  # type: ignore[arg-type]
    assert "\n" not in str(info.value)
    return str(info.value)


@pytest.mark.parametrize(
    ("suffix", "format", "subtype", "rate"),
    [
        (".wav", "WAV", "PCM_16", 16_000),
        (".wav", "WAV", "PCM_U8", 8_000),
        (".wav", "WAV", "FLOAT", 192_000),
        (".flac", "FLAC", "PCM_24", 48_000),
        (".mp3", "MP3", "MPEG_LAYER_III", 44_100),
        (".ogg", "OGG", "VORBIS", 22_050),
        (".opus", "OGG", "OPUS", 48_000),
        (".aiff", "AIFF", "PCM_16", 11_025),
    ],
)
def test_formats_and_rates(tmp_path: Path, suffix: str, format: str, subtype: str, rate: int) -> None:
    path = tmp_path / f"tone{suffix}"
    soundfile.write(path, tone(1.5, rate), rate, format=format, subtype=subtype)
    samples = decode(path)
    assert samples.dtype == np.float32 and samples.ndim == 1 and samples.flags.c_contiguous
    assert abs(len(samples) - 1.5 * RATE) < 0.1 * RATE
    middle = samples[RATE // 2 : RATE]
    spectrum = np.abs(np.fft.rfft(middle))
    assert abs(np.argmax(spectrum) * RATE / len(middle) - 440) < 4  # the same pitch: the rate was understood
    assert 0.4 < np.abs(middle).max() < 0.6  # and the same loudness
    assert abs(duration(path) - 1.5) < 0.1


@pytest.mark.parametrize("loud_first", [True, False])
@pytest.mark.parametrize(("rate", "channels", "mode"), [(44_100, 2, "VARIABLE"), (16_000, 1, "AVERAGE"), (8_000, 2, "VARIABLE"),
                                                        (48_000, 1, "CONSTANT"), (22_050, 1, "VARIABLE")])  # fmt: skip
def test_an_mp3_that_does_not_say_its_length_is_heard_whole(
    tmp_path: Path, loud_first: bool, rate: int, channels: int, mode: str
) -> None:
    loud, quiet = np.random.default_rng(0).normal(0, 0.3, 3 * rate), tone(9, rate) / 1000
    samples = np.concatenate([loud, quiet] if loud_first else [quiet, loud]).astype(np.float32)
    told = io.BytesIO()
    soundfile.write(told, np.stack([samples] * channels, axis=1), rate, format="MP3", subtype="MPEG_LAYER_III",
                    bitrate_mode=mode, compression_level=0.3)  # fmt: skip
    whole = told.getvalue()
    assert mp3.told(whole, 0) is None  # it says so itself
    second = next(islice(mp3._frames(whole), 1, None))[0]
    bare = whole[second:]  # as it comes out of a pipe
    id3 = b"ID3\4\0\0" + bytes([0, 0, 1, 2]) + b"\xff\xfb" * 65
    for i, data in enumerate((bare, id3 + bare + b"TAG" + bytes(125))):
        (path := tmp_path / f"{i}.mp3").write_bytes(data)
        assert abs(duration(path) - 12) < 0.2 and abs(len(decode(path)) / RATE - 12) < 0.2
        assert np.array_equal(decode(path), decode(data))
    assert mp3.told(b"nothing of the kind, \xff\xfb\x90 either" * 9, 0) is None


def test_path_bytes_file_object_and_array_are_one(tmp_path: Path) -> None:
    data = wav(tone(0.5))
    path = tmp_path / "a.wav"
    path.write_bytes(data)
    expected = decode(path)
    assert len(expected) == RATE // 2
    with open(path, "rb") as file:
        for source in (str(path), data, io.BytesIO(data), file):
            assert np.array_equal(decode(source), expected)
    assert np.array_equal(decode(soundfile.read(path, dtype="int16")[0], sampling_rate=RATE), expected)


def test_channels_are_averaged() -> None:
    left, right = tone(0.2, hertz=300), tone(0.2, hertz=500)
    both = np.stack([left, right], axis=1)
    mean = (left + right) / 2
    for source in (both, both.T):
        assert np.allclose(decode(source, sampling_rate=RATE), mean, atol=1e-6)
    assert np.allclose(decode(wav(both, subtype="FLOAT")), mean, atol=1e-6)
    six = np.repeat(left[:, None], 6, axis=1)
    assert np.allclose(decode(wav(six, subtype="FLOAT")), left, atol=1e-6)


@pytest.mark.parametrize("kind", ["int8", "int16", "int32", "uint8", "uint16", "float64", "float16"])
def test_array_types_are_scaled(kind: str) -> None:
    samples = tone(0.1)
    if np.dtype(kind).kind == "f":
        array = samples.astype(kind)
    else:
        half = 2 ** (8 * np.dtype(kind).itemsize - 1)
        array = (np.round(samples.astype(np.float64) * half) + (half if kind[0] == "u" else 0)).astype(kind)
    assert np.abs(decode(array, sampling_rate=RATE) - samples).max() < (0.01 if kind.endswith("8") else 1e-3)


def test_resampling_in_blocks_equals_resampling_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import soxr

    samples = np.random.default_rng(0).normal(0, 0.1, 44_100 * 2).astype(np.float32)
    data = wav(samples, 44_100, subtype="FLOAT")
    monkeypatch.setattr("steermoe.audio.BLOCK", 7_001)
    got, expected = decode(data), soxr.resample(samples, 44_100, RATE)
    assert len(got) == len(expected) == 2 * RATE
    assert np.abs(got - expected).max() < 1e-5


def test_start_and_end_choose_a_part() -> None:
    samples = np.arange(RATE, dtype=np.int16)
    part = decode(wav(samples), start=0.25, end=0.5)
    assert np.array_equal(part * 32768, samples[RATE // 4 : RATE // 2])
    assert np.array_equal(decode(samples, sampling_rate=RATE, start=0.25, end=0.5), part)
    assert "lies outside its 1.00 s" in refused(wav(samples), start=2.0)
    assert "lies outside" in refused(wav(samples), start=0.5, end=2.0)
    assert "start < end" in refused(wav(samples), start=0.5, end=0.25)
    assert len(decode(wav(samples), start=0.5, max_duration=0.6)) == RATE // 2  # the limit is for the part


def test_refuses_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("once upon a time\n" * 50)
    for name, why in {
        "absent.wav": "no such file",
        "": "is a folder",
        "empty.wav": "empty file (0 bytes)",
        "text.wav": "not audio",
    }.items():
        message = refused(tmp_path / name)
        assert why in message and str(tmp_path / name) in message
    assert "empty (0 bytes)" in refused(b"")
    assert "convert it to FLAC" in refused(b"\x00" * 500)
    assert "binary mode" in refused(io.StringIO("abc"))
    assert "from list" in refused([0.0, 1.0])


def test_refuses_a_truncated_wav_but_not_a_stream(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(16_000), 16_000, subtype="PCM_16")
    whole = path.read_bytes()
    path.write_bytes(whole[:20_000])
    with pytest.raises(AudioError, match="truncated, 19956 of the 32000 bytes its header says"):
        decode(path)
    size = whole.index(b"data") + 4
    path.write_bytes(whole[:size] + b"\xff" * 4 + whole[size + 4 :])  # as a program that writes to a pipe leaves it
    assert len(decode(path)) == 16_000


def test_refuses_truncated_flac(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, RATE * 3)
    path = tmp_path / "cut.flac"
    soundfile.write(path, noise, RATE)
    whole = path.read_bytes()
    for size in (len(whole) // 2, len(whole) - 2_000):
        path.write_bytes(whole[:size])
        message = refused(path)
        assert "copy it again" in message and str(path) in message
    path.write_bytes(whole[: len(whole) // 2] + b"\xa5" * 5_000 + whole[len(whole) // 2 + 5_000 :])
    assert len(refused(path)) < 300


def test_refuses_no_samples_and_samples_that_are_no_numbers() -> None:
    assert "no samples" in refused(wav(np.zeros(0)))
    assert "no samples" in refused(np.zeros(0, np.float32), sampling_rate=RATE)
    for bad in (np.nan, np.inf):
        samples = tone(0.1)
        samples[100] = bad
        assert "NaN or infinite" in refused(samples, sampling_rate=RATE)
        assert "NaN or infinite" in refused(wav(samples, 44_100, subtype="FLOAT"))


def test_refuses_arrays_it_cannot_understand() -> None:
    assert "pass sampling_rate=" in refused(tone(0.1))
    assert "sampling rate of 0" in refused(tone(0.1), sampling_rate=0)
    assert "3 axes" in refused(np.zeros((2, 2, 2), np.float32), sampling_rate=RATE)
    assert "complex" in refused(np.zeros(9, complex), sampling_rate=RATE)


def test_too_long_is_refused_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("decoded")

    data = wav(tone(3.0))
    assert len(decode(data, max_duration=3.0)) == 3 * RATE
    monkeypatch.setattr("steermoe.audio._blocks", fail)
    message = refused(data, max_duration=2.5)
    assert "3.0 s" in message and "--max-duration" in message
    assert "--max-duration" in refused(tone(3.0), sampling_rate=RATE, max_duration=2.5)


def test_a_flac_of_unknown_length_is_refused_in_words() -> None:
    data = bytearray(wav(tone(1.0), format="FLAC"))
    data[21] &= 0xF0  # the total number of samples in STREAMINFO: 36 bits, 0 = unknown
    data[22:26] = bytes(4)
    assert "does not say how long it is" in refused(bytes(data))
    with pytest.raises(AudioError, match="does not say how long it is"):
        duration(bytes(data))


def test_find_audio(tmp_path: Path) -> None:
    for name in ("b.wav", "a.FLAC", "notes.txt", ".hidden.wav"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "folder.wav").mkdir()
    assert [p.name for p in find_audio(tmp_path)] == ["a.FLAC", "b.wav"]
    assert find_audio(tmp_path / "notes.txt") == [tmp_path / "notes.txt"]  # a file that is named is taken at its word
    for path, why in ((tmp_path / "none", "no such file"), (tmp_path / "folder.wav", "no audio in this folder")):
        with pytest.raises(AudioError, match=why):
            find_audio(path)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 3 * RATE), st.floats(1 / RATE, 2.0, allow_nan=False), st.integers(0, 2**32 - 1), st.booleans())
def test_windows_lose_nothing(length: int, seconds: float, seed: int, silent: bool) -> None:
    samples = np.random.default_rng(seed).normal(size=length).astype(np.float32)
    if silent:
        samples[length // 3 :] = 0
    if length > 500 * seconds * RATE:
        samples = samples[: int(500 * seconds * RATE)]
    pieces = windows(samples, seconds)
    assert np.array_equal(np.concatenate(pieces), samples)
    longest = int(seconds * RATE)
    assert all(len(piece) <= longest for piece in pieces)
    assert all(len(piece) >= max(1, longest * 4 // 5) for piece in pieces[:-1])
    assert len(pieces) == 1 or all(len(piece) for piece in pieces)


@pytest.mark.parametrize("rate", [16_000, 44_100, 8_000])
@pytest.mark.parametrize("seconds", [0.3, 2.0, 99.0])
def test_pieces_are_the_windows_of_the_whole(monkeypatch: pytest.MonkeyPatch, rate: int, seconds: float) -> None:
    monkeypatch.setattr("steermoe.audio.BLOCK", 5_000)
    samples = np.random.default_rng(rate).normal(0, 0.1, 5 * rate).astype(np.float32)
    samples *= np.abs(np.sin(np.arange(len(samples)) / rate * 3))
    for source, known in ((wav(samples, rate), None), (samples, rate)):
        wanted = windows(decode(source, known), seconds)
        found = list(pieces(source, seconds, known))
        assert len(found) == len(wanted) and all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_pieces_do_not_read_ahead(tmp_path: Path) -> None:
    """A file that breaks off late has given its beginning by then; what is no audio is refused at once."""
    soundfile.write(tmp_path / "a.flac", np.random.default_rng(0).normal(0, 0.1, 100 * RATE), RATE)
    whole = (tmp_path / "a.flac").read_bytes()
    (tmp_path / "a.flac").write_bytes(whole[: len(whole) * 9 // 10])
    found = pieces(tmp_path / "a.flac", 10.0)
    assert len(next(found)) <= 10 * RATE
    with pytest.raises(AudioError, match=r"truncated|broken"):
        list(found)
    with pytest.raises(AudioError, match="no such file"):
        next(pieces(tmp_path / "b.flac", 10.0))


def test_windows_cut_in_the_pause() -> None:
    samples = np.random.default_rng(0).normal(0, 0.1, 50 * RATE).astype(np.float32)
    samples[27 * RATE : int(27.4 * RATE)] *= 0.01
    first, second = windows(samples, 30.0)
    assert 27 * RATE < len(first) < 27.4 * RATE
    assert len(first) + len(second) == len(samples)
    assert len(windows(samples[: 30 * RATE], 30.0)) == 1
    with pytest.raises(AudioError, match="use 30"):
        windows(samples, 0.0)


def encoded(format: str, subtype: str, samples: np.ndarray, rate: int = RATE) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=format, subtype=subtype)
    return buffer.getvalue()


@pytest.mark.parametrize("format", ["WAV", "AIFF", "AU", "W64", "RF64", "CAF", "FLAC", "OGG", "OPUS", "MP3"])
def test_half_a_file_is_refused(format: str) -> None:
    kind, subtype = {"OGG": ("OGG", "VORBIS"), "OPUS": ("OGG", "OPUS"), "MP3": ("MP3", "MPEG_LAYER_III")}.get(
        format, (format, "PCM_16")
    )
    data = encoded(kind, subtype, tone(5.0, RATE))
    assert abs(len(decode(data)) - 5 * RATE) < 0.1 * RATE
    for share in (0.5, 0.8):
        with pytest.raises(AudioError, match=r"truncated|broken|malformed"):
            decode(data[: int(share * len(data))])


@pytest.mark.parametrize(("format", "subtype"), [("OGG", "VORBIS"), ("OGG", "OPUS"), ("FLAC", "PCM_16")])
def test_recordings_joined_in_one_file_are_refused(format: str, subtype: str) -> None:
    one = encoded(format, subtype, tone(1.0, RATE))
    with pytest.raises(AudioError, match=r"several recordings one behind another.*split it"):
        decode(one + one)


def test_joined_mp3s_are_heard_whole() -> None:
    one, other = (encoded("MP3", "MPEG_LAYER_III", tone(seconds, RATE)) for seconds in (2.0, 3.0))
    assert abs(len(decode(one + other)) / RATE - 5) < 0.3 and abs(duration(one + other + one) - 7) < 0.4
    assert abs(len(decode(one + b"TAG" + bytes(125))) / RATE - 2) < 0.1


def test_many_channels_take_no_more_memory_than_one() -> None:
    data = encoded("WAV", "PCM_16", np.zeros((100_000, 64), np.int16))
    tracemalloc.start()
    decode(data)
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    assert peak < 12  # megabytes; 26 where all channels are read at once


def test_a_pipe_and_a_name_of_any_bytes_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(wav(tone(0.5)))
    expected = decode(tmp_path / "a.wav")
    strange = os.fsdecode(bytes(tmp_path / "caf") + b"\xe9.wav")
    os.rename(tmp_path / "a.wav", strange)
    assert np.array_equal(decode(strange), expected)
    os.mkfifo(pipe := tmp_path / "pipe")
    with ThreadPoolExecutor() as pool:
        pool.submit(Path(pipe).write_bytes, wav(tone(0.5)))
        assert np.array_equal(decode(pipe), expected)

"""A manifest is read as it is meant, or refused with file, line and key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from steermoe.data import SOURCES, load_source, read_manifest, write_manifest
from steermoe.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "clips").mkdir()
    soundfile.write(tmp_path / "clips" / "a.wav", np.arange(16_000, dtype=np.int16), 16_000)
    return tmp_path


def test_reads_all_keys_and_paths_relative_to_the_manifest(folder: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"audio": "clips/a.wav", "text": "Grüß Gott\u2028zwei"},
        {"audio": str(folder / "clips" / "a.wav"), "text": "", "duration": 1, "speaker": "S", "language": "de",
         "prompt": "Say it.", "start": 0.25, "end": 0.5, "id": "x", "slots": {"size": "big"}},
    ]  # fmt: skip
    write_manifest(folder / "m.jsonl", rows)
    first, second = load_source(str(folder / "m.jsonl"))
    assert (first.text, first.duration, first.id) == ("Grüß Gott\u2028zwei", None, "m-1")
    assert first.audio.samefile(second.audio)
    assert (second.speaker, second.language, second.prompt, second.id) == ("S", "de", "Say it.", "x")
    assert second.duration == 0.25  # of the part, whatever is said of the file
    assert np.array_equal(second.load() * 32768, np.arange(4_000, 8_000))
    assert len(first.load()) == 16_000


def test_root_is_where_relative_paths_start(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    manifest = tmp_path / "lists" / "m.jsonl"
    write_manifest(manifest, [{"audio": "a.wav", "text": "x", "start": 0.5, "end": 0.75}])
    (example,) = load_source(str(manifest), folder / "clips")
    assert example.duration == 0.25
    with pytest.raises(DataError, match=r"m\.jsonl:1: audio: no such file: .*lists/a\.wav"):
        load_source(str(manifest))


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "not JSON"),
        ("[1]", "a list"),
        ('{"text": "x"}', r"audio: missing \(the keys are text\)"),
        ('{"audio": "clips/a.wav"}', "text: missing"),
        ('{"audio": "clips/a.wav", "text": null}', "text: None"),
        ('{"audio": "", "text": "x"}', "audio: ''"),
        ('{"audio": 3, "text": "x"}', "audio: 3"),
        ('{"audio": "clips/b.wav", "text": "x"}', "audio: no such file"),
        ('{"audio": "clips", "text": "x"}', "audio: no such file"),
        ('{"audio": "clips/a.wav", "text": "x", "duration": "1"}', "duration: '1'"),
        ('{"audio": "clips/a.wav", "text": "x", "duration": true}', "duration: True"),
        ('{"audio": "clips/a.wav", "text": "x", "start": -1}', "start: -1"),
        ('{"audio": "clips/a.wav", "text": "x", "end": NaN}', "end: nan"),
        ('{"audio": "clips/a.wav", "text": "x", "start": 2, "end": 1}', r"end: 1\.0 is not after start \(2\.0\)"),
        ('{"audio": "clips/a.wav", "text": "x", "speaker": 7}', "speaker: 7"),
    ],
)
def test_a_bad_line_is_named(folder: Path, line: str, why: str) -> None:
    manifest = folder / "m.jsonl"
    manifest.write_text(json.dumps({"audio": "clips/a.wav", "text": "fine"}) + f"\n\n{line}\n")
    with pytest.raises(DataError, match=rf"m\.jsonl:3: {why}") as info:
        read_manifest(manifest)
    assert "\n" not in str(info.value)


def test_a_manifest_that_is_none(folder: Path) -> None:
    (folder / "empty.jsonl").write_text("\n\n")
    (folder / "latin.jsonl").write_bytes(b"\xff\xfe")
    for name, why in (("empty", "no examples"), ("latin", "UTF-8"), ("absent", "no such manifest")):
        with pytest.raises(DataError, match=why):
            load_source(str(folder / f"{name}.jsonl"))


def test_an_unknown_source_names_the_nearest_and_all() -> None:
    with pytest.raises(DataError, match="did you mean 'asterisk'") as info:
        load_source("asterix:test")
    assert all(name in str(info.value) for name in SOURCES) and "\n" not in str(info.value)
    for spec in ("librivox:train", "asterisk:train", "fotaq:dev"):
        name, _, split = spec.partition(":")
        with pytest.raises(DataError, match=f"{name} has no split {split!r}; it has "):
            load_source(spec)


def test_librivox_comes_with_the_package() -> None:
    examples = load_source("librivox")
    assert len(examples) == 5 and 24 < sum(e.duration or 0 for e in examples) < 26
    for example in examples:
        samples = example.load()
        assert len(samples) == round((example.duration or 0) * 16_000)
        assert np.abs(samples).max() > 0.05 and len(example.text.split()) >= 8
    assert (examples[0].audio.parent / "LICENSE").read_text().count("Carnegie Mellon University") == 1

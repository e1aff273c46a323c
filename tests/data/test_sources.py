"""Each source reads a miniature tree of what its publisher ships, and names what is missing or broken in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steermoe.data import Example, load_source, read_manifest
from steermoe.data.manifest import Slice
from steermoe.errors import AudioError, DataError

from . import trees


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("STEERMOE_CACHE", str(tmp_path / "cache"))


def first(spec: str, root: Path) -> Example:
    examples = load_source(spec, root)
    assert len({e.id for e in examples}) == len(examples)
    assert all(len(e.load()) > 4_000 for e in examples)
    return examples[0]


def test_librispeech(tmp_path: Path) -> None:
    root = trees.librispeech(tmp_path, "test-clean", "train-clean-100")
    example = first("librispeech:train-clean-100", root)
    assert (example.id, example.text, example.speaker) == ("1089-134686-0000", "VERY VERY WELL", "1089")
    assert len(load_source("librispeech:test-clean", root / "LibriSpeech")) == 6


def test_aishell1_is_written_without_blanks(tmp_path: Path) -> None:
    example = first("aishell1:train", trees.aishell1(tmp_path))
    assert (example.text, example.speaker, example.language) == ("而对楼市成交抑制", "S0002", "zh")
    assert len(load_source("aishell1:train", tmp_path / "data_aishell")) == 2  # not the one without text


@pytest.mark.parametrize("split", ["train", "dev", "test", "test-mic"])
def test_aishell2(tmp_path: Path, split: str) -> None:
    example = first(f"aishell2:{split}", trees.aishell2(tmp_path))
    assert (example.text, example.speaker) == ("打开wifi开关", "C0001")


def test_clotho_aqa_keeps_three_annotators(tmp_path: Path) -> None:
    examples = load_source("clotho_aqa:val", trees.clotho_aqa(tmp_path))
    assert [(e.id, e.text) for e in examples[:4]] == [
        ("rain, heavy/1/1", "yes"), ("rain, heavy/1/2", "no"), ("rain, heavy/1/3", "yes"), ("rain, heavy/2/1", "rain"),
    ]  # fmt: skip
    assert examples[0].prompt == "please answer the following question. The question is : Is it loud?"
    assert len(examples) == 12 and len(examples[0].load()) == 9_600


def test_common_voice(tmp_path: Path) -> None:
    example = first("common_voice:dev", trees.common_voice(tmp_path))
    assert (example.text, example.duration, example.language, example.speaker) == ('Er sagte: "gut', 0.5, "de", "a0")


def test_folder_and_its_held_out_part(tmp_path: Path) -> None:
    example = first(f"folder:{trees.folder(tmp_path / 'mine', 60)}", Path())
    assert (example.id, example.text) == ("day0/0", "very very well")
    parts = [{e.id for e in load_source(f"folder:mine?part={part}", tmp_path)} for part in ("train", "valid")]
    assert len(parts[0]) + len(parts[1]) == 60 and not parts[0] & parts[1] and 1 <= len(parts[1]) <= 9
    for few in (2, 3, 7):
        trees.folder(tmp_path / f"few{few}", few)
        sizes = [len(load_source(f"folder:few{few}?part={part}", tmp_path)) for part in ("train", "valid")]
        assert sum(sizes) == few and min(sizes) >= 1


def test_webdataset_reads_clips_where_they_lie(tmp_path: Path, monkeypatch: Any) -> None:
    shards = trees.webdataset(tmp_path / "shards")
    examples = load_source("webdataset:shards?language=lang", tmp_path)
    assert [(e.id, e.text, e.language) for e in examples[:2]] == [
        ("s0/000000", "VERY VERY WELL", "en"), ("s0/000001", "REPEAT THE TEXT", "en"),
    ]  # fmt: skip
    assert [e.duration for e in examples] == [0.4, 0.5] * 2 and isinstance(examples[3].audio, Slice)
    assert np.array_equal(examples[3].load(), examples[1].load()) and len(examples[1].load()) == 8_000
    assert load_source(f"webdataset:{shards}/shard-{{000..001}}.tar?language=lang") == examples
    monkeypatch.setattr("tarfile.open", None)  # indexed once
    assert load_source("webdataset:shards?language=lang", tmp_path) == examples


def rows(broken: bool = False) -> list[dict[str, Any]]:
    clips = [{"bytes": trees.encoded(0.5, "WAV", 8_000), "path": "a.wav"}, {"bytes": trees.encoded(0.7), "path": None}]
    return [
        {"audio": b"" if broken else clip, "sentence": f"number {i}", "client_id": i} for i, clip in enumerate(clips)
    ]


def test_parquet_by_columns(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pa.Table.from_pylist(rows()), tmp_path / "a-0.parquet")
    spec = "parquet:a-*.parquet?text=sentence&speaker=client_id"
    examples = load_source(spec, tmp_path)
    assert [(e.text, e.speaker, e.duration) for e in examples] == [("number 0", "0", 0.5), ("number 1", "1", 0.7)]
    assert [len(e.load()) for e in examples] == [8_000, 11_200]  # of 8 kHz, too, at 16 kHz
    with pytest.raises(
        DataError, match=r"no column 'text'; say which is the text, \?text=NAME: audio, sentence, client_id"
    ):
        load_source("parquet:a-0.parquet", tmp_path)
    with pytest.raises(DataError, match=r"\?txt=: is none of audio, text"):
        load_source("parquet:a-0.parquet?txt=sentence", tmp_path)
    paths = [{"audio": trees.clip(tmp_path / "c" / "x.wav").name, "text": "beside"}]
    parquet.write_table(pa.Table.from_pylist(paths), tmp_path / "c" / "paths.parquet")
    assert first("parquet:c", tmp_path).audio == tmp_path / "c" / "x.wav"


def test_hub_streams_encoded_clips(tmp_path: Path, monkeypatch: Any) -> None:
    datasets = pytest.importorskip("datasets")
    asked: list[Any] = []

    def load_dataset(*args: Any, **kwargs: Any) -> Any:
        asked.append((args, kwargs))
        made = datasets.Dataset.from_list(rows())
        return made.cast_column("audio", datasets.Audio()).to_iterable_dataset()  # as the hub has it: to be decoded

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    spec = f"hub:mozilla/voices@{'0a' * 20}:dev?config=en&text=sentence"
    examples = load_source(spec)
    assert [e.text for e in examples] == ["number 0", "number 1"] and len(examples[0].load()) == 8_000
    assert load_source(spec) == examples and len(asked) == 1  # kept
    assert asked[0] == (("mozilla/voices", "en"), {"split": "dev", "revision": "0a" * 20, "streaming": True})
    assert len(load_source(spec + "&limit=1")) == 1
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: 1 / 0)
    with pytest.raises(DataError, match="cannot be read"):
        load_source(spec + "&limit=2")


def spoilt(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def broken(tmp_path: Path) -> dict[str, tuple[str, Path | None, str]]:
    """Name -> (spec, root, what the error must say)."""
    libri, a1, a2 = (tmp_path / name for name in ("libri", "a1", "a2"))
    trees.librispeech(libri)
    book = libri / "LibriSpeech/test-clean/84/121123/84-121123.trans.txt"
    spoilt(book, "84-121123-0001", "84-121123-0009")
    trees.aishell1(a1)
    spoilt(a1 / "data_aishell/transcript/aishell_transcript_v0.8.txt", " 而 对 楼市 成交 抑制", "")
    trees.aishell2(a2)
    spoilt(a2 / "AISHELL-2/iOS/data/wav.scp", "IC0001W0001\t", "IC0001W0007\t")
    clotho, voices, shards, mine = (tmp_path / name for name in ("clotho", "voices", "shards", "mine"))
    spoilt(trees.clotho_aqa(clotho) / "clotho_aqa_val.csv", ",yes,", ",,")
    spoilt(clotho / "clotho_aqa_test.csv", "answer", "reply")
    voice = trees.common_voice(voices)
    spoilt(voice / "dev.tsv", "common_voice_de_1", "common_voice_de_7")
    trees.webdataset(shards)
    (tmp_path / "no.tar").write_bytes(b"no tar at all")
    (trees.folder(mine) / "day0" / "2.txt").unlink()
    hub = f"hub:a/b@{'0' * 40}"
    return {
        "no root": ("librispeech:test-clean", None, r"librispeech:test-clean is not fetched: say where it lies, --root"),
        "no split": ("librispeech:test", libri, "librispeech has no split 'test'; it has train-clean-100, "),
        "split not here": ("librispeech:dev-clean", libri, "there is no dev-clean and no LibriSpeech/dev-clean"),
        "no flac": ("librispeech:test-clean", libri, r"trans\.txt:2: no such file: .*84-121123-0009\.flac"),
        "no text": ("aishell1:train", a1, r"transcript_v0\.8\.txt:1: 'BAC009S0002W0120' is one word"),
        "unknown id": ("aishell2:train", a2, r"wav\.scp:2: IC0001W0007 has no text in trans\.txt"),
        "no device": ("aishell2:test-phone", a2, "it has train, dev, test, dev-ios"),
        "empty answer": ("clotho_aqa:val", clotho, r"clotho_aqa_val\.csv:2: file_name, QuestionText and answer must not"),
        "no column": ("clotho_aqa:test", clotho, r"clotho_aqa_test\.csv:1: no column 'answer'; it has file_name, "),
        "no clip": ("common_voice:dev", voice, r"dev\.tsv:3: no such file: .*common_voice_de_7\.mp3"),
        "no shard": (f"webdataset:{shards}/shard-{{000..002}}.tar", None, r"no such shard: .*shard-002\.tar"),
        "no tar": (f"webdataset:{tmp_path}/no.tar", None, "cannot be read as a tar"),
        "no json key": (f"webdataset:{shards}?text=said", None, r"000000: no text; its \.json has text, lang: say which"),
        "no recording's text": (f"folder:{mine}", None, r"2\.wav has no text: write what is said into 2\.txt beside it"),
        "an option without a value": (f"folder:{mine}?train", None, "'train' is no OPTION=VALUE"),
        "no audio": (f"folder:{a1}/data_aishell/transcript", None, "no audio in"),
        "no pin": ("hub:a/b:train", None, "the commit as 40 hex digits"),
        "no number": (f"{hub}?limit=x", None, "limit='x' is no number of rows"),
        "no option": ("librispeech:test-clean?speed=2", libri, "librispeech: takes no such option .*speed"),
    }  # fmt: skip


def test_what_is_missing_or_broken_is_named_in_one_line(tmp_path: Path) -> None:
    for name, (spec, root, why) in broken(tmp_path).items():
        with pytest.raises(DataError, match=why) as caught:
            load_source(spec, root)
        assert "\n" not in str(caught.value), name


def test_slices_of_a_manifest(tmp_path: Path, manifest: Path) -> None:
    one, two = trees.encoded(0.5), trees.encoded(0.6)
    (tmp_path / "all.bin").write_bytes(one + two)
    line = '{{"audio": "all.bin", "text": "x", "offset": {}, "size": {}}}\n'

    def read(offset: Any, size: Any) -> Example:
        (tmp_path / "m.jsonl").write_text(line.format(offset, size))
        return read_manifest(tmp_path / "m.jsonl")[0]

    assert len(read(len(one), len(two)).load()) == 9_600
    assert str(read(0, len(one)).audio) == f"{tmp_path}/all.bin[0:{len(one)}]"
    with pytest.raises(AudioError, match=rf"all\.bin\[5:{len(one)}\]: not audio that can be read"):
        read(5, len(one) - 5).load()
    for offset, size, why in (
        (1, 0, "size: 0 is no number"),
        ('"1"', 2, "offset: '1'"),
        (0, 10**9, "offset 0 and size 1000000000 end behind"),
    ):
        with pytest.raises(DataError, match=rf"m\.jsonl:1: {why}"):
            read(offset, size)

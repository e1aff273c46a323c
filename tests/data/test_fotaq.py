"""The container's parsing on a small one made here; the splits; and, slow, the real one."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from steermoe.data import Example, asterisk, load_source
from steermoe.data.fotaq import (
    SOMEONE,
    TEST_CHARACTERS,
    clean,
    clips_of,
    line_key,
    lines_of,
    read_container,
    split_clips,
)
from steermoe.errors import DataError

HEAD = b"AmBk" + bytes(16)


def words(*values: int) -> bytes:
    return struct.pack(f">{len(values)}h", *values)


def string(text: str, at: int, align: int = 2) -> bytes:
    """A string that begins at ``at``, padded to ``align``."""
    data = bytes([len(text)]) + text.encode()
    return data + bytes(-(at + len(data)) % align) if text else data


def dialogue() -> bytes:
    data = bytearray(32 + 96)
    data[:10] = words(1, 7, 28, 2, 1)
    lines = [("J", 0, "Hi.*03"), ("J", 6, "Why?*01 I ask.*02"), ("P", 0x2A, "No.*00*XY00(237,112)Go!")]
    at_other = 0
    for who, number, text in lines:
        if who == "P" and not at_other:
            at_other = len(data)
        data += words(0, number)
        data += string(text, len(data), 4)
    greetings = len(data)
    data += string("Again?", len(data))
    data += string("Me again.*15", len(data))
    data[22:28] = struct.pack(">3H", at_other, 0, greetings)
    return HEAD + bytes(data)


def record(actor: int, animation: int = 0, execute: int = 0, people: int = 0) -> bytes:
    return words(actor, 0, 0, 0, animation, execute, *[0] * 11, people, *range(people))


def scene() -> bytes:
    body = record(0, people=2) + record(1) + record(1, execute=1, animation=3) + words(9, *[0] * 9, -2) + record(-2)
    at_text = 12 + len(body)
    data = bytearray(words(0, 4, 0, 0, at_text, 0) + body)
    for text in ("*FR", "Hey there!*03", "Watch it...*FLNow!", "", "Who said that?"):
        data += string(text, len(data))
    return HEAD + bytes(data)


def files() -> dict[str, bytes]:
    remarks, names = ["Neat*02", "Tsk tsk*03It's <gulp> shut!*24"], ["tired prisoner", "box"]
    answers = [f"answer {k}*24" for k in range(1, 41)]
    texts = remarks + names + ["room"] + ["verb"] * 12 + answers + [""]
    table = words(1, 2, 2, 2) + words(-1, 0, 0, 0, 0, 1, 0, -3) + words(2, 0, 0, 0, 0, 1, 0, 5)
    clips = ["JOE00171", "JOE00411", "JOE00422", "28SSSSJ1", "280006J1", "280006J2", "28002AP1", "28002AP3"]
    clips += ["28XXXXP1", "28XXXXJ1", "C1A__011", "C1A__021", "C1A__022", "C1A__041", "UNKNOWN1"]
    return {
        "QUEEN.JAS": HEAD + table,
        "QUEEN2.JAS": "\r\n".join(texts).encode("latin-1"),
        "KLUNK1.DOG": dialogue(),
        "C1A.CUT": scene(),
        **{f"{name}.SB": b"mp3" for name in clips},
    }


def test_container_round_trip() -> None:
    contents = {"A.SB": b"abc", "LONGNAME.CUT": b"", "B.DOG": b"12345"}
    offset, table, body = 15 + 21 * len(contents), b"", b""
    for name, data in contents.items():
        table += struct.pack(">12sBII", name.encode(), 1, offset + len(body), len(data))
        body += data
    container = b"QTBLCEM10" + bytes(4) + struct.pack(">H", len(contents)) + table + body
    assert read_container(container) == contents
    with pytest.raises(DataError, match="begins with b'ID3"):
        read_container(b"ID3" + container)


def test_every_clip_gets_its_words_and_its_speaker() -> None:
    assert {name: rest for name, *rest in clips_of(files())} == {
        "JOE00171": ["answer 17", "Joe"],
        "JOE00411": ["Neat", "Joe"],
        "JOE00422": ["It's shut!", "Joe"],
        "28SSSSJ1": ["Hi.", "Joe"],
        "280006J1": ["Why?", "Joe"],
        "280006J2": ["I ask.", "Joe"],
        "28002AP1": ["No.", "Klunk"],
        "28002AP3": ["Go!", "Klunk"],
        "28XXXXP1": ["Again?", "Klunk"],
        "28XXXXJ1": ["Me again.", "Joe"],
        "C1A__011": ["Hey there!", "Joe"],
        "C1A__021": ["Watch it...", "prisoners"],
        "C1A__022": ["Now!", "prisoners"],
        "C1A__041": ["Who said that?", SOMEONE],
    }
    assert len(list(lines_of(files()))) == 42 + 5 + 4


def test_a_clip_with_two_texts_is_left_out() -> None:
    twice = files()
    twice["KLUNK2.DOG"] = dialogue().replace(b"Why?", b"How?")
    names = [name for name, *_ in clips_of(twice)]
    assert "280006J1" not in names and "280006J2" in names


def test_clean() -> None:
    assert clean("  @@ She's   beautiful! @@ ") == "She's beautiful!"
    assert clean("Super Soldier Treatment^_.") == "Super Soldier Treatment."
    for text in ("(sigh)", "<CRUNCH>", "...", "&#($!!, he got away!"):
        assert clean(text) == ""
    assert line_key('"Well -- it\'s ME!"') == line_key("well, it's me")


def clip(id: str, speaker: str, text: str) -> Example:
    return Example(id=id, audio=Path(f"{id}.mp3"), text=text, speaker=speaker)


def test_splits_share_no_line_and_no_test_character() -> None:
    held = TEST_CHARACTERS[0]
    clips = [clip(f"J{i:07d}", "Joe", f"this is line number {i}") for i in range(2_000)]
    clips += [clip(f"K{i:07d}", "Klunk", f"This is line number {i}!") for i in range(0, 2_000, 2)]
    clips += [clip(f"L{i:07d}", held, f"This is LINE number {i * 7}.") for i in range(30)]
    clips += [clip("C9A__011", held, "Yes."), clip("C9A__021", SOMEONE, "Who could this be now?")]
    clips += [clip("C9B__021", SOMEONE, "Now who could this be?"), clip("J9", "Joe", "Yes.")]
    sides = split_clips(clips)
    keys = {name: {line_key(e.text) for e in side} for name, side in sides.items()}
    assert not keys["train"] & keys["test"] and not keys["train"] & keys["valid"] and not keys["valid"] & keys["test"]
    assert len(sides["test"]) == 30 and {e.speaker for e in sides["test"]} == {held}
    assert 60 < len(sides["valid"]) < 180 and len(sides["train"]) > 2_700
    train = {e.id for e in sides["train"]}
    assert "J9" in train and "C9B__021" in train and "C9A__021" not in train and "C9A__011" not in train
    assert split_clips(clips[::-1])["valid"][::-1] == sides["valid"]  # by rule, not by order


def test_asterisk_texts() -> None:
    book = "; comment: no\n\nbeep: [a tone]\nsilence/1: (1 second of silence)\nhello: Hi: there.  You (a tone)\n"
    book += "empty:\ndictate/play: Play it.\nx: To [name] go\n"
    assert asterisk.read_texts(book) == {"hello": "Hi: there. You", "dictate/play": "Play it."}


@pytest.mark.slow
def test_the_real_fotaq() -> None:
    sides = {name: load_source(f"fotaq:{name}") for name in ("train", "valid", "test")}
    assert (
        5_500 < len(sides["train"]) < 6_000 and 100 <= len(sides["valid"]) <= 200 and 300 <= len(sides["test"]) <= 500
    )
    assert 3.7 < sum(e.duration or 0 for e in sides["train"]) / 3600 < 4.1
    assert not {e.speaker for e in sides["test"]} & {e.speaker for e in sides["train"] + sides["valid"]}
    lines = {name: {line_key(e.text) for e in side} for name, side in sides.items()}
    assert not lines["train"] & (lines["valid"] | lines["test"]) and not lines["valid"] & lines["test"]
    for side in sides.values():
        assert abs(len(side[7].load()) / 16_000 - (side[7].duration or 0)) < 0.06
    rates = [len(e.text) / (e.duration or 0) for e in sides["train"] if len(e.text) > 30]
    assert all(3 < rate < 30 for rate in rates)  # letters a second: text and audio belong together


@pytest.mark.slow
def test_the_real_asterisk() -> None:
    examples = load_source("asterisk:test")
    assert 540 <= len(examples) <= 560 and 24 < sum(e.duration or 0 for e in examples) / 60 < 26
    assert abs(examples[3].load()).max() > 0.1
    texts = {example.id: example.text for example in examples}
    assert texts["dictate/both_help"] == "press star to toggle pause, press pound to enter a new dictation filename"


def test_synth_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from steermoe.data import synth

    asked = []

    def shards(numbers: list[int], recipe: str) -> list[Path]:
        assert recipe == synth.RECIPE
        asked.append(list(numbers))
        for number in numbers:
            folder = tmp_path / f"shard-{number:04d}"
            folder.mkdir(exist_ok=True)
            (folder / f"{number:06d}.flac").touch()
            (folder / "manifest.jsonl").write_text(f'{{"audio": "{number:06d}.flac", "text": "text {number}"}}\n')
        return [tmp_path / f"shard-{number:04d}" for number in numbers]

    monkeypatch.setattr(synth, "make_shards", shards)
    monkeypatch.setattr(synth, "_texts", lambda recipe: ["a text"] * 480 * synth.shard_size(recipe))
    train, valid = load_source("synth:train/41"), load_source("synth:valid/41")
    assert asked == [[i for i in range(41) if i not in (19, 39)], [19, 39]]
    assert valid[0].id == "wordnet-v1-000019" and not {e.text for e in train} & {e.text for e in valid}
    assert len(load_source("synth")) == synth.DEFAULT_SHARDS * 19 // 20
    for split in ("test", "train/many", "train/0", "train/9999", "valid/19"):
        with pytest.raises(DataError, match="synth"):
            load_source(f"synth:{split}")

"""Drascula: tables of texts in several languages, in capitals."""

from __future__ import annotations

import struct

import pytest

from steermoe.data import drascula, load_source


def table(*languages: list[str]) -> bytes:
    """Number 0 is empty; before a text stands how far behind it the next one is."""
    out = struct.pack(">H", len(languages[0]) + 1)
    for texts in languages:
        body = b"\0\0" + b"".join(struct.pack(">H", len(text) + 3) + text.encode() + b"\0" for text in ["", *texts])
        out += struct.pack(">H", len(body)) + body
    return out


def test_tables_are_read_by_character_in_the_first_language(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drascula, "TABLES", 3)
    tables = [table([f"LINE {letters} ONE", "AND TWO"], ["EINS", "ZWEI"]) for letters in drascula.CHARACTERS]
    read = dict(drascula.tables_of(b"xyz" + struct.pack(">H", 2) + b"".join(tables)))
    assert read == {letters: [f"LINE {letters} ONE", "AND TWO"] for letters in drascula.CHARACTERS}


def test_capitals_are_those_of_a_sentence() -> None:
    assert drascula.clean("YES, I'M HERE. WHAT NOW, IGOR?") == "Yes, I'm here. What now, Igor?"
    assert drascula.clean("...") == drascula.clean("ROOM 512") == ""


@pytest.mark.slow
def test_the_real_drascula() -> None:
    sides = {name: load_source(f"drascula:{name}") for name in ("train", "valid")}
    assert len(sides["train"]) > 690 and len(sides["valid"]) > 15
    assert 0.7 < sum(e.duration or 0 for e in sides["train"]) / 3600 < 0.8
    assert len({e.speaker for e in sides["train"]}) == len(drascula.CHARACTERS)
    assert all(len(e.load()) == pytest.approx(16_000 * (e.duration or 0), abs=2) for e in sides["valid"])

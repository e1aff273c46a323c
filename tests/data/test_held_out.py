"""Lines of tests stay out of training."""

from __future__ import annotations

from pathlib import Path

import pytest

from steermoe.data import held_out
from steermoe.data.manifest import Example


def test_a_line_is_on_one_side_and_never_in_a_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_out, "test_lines", lambda: frozenset({"this is line seven"}))
    texts = [f"This is line {word}." for word in ("six", "seven", *(f"number x{n}" for n in range(300)))]
    clips = [
        Example(id=str(i), audio=Path("a.flac"), text=text) for i, text in enumerate([*texts, *map(str.upper, texts)])
    ]
    train, valid = ({c.text.lower() for c in held_out.by_line(clips, split)} for split in ("train", "valid"))
    assert not train & valid and train | valid == {t.lower() for t in texts} - {"this is line seven."}
    assert 2 <= len(valid) <= 30
    assert not held_out.by_line([Example(id="a", audio=Path("a"), text="Three words only")] * 9, "valid")

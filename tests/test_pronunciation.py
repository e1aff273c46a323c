"""How tokens sound: letters and phones are laid along each other, and parts of words sound as in most words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from steermoe import pronunciation
from steermoe.adapter import average, halve
from steermoe.errors import UsageError
from steermoe.inference.ears import Ears, load
from steermoe.pronunciation import aligned, learned, of_tokens, parts, pronounced
from steermoe.spelling import Spelling

WORDS = {  # of a made-up dictionary in which c is k, sh is one phone, a final e is silent and x is two
    "cat": "kæt", "cash": "kæʃ", "shop": "ʃɑp", "ship": "ʃɪp", "fish": "fɪʃ", "fox": "fɑks", "box": "bɑks",
    "cake": "kAk", "sip": "sɪp", "hop": "hɑp", "hat": "hæt", "sit": "sɪt", "cats": "kæts", "hats": "hæts", "fit": "fɪt",
    "lake": "lAk", "hip": "hɪp", "socks": "sɑks", "tip": "tɪp", "tap": "tæp", "hot": "hɑt", "bat": "bæt", "back": "bæk",
}  # fmt: skip


def test_letters_are_laid_along_phones() -> None:
    costs = learned(WORDS)
    told = {word: aligned(word, said, costs) for word, said in WORDS.items()}
    assert all(phones is not None and "".join(phones) == WORDS[word] for word, phones in told.items())
    assert told["box"] == ["b", "ɑ", "ks"] and told["hats"] == ["h", "æ", "t", "s"]
    shop, cake = told["shop"], told["cake"]
    assert shop is not None and shop[2:] == ["ɑ", "p"] and "".join(shop[:2]) == "ʃ"
    assert cake is not None and cake[0] == "k" and "".join(cake[1:]) == "Ak"
    assert aligned("a", "abcd", costs) is None  # one letter makes three phones at most


class Halves:
    """A tokenizer that parts words after their second letter."""

    pieces = (" ca", " sh", "t", "sh", "ts", "ip")

    def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
        number = {piece: i for i, piece in enumerate(self.pieces)}
        parted = [[text[:3], text[3:]] for text in texts]
        return {"input_ids": [[number[p] for p in pair if p in number] for pair in parted]}


def test_a_part_sounds_as_in_most_words_that_have_it() -> None:
    found = parts(Halves(), Halves.pieces, WORDS, learned(WORDS))
    assert found[0].most_common(1)[0][0] == "kæ" and found[1].most_common(1)[0][0] == "ʃ"
    assert found[5].most_common(1)[0][0] == "ɪp" and found[4].most_common(1)[0][0] == "ts"


def test_whole_words_parts_and_what_neither_has() -> None:
    found = {1: Counter({"kæ": 5, "kA": 2}), 3: Counter({"ts": 2}), 5: Counter({"ɪp": 9})}
    written = [" cat", " ca", "Hat", " tats", "cat", "ip", " zz", "7", " 7", "!", "", " it's"]
    said = of_tokens(written, WORDS, found, lambda word: f"<{word}>")
    assert said == [" kæt", " kæ", "hæt", " <tats>", "kæt", "ɪp", "", "<7>", " <7>", "", "", " <it's>"]


def test_what_sounds_alike_lies_together_whatever_its_letters() -> None:
    torch.manual_seed(0)
    spelling = Spelling([" knight", " night", " day"], 16, pronunciation=True)
    spelling.tell([" nIt", " nIt", ""])
    ids, rows = torch.arange(3), torch.nn.functional.normalize(torch.randn(3, 16), dim=-1)
    none = torch.zeros_like(rows)
    assert spelling.sounds is not None
    knight, night, day = spelling.sounds.added(ids, none)
    assert torch.equal(knight, night) and not day.any()
    plain = Spelling([" knight", " night", " day"], 16)
    plain.load_state_dict({k: v for k, v in spelling.state_dict().items() if not k.startswith("sounds.")})
    assert torch.equal(spelling(ids[2:], rows[2:]), plain(ids[2:], rows[2:]))  # what is not known adds nothing
    assert not torch.allclose(spelling(ids[:1], rows[:1]), plain(ids[:1], rows[:1]))


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(pronunciation, "cache_root", lambda: tmp_path / "cache")
    monkeypatch.setattr(pronunciation, "dictionary", lambda: WORDS)
    monkeypatch.setattr(pronunciation, "spoken", lambda word: "ə" * len(word))


def test_an_adapter_keeps_how_its_tokens_sound(
    told: None, make: Callable[..., Ears], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ears = make(spelling=True, pronunciation=True, fresh=True)
    spelling: Any = ears.model.projector.spelling  # type: ignore[union-attr]
    codes = spelling.sounds.letters
    assert codes.dtype == torch.uint8 and codes.any()
    calls: list[Any] = []
    monkeypatch.setattr(pronunciation, "pronounced", lambda *_: calls.append(1))
    ears.model.save_adapter(tmp_path / "whole")
    halve(tmp_path / "whole", tmp_path / "half")
    average({str(tmp_path / "whole"): 0.3, str(tmp_path / "half"): 0.7}, tmp_path / "mean")
    for name in ("whole", "half", "mean"):
        again: Any = load(tmp_path / name).model.projector
        assert torch.equal(again.spelling.sounds.letters, codes)
    assert not calls  # who hears needs no dictionary


def test_it_is_made_once(told: None, ears: Ears, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = ears.processor.tokenizer
    first = pronounced(tokenizer, 300)
    assert len(first) == 300 and any(first)
    monkeypatch.setattr(pronunciation, "learned", None)
    assert pronounced(tokenizer, 300) == first


def test_it_goes_with_spelling(make: Callable[..., Ears]) -> None:
    with pytest.raises(UsageError, match="pronunciation goes with spelling: true"):
        make(pronunciation=True)

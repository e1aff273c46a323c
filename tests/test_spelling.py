"""Spelling: words that training never spoke are heard, and rows follow what is learned."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from steermoe import load
from steermoe.errors import UsageError
from steermoe.inference.ears import Ears
from steermoe.lexical import PAUSE, LexicalProjector, Likeliest
from steermoe.spelling import LETTERS, Spelling, behind_others, spellings

WORDS = [" " + "".join(letters) for letters in itertools.product("abcd", "efgh", "ijkl")]  # 64 of three letters
WIDTH = 24


class Pieces:
    """A tokenizer of a family: what it stores of each token, and what its decoder writes."""

    def __init__(self, stored: list[str], written: list[str]) -> None:
        self.stored, self.written = stored, written

    def __len__(self) -> int:
        return len(self.stored)

    def convert_ids_to_tokens(self, ids: range) -> list[str]:
        return [self.stored[i] for i in ids]

    def batch_decode(self, rows: list[list[int]], **_: Any) -> list[str]:
        return [self.written[i] for (i,) in rows]


@pytest.mark.parametrize(
    "tokenizer",
    [
        Pieces(["\u0120the", "the", "\u00e9", "\u00e5\u00a5\u00bd"], [" the", "the", "\ufffd", "好"]),  # byte-level
        Pieces(["\u2581the", "the", "\ufffd", "好"], ["the", "the", "\ufffd", "好"]),  # SentencePiece drops the space
    ],
)
def test_a_space_in_front_is_kept(tokenizer: Pieces) -> None:
    assert spellings(tokenizer, 6) == [" the", "the", "\ufffd", "好", "", ""]
    assert spellings(tokenizer, 2) == [" the", "the"]


def test_what_begins_a_text_has_a_space_behind_others() -> None:
    written = ["If", " If", "if", " if", "I", " I", "BX", " BX", "Ann", ".", " .", "", "Ä", "Äh", " Äh"]
    told = [written[int(i)] for i in behind_others(written)]
    assert told == [" If", " If", "if", " if", "I", " I", "BX", " BX", "Ann", ".", " .", "", "Ä", " Äh", " Äh"]


def test_sentences_behind_the_first_word_begin_with_a_space() -> None:
    projector = LexicalProjector(4, torch.randn(5, 8), behind=torch.tensor([1, 1, 2, 3, 4]))
    ids = torch.tensor([[2, 0], [0, 3], [0, 3], [0, 3], [0, 2], [3, 0], [0, 1]])
    blank = torch.tensor([0.0, -9, -9, 0, 0, 0, -9])
    clip = Likeliest(torch.full((7, 2), -1.0), ids, blank)
    heard = projector._going_on(clip)
    assert torch.equal(
        heard.ids[: 3 + PAUSE], ids[: 3 + PAUSE]
    )  # the first word: frames 1 and 2, and what may be left of it
    assert heard.ids[6].tolist() == [1, 1] and heard.segments() == [(1, 3, 0), (6, 7, 1)]
    silent = Likeliest(torch.full((7, 2), -9.0), ids, torch.zeros(7))
    assert torch.equal(projector._going_on(silent).ids, ids)


def test_letters_of_any_script_and_length() -> None:
    torch.manual_seed(0)
    spelling = Spelling(["", "a", "A", "好" * LETTERS, "a" * 40, "ab", "ba", "\ufffd"], 8)
    rows = F.normalize(torch.randn(8, 8), dim=-1)
    ids = torch.arange(8)
    out = spelling(ids, rows)
    assert torch.allclose(out.norm(dim=-1), torch.ones(8)) and torch.allclose(out[0], rows[0])
    for i in ids:  # each by itself, whoever stands beside it
        assert torch.allclose(spelling(ids[i : i + 1], rows[i : i + 1])[0], out[i], atol=1e-6)
    again = spelling(ids, rows[:1].expand(8, -1))
    distances = torch.cdist(again, again) + torch.eye(8)
    assert (distances < 1e-3).nonzero().tolist() == [[1, 2], [2, 1]]  # capitals begin as small letters
    assert torch.equal(spelling(ids[:1], rows[:1]), rows[:1])
    with torch.autocast("cpu", dtype=torch.bfloat16):  # as under accelerate's mixed precision
        assert torch.allclose(spelling(ids, rows).float(), out, atol=0.05)


def heard(projector: LexicalProjector, sounds: dict[int, torch.Tensor], ids: list[int]) -> float:
    """Share of words that are read where they are said."""
    with torch.inference_mode():
        return sum(projector(sounds[i][None], torch.tensor([6])).tokens[0] == [i] for i in ids) / len(ids)


def test_words_that_training_never_spoke_are_heard() -> None:
    """Of 64 words that sound as they are spelled three quarters are trained; the others are heard only by their letters."""
    generator = torch.Generator().manual_seed(1)
    order = torch.randperm(64, generator=generator).tolist()
    seen, unseen = order[:48], order[48:]
    letters = torch.randn(128, WIDTH, generator=generator)
    silence = torch.randn(WIDTH, generator=generator)
    sounds = {
        i: torch.stack([silence, silence, *(sum(letters[ord(c)] for c in WORDS[i][1:]) for _ in "12"), silence, silence])
        for i in range(64)
    }  # fmt: skip
    table = torch.randn(64, 32, generator=generator)
    shares = []
    for spelling in (None, Spelling(WORDS, 32, hidden=32)):
        torch.manual_seed(0)
        projector = LexicalProjector(WIDTH, table, kernel=2, spelling=spelling)
        optimizer = torch.optim.AdamW(projector.parameters(), lr=1e-2)
        for _ in range(120):
            said = [seen[i] for i in torch.randint(48, (16,), generator=generator)]
            loss = projector.ctc_loss(torch.stack([sounds[i] for i in said]), torch.full((16,), 6), [[i] for i in said])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        shares.append((heard(projector, sounds, seen), heard(projector, sounds, unseen)))
    (plain_seen, plain_unseen), (told_seen, told_unseen) = shares
    assert plain_seen > 0.6 and told_seen > 0.9
    assert told_unseen > 0.7 and plain_unseen < 0.2


def test_rows_follow_what_is_learned() -> None:
    torch.manual_seed(0)
    projector = LexicalProjector(WIDTH, torch.randn(64, 16).bfloat16(), kernel=2, spelling=Spelling(WORDS, 16))
    h, lengths = torch.randn(1, 8, WIDTH), torch.tensor([8])
    with torch.inference_mode():
        before = projector.scores(h, lengths)[0]
        assert torch.equal(projector.scores(h, lengths)[0], before)
    some = torch.tensor([9, 3, 60])
    torch.testing.assert_close(projector.scores(h, lengths, some)[0], before[..., [9, 3, 60, 64]].clone())
    projector.ctc_loss(h, lengths, [[1, 2]]).backward()
    torch.optim.SGD(projector.parameters(), lr=0.1).step()
    with torch.inference_mode():
        after = projector.scores(h, lengths)[0]
    torch.testing.assert_close(
        after, projector.scores(h, lengths)[0].detach()
    )  # as with gradients, where nothing is kept
    assert not torch.allclose(after, before)


def test_it_is_in_the_adapter(make: Callable[..., Ears], speech: Callable[..., np.ndarray], tmp_path: Path) -> None:
    e = make(spelling=True, readings=1)
    clips = [speech(0.6), speech(1.4, 1)]
    with torch.no_grad():
        e.model.projector.blank_bias.fill_(-5.0)
    e.model.save_adapter(tmp_path / "a")
    again = load(tmp_path / "a")
    assert again.hear(clips, sampling_rate=16_000) == e.hear(clips, sampling_rate=16_000) != ["", ""]
    names = {name for name in again.model.adapter_state() if "spelling" in name}
    assert names and not any(name.endswith(("letters", "capital")) for name in names)
    beside = again.with_adapter(tmp_path / "a")
    assert beside.hear(clips, sampling_rate=16_000) == e.hear(clips, sampling_rate=16_000)


def test_only_words_have_letters(make: Callable[..., Ears]) -> None:
    with pytest.raises(UsageError, match="spelling goes with projector: lexical, not linear"):
        make(spelling=True, projector="linear")

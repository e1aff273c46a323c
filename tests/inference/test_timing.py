"""When it was said: words of a text laid along what was heard, segments, subtitles; on human speech at known places."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steermoe.audio import RATE
from steermoe.data import load_source
from steermoe.inference.ears import Ears, load
from steermoe.inference.subtitles import subtitles
from steermoe.inference.timing import Word, laid_along, segments, words_heard
from steermoe.inference.transcripts import Piece, Said
from steermoe.lexical import Likeliest

HEARD = [Word(0.5, 0.8, " The"), Word(0.8, 1.2, " quik"), Word(1.2, 1.6, " fox"), Word(2.4, 2.9, " ran")]


def test_words_that_match_keep_their_times_and_others_share_what_lies_between() -> None:
    assert laid_along("the quick, fox: ran.", HEARD, 4.0) == [
        (0.5, 0.8, "the"),
        (0.8, 1.2, " quick,"),
        (1.2, 1.6, " fox:"),
        (2.4, 2.9, " ran."),
    ]
    told = laid_along("The big bad fox ran away", HEARD, 4.0)
    assert told[1:3] == [(0.8, 1.0, " big"), (1.0, pytest.approx(1.2), " bad")]
    assert told[-1] == (2.9, pytest.approx(2.9 + 5 * 0.08), " away")  # after the last that was heard: at a usual pace
    assert laid_along("So the", HEARD, 4.0)[0] == (pytest.approx(0.34), 0.5, "So")
    assert laid_along("The quik fox ran on", HEARD, 3.0)[-1] == (2.9, 3.0, " on")
    assert laid_along("The fox ran", HEARD, 4.0)[1] == (1.2, 1.6, " fox")  # a word that was heard, and is not written


def test_without_spaces_each_character_is_a_word() -> None:
    heard = [Word(0.0, 1.0, "今天"), Word(1.0, 1.6, "天气好")]
    told = laid_along("今天天气很好。", heard, 2.0)
    assert "".join(word.text for word in told) == "今天天气很好。"
    assert [word.start for word in told[:4]] == pytest.approx([0.0, 0.5, 1.0, 1.2])


def test_a_word_goes_on_after_its_last_peak_and_a_mark_is_no_sound(ears: Ears) -> None:
    """Frames of 0.1 s: " very" from 0.1 on, " well" from 0.2 on, "." in the silence a second later."""
    tokenizer = ears.processor.tokenizer
    very, well, mark = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (" very", " well", "."))
    best = torch.full((20,), -1)
    frames = [*very, *well]
    best[1 : 1 + len(frames)] = torch.tensor(frames)
    best[15] = mark[0]
    chances = torch.where(best >= 0, -0.1, -9.0)[:, None]
    read = Likeliest(chances, best.clamp_min(0)[:, None], torch.where(best >= 0, -5.0, -0.01))
    first, second = words_heard(read, tokenizer, 10.0)
    middle, end = 0.1 + len(very) / 10, 0.1 + len(frames) / 10
    assert first == (0.1, pytest.approx(middle), " very")  # until the next begins
    assert second == (pytest.approx(middle), pytest.approx(end + 0.3), " well.")
    assert words_heard(read, tokenizer, 10.0, end + 0.1)[1].end == pytest.approx(end + 0.1)  # no later than the clip


def test_nothing_heard_has_no_times() -> None:
    assert laid_along("It was invented", [], 3.0) == [] and laid_along("", HEARD, 3.0) == []


@given(st.text(max_size=60), st.lists(st.text(" abcæ今天.", min_size=1, max_size=6), max_size=12))
def test_of_any_text_nothing_is_lost_and_time_runs_forward(text: str, heard: list[str]) -> None:
    said = [Word(i, i + 0.5, word) for i, word in enumerate(heard)]
    told = laid_along(text, said, float(len(heard)))
    if told:
        assert "".join(word.text for word in told) == text.strip()
        times = [time for word in told for time in word[:2]]
        assert times == sorted(times) and times[0] >= 0 and times[-1] <= len(heard)
        assert re.sub(r"\s", "", "".join(line.text for line in segments(told))) == re.sub(r"\s", "", text)


def test_segments_end_with_sentences_pauses_and_at_their_longest() -> None:
    def words(*spoken: tuple[float, str]) -> list[Word]:
        return [Word(start, start + 0.2, text) for start, text in spoken]

    assert segments(words((0, "Go."), (0.3, " Now"), (1.2, " or"), (1.5, " never"))) == [
        (0, 0.2, "Go."),
        (0.3, 0.5, "Now"),
        (1.2, 1.7, "or never"),
    ]
    long = segments([Word(i / 2, i / 2 + 0.4, f" word{i}") for i in range(40)])
    assert all(line.end - line.start <= 7.0 and len(line.text) <= 84 for line in long) and len(long) == 4
    wide = segments([Word(i / 20, i / 20 + 0.04, " extraordinary") for i in range(14)])
    assert [len(line.text) for line in wide] == [83, 83, 27]


def test_subtitles_of_pieces() -> None:
    pieces = [
        Piece(0.0, 3.0).filled(Said("Yes --> no. Go", [Word(0.5, 1.0, "Yes"), Word(1, 1.2, " -->"), Word(1.2, 1.5, " no."), Word(1.6, 2, " Go")])),
        Piece(3.0, 30.0),
        Piece(30.0, 3661.5, "a < b"),
    ]  # fmt: skip
    assert "\n".join(subtitles(pieces, "srt")) == (
        "1\n00:00:00,500 --> 00:00:01,500\nYes -> no.\n\n2\n00:00:01,600 --> 00:00:02,000\nGo\n\n"
        "3\n00:00:30,000 --> 01:01:01,500\na < b\n"
    )
    assert "\n".join(subtitles(pieces, "vtt")).endswith("\n\n00:00:30.000 --> 01:01:01.500\na &lt; b\n")


def test_words_are_where_people_say_them() -> None:
    """Two recordings with 2 s of silence before, between and after: no word in the silence, the first where speech begins."""
    one, two = (example.load() for example in load_source("librivox")[:2])
    quiet = np.zeros(2 * RATE, dtype=np.float32)
    pieces = list(load("tiny").stream(np.concatenate([quiet, one, quiet, two, quiet]), sampling_rate=RATE))
    spoken = [(2.0, 2.0 + len(one) / RATE), (4.0 + len(one) / RATE, 4.0 + (len(one) + len(two)) / RATE)]
    words = [word for piece in pieces for word in piece.words]
    assert all("".join(word.text for word in piece.words) == piece.text for piece in pieces)
    for word in words:
        assert any(start - 0.1 <= word.start < word.end <= end + 0.1 for start, end in spoken), word
    for start, end in spoken:
        inside = [word for word in words if start - 0.1 <= word.start <= end]
        assert abs(inside[0].start - start) < 1.0 and abs(inside[-1].end - end) < 1.0


class Stripping:
    """As SentencePiece's decoders: the space before a word is in the piece, and not in what is decoded."""

    pieces = ("\u2581the", "\u2581qu", "ick", "\u2581fox", "你", "好")

    def convert_ids_to_tokens(self, token: int) -> str:
        return self.pieces[token]

    def decode(self, tokens: list[int]) -> str:
        return "".join(self.pieces[t] for t in tokens).replace("\u2581", " ").strip()


def test_words_begin_where_pieces_say_so_or_characters_stand_alone() -> None:
    best = torch.tensor([-1, 0, -1, 1, 2, -1, -1, 3, -1, 4, -1, -1, 5, -1])
    read = Likeliest(
        torch.where(best >= 0, -0.1, -9.0)[:, None], best.clamp_min(0)[:, None], torch.where(best >= 0, -5.0, -0.01)
    )
    told = words_heard(read, Stripping(), 10.0)
    assert [(word.text, round(word.start, 1)) for word in told] == [
        ("the", 0.1),
        ("quick", 0.3),
        ("fox", 0.7),
        ("你", 0.9),
        ("好", 1.2),
    ]

"""When it was said: CTC tells where each word was heard, and the text that the LLM wrote is laid along that."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from typing import Any, NamedTuple

from ..lexical import Likeliest

LINGERS = 0.3  # seconds that a word goes on after CTC's last peak of it: the median in 40 clips of fotaq:valid, by their energy
PACE = 0.08  # seconds a character, of words before the first and after the last that were heard
PAUSE = 0.6  # seconds between two words that end a segment
LONGEST, WIDEST = 7.0, 84  # seconds and characters of a segment: two lines of a subtitle
_ALONE = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"  # Chinese and Japanese are written without spaces
_UNIT = re.compile(rf"\s*(?:[{_ALONE}]|[^\s{_ALONE}]+)")


class Word(NamedTuple):
    """``text``, with the space before it, if there is one, and when it was said, in seconds."""

    start: float
    end: float
    text: str


def by_words(read: Likeliest, tokenizer: Any) -> list[list[tuple[int, int, int]]]:
    """A clip's CTC segments (first frame, last frame + 1, token id), those of a word together: tokens that continue it belong to it."""
    words: list[list[tuple[int, int, int]]] = []
    for segment in read.segments():
        if words and not _begins(segment[2], tokenizer):
            words[-1].append(segment)
        else:
            words.append([segment])
    return words


def _begins(token: int, tokenizer: Any) -> bool:
    """Whether a token begins a word: with a space, which some decoders drop (SentencePiece), or with a character that stands alone."""
    text = tokenizer.decode([token])
    return bool(re.match(rf"[ {_ALONE}]", text)) or (tokenizer.convert_ids_to_tokens(token) or "").startswith("\u2581")


def words_heard(read: Likeliest, tokenizer: Any, rate: float, length: float = math.inf) -> list[Word]:
    """The arg-max words of a clip of ``length`` seconds, with ``rate`` frames in each. A mark is no sound, and is often read in
    the silence after."""
    words = by_words(read, tokenizer)
    until = [*(word[0][0] for word in words), len(read.blank)][1:]
    told = []
    for (first, *more), limit in zip(words, until, strict=True):
        start, peak, _ = first
        peak = max([peak, *(end for _, end, token in more if re.search(r"[\w\ufffd]", tokenizer.decode([token])))])
        text = tokenizer.decode([token for _, _, token in (first, *more)])
        told.append(Word(min(start / rate, length), min(peak / rate + LINGERS, limit / rate, length), text))
    return told


def laid_along(text: str, heard: Sequence[Word], length: float) -> list[Word]:
    """The words of ``text`` (characters, where no spaces are written), each when it was heard; joined they are the text.

    Words are matched without case and punctuation; between two that match, those that differ share the time that is
    there by their lengths. ``length`` is the clip's, in seconds. [] where nothing was heard.
    """
    timed = [unit for word in heard for unit in _shared(word.start, word.end, _UNIT.findall(word.text))]
    units = _UNIT.findall(text.strip())
    plain = [_plain(word.text) for word in timed], [_plain(unit) for unit in units]
    words: list[Word] = []
    for how, a, b, c, d in SequenceMatcher(None, *plain, autojunk=False).get_opcodes() if timed else []:
        if how == "equal":
            words += [Word(w.start, w.end, unit) for w, unit in zip(timed[a:b], units[c:d], strict=True)]
        else:
            most = PACE * sum(map(len, units[c:d]))
            start = timed[a].start if a < b else timed[a - 1].end if a else max(0.0, timed[0].start - most)
            end = timed[b - 1].end if a < b else timed[b].start if b < len(timed) else min(length, start + most)
            words += _shared(start, max(start, end), units[c:d])
    return words


def _plain(unit: str) -> str:
    return re.sub(r"\W", "", unit).casefold() or unit


def _shared(start: float, end: float, units: Sequence[str]) -> Iterator[Word]:
    """The time from ``start`` to ``end`` dealt out by the units' lengths."""
    total, at = sum(map(len, units)), 0
    for unit in units:
        begun, at = at, at + len(unit)
        yield Word(start + (end - start) * begun / total, start + (end - start) * at / total, unit)


def segments(words: Sequence[Word]) -> list[Word]:
    """Words as segments: a sentence, or less where it is long or somebody pauses."""
    found: list[list[Word]] = []
    for word in words:
        last = found[-1] if found else []
        ended = not last or last[-1].text[-1] in ".?!…。？！" or word.start - last[-1].end >= PAUSE
        if ended or word.end - last[0].start > LONGEST or len(_text([*last, word])) > WIDEST:
            found.append([word])
        else:
            last.append(word)
    return [Word(line[0].start, line[-1].end, _text(line)) for line in found]


def _text(words: Sequence[Word]) -> str:
    return "".join(word.text for word in words).strip()

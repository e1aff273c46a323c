"""What is said of an LLM's vocabulary and of lists of words: each common word until it was said four times."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from steermoe import pretrained
from steermoe.data import vocabulary
from steermoe.data.fotaq import line_key
from steermoe.data.vocabulary import common_tokens, inflected, listed_words, rarer_texts, vocabulary_texts

KNOWN = ["user", "menu", "exit", "pay", "lamp", "stop", "echo", "dial", "carry"]


def test_common_tokens_are_whole_known_words_in_the_order_of_their_numbers() -> None:
    numbers = {"Ġmenu": 9, "ĠMenu": 2, "Ġuser": 5, "user": 1, "Ġth": 0, "Ġco2": 3, "Ġqxz": 4, "Ġexits": 6, "Ġlamp!": 7}
    assert common_tokens(numbers, inflected(KNOWN)) == ["menu", "user", "exits"]


def test_inflected_holds_the_forms_of_verbs_and_nouns() -> None:
    assert {"stop", "stops", "stopped", "stopping", "carries", "carried", "menus"} <= inflected(KNOWN)


def test_every_word_is_said_until_it_was_said_often_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = {f"Ġ{word}": i for i, word in enumerate(KNOWN)}
    monkeypatch.setattr(pretrained, "load_tokenizer", lambda name: SimpleNamespace(get_vocab=lambda: numbers))
    monkeypatch.setattr(vocabulary, "dictionary_words", lambda: set(KNOWN))
    monkeypatch.setattr(vocabulary, "BLOCKS", (6, 9))
    said = ["Pay the user. Pay, pay!", "Pay the lamp, user."]
    texts = vocabulary_texts(said, set())
    assert texts == vocabulary_texts(said, set()) and len(set(texts)) == len(texts)
    times = Counter(word for text in [*said, *texts] for word in line_key(text).split())
    assert [times[word] for word in KNOWN] == [4] * 9 and "pay" not in line_key(" ".join(texts)).split()
    rare = {"echo", "dial", "carry"}  # the second block comes when the first is done
    assert [bool(set(line_key(text).split()) & rare) for text in texts] == sorted(
        bool(set(line_key(text).split()) & rare) for text in texts
    )
    assert line_key(texts[0]) not in map(line_key, vocabulary_texts(said, {line_key(texts[0])}))


@pytest.fixture
def lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SCOWL in small, and a dictionary that uses "pestle" and "mortar" three times and "quern" twice, but for a line of a test."""
    folder = tmp_path / "usr" / "share" / "dict" / "scowl"
    folder.mkdir(parents=True)
    files = {"english-words.10": "we\nmailbox\nmailbox's\nCaller\n", "english-contractions.10": "they've\nI'm\n"}
    files |= {"american-words.20": "color\nmailbox\n"}
    files |= {"english-words.35": "pestle\nquern\nmortar\ncaf\u00e9\nantidisestablish\nmailbox\n"}
    for name, words in files.items():
        (folder / name).write_text(words, encoding="latin-1")
    glosses = ["a pestle; a mortar", "the pestle of a quern", "the quern", "pestle and mortar", "mortar", TESTED]
    monkeypatch.setattr(vocabulary, "unpacked", lambda package: tmp_path)
    monkeypatch.setattr(vocabulary, "glosses", lambda: (([], gloss) for gloss in glosses))


TESTED = "a quern in a test"


def test_listed_words_are_plain_american_ones_and_contractions(lists: None) -> None:
    assert listed_words(("10", "20")) == ["mailbox", "they've", "color"]
    assert listed_words(("35",)) == ["pestle", "quern", "mortar", "mailbox"]


def test_rarer_words_come_when_they_were_said_least(lists: None) -> None:
    said, wanted = ["Color the mailbox.", "Color, color!"], ("mailbox", "they've", "color", "pestle", "mortar")
    texts = rarer_texts(said, {TESTED})
    times = Counter(word for text in [*said, *texts] for word in line_key(text).split())
    assert [times[word] for word in wanted] == [4] * 5 and "quern" not in times
    assert "quern" in line_key(" ".join(rarer_texts(said, set()))).split()
    new = [set(line_key(text).split()) & set(wanted) for text in texts]
    # The other list comes when this one was said twice.
    assert new[:3] == [{"they've"}, {"they've", "mailbox"}, {"pestle", "mortar"}]
    assert line_key(texts[0]) not in map(line_key, rarer_texts(said, {line_key(texts[0])}))

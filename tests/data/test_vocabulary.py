"""What is said of an LLM's vocabulary: common whole words, each until it was said four times."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest

from steermoe import pretrained
from steermoe.data import vocabulary
from steermoe.data.fotaq import line_key
from steermoe.data.vocabulary import common_tokens, inflected, vocabulary_texts

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

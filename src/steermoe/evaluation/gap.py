"""The ``gap`` suite: what is lost when a question is spoken instead of written.

Each question is answered three ways by the same LLM: from its audio (``hypothesis``), from its ``text``, and by a ``cascade``,
from the ``transcript`` that the encoder's own decoder writes (a server's: its transcription). An answer is right if

- knowledge: it has the words of the right answer, and of none of the row's ``others``;
- arithmetic: the only number in it, beside those of the question, is the right one;
- instruction, or anything else: all of it is the right answer, after normalisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DataError
from . import collect, grading, scoring
from .collect import OWN, System
from .grading import exact, names_only, plain
from .predictions import Row

if TYPE_CHECKING:
    from .listener import Listener
    from .suites import Options


def run(listener: Listener, options: Options) -> dict[str, Any]:
    """Every question of ``options.examples`` three ways; ``prompt`` is the question and ``text`` its answer."""
    for example in options.examples:
        if not example.prompt or not plain(example.text):
            raise DataError(f"{options.data}: clip {example.id} needs a prompt, its question, and a text, the answer")
    own = listener.own_decoder()
    maker = f"{listener.name}@{listener.fingerprint[:12]}"

    def speech(rows: list[Row], samples: list[np.ndarray]) -> list[str]:
        return listener.answer([""] * len(rows), samples)

    def text(rows: list[Row], samples: list[np.ndarray]) -> list[str]:
        return listener.answer([row["question"] for row in rows], [None] * len(rows))

    def transcript(rows: list[Row], samples: list[np.ndarray]) -> list[str]:
        return own(samples)

    def cascade(rows: list[Row], samples: list[np.ndarray]) -> list[str]:
        asked = [row["transcript"] for row in rows]
        answers = iter(listener.answer([a for a in asked if a], [None for a in asked if a]))
        return [next(answers) if a else "" for a in asked]  # where nothing was heard, nothing is asked

    ways = [System(OWN, speech, maker), System("text", text, f"{maker}/text")]
    by_decoder = f"{maker}/{getattr(own, 'name', 'transcript')}"
    last = System("cascade", cascade, by_decoder)
    systems = [*ways, System("transcript", transcript, by_decoder), last]
    rows = collect.collect(options.examples, systems, data=options.data, batch_size=options.batch_size,
                           out=options.out, shard=options.shard)  # fmt: skip
    for row in rows:
        if "error" not in row:
            row["right"] = {system.column: is_right(row, row[system.column]) for system in [*ways, last]}
    heard = collect.heard(rows, options.data)
    result = grading.result_of("gap", rows, [*ways, last], data=options.data, adapter=listener.name,
                               about=listener.about(), shard=options.shard, more=agreement(heard))  # fmt: skip
    if options.out is not None:
        collect.save(options.out, options.shard, rows, result)
    return result


def is_right(row: Row, answer: str) -> bool:
    gold = row["reference"]
    if row.get("kind") == "knowledge":
        return names_only(answer, gold, row.get("others") or [])
    if row.get("kind") == "arithmetic":
        return numbers(answer) - numbers(row["question"]) == {plain(gold)}
    return exact(answer, [gold])


def numbers(text: str) -> set[str]:
    """Whole numbers in a text, those in words too, as digits."""
    return {word for word in plain(text).split() if word.isdecimal()}


def agreement(rows: Sequence[Row]) -> dict[str, float | None]:
    """How often an answer to speech, or through the transcript, equals the answer to text; and the transcripts' WER."""
    counts = scoring.score([row["question"] for row in rows], [row["transcript"] for row in rows]).words
    return {
        "speech_equals_text": grading.mean([plain(row[OWN]) == plain(row["text"]) for row in rows]),
        "cascade_equals_text": grading.mean([plain(row["cascade"]) == plain(row["text"]) for row in rows]),
        "speech_judged_as_text": grading.mean([row["right"][OWN] == row["right"]["text"] for row in rows]),
        "cascade_judged_as_text": grading.mean([row["right"]["cascade"] == row["right"]["text"] for row in rows]),
        "transcript_wer": scoring.rate(counts),
    }

"""The ``aqa`` suite: questions about audio whose answers are right or wrong.

Open questions follow Clotho-AQA (Lipping et al., 2022): a row of the manifest is a clip with a question (``prompt``) and
the ``answers`` of its annotators (``text`` where there is but one); rows that ask the same of the same audio are its annotators',
too. After normalisation the whole answer must be one of theirs. ``accuracy`` counts what most annotators said, or any of them where no two agree; ``any`` counts any of them,
``unanimous`` only the questions on which all agree, ``annotators`` is the mean over all pairs of question and annotator.
Yes-or-no and single-word questions are counted apart (``kind``; by the answers where the manifest names none).

A row with ``choices`` (as MMAU has them) is multiple choice: the answer must be one choice's text, its letter, or both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DataError
from . import collect, grading
from .collect import OWN, System
from .grading import LETTERS, choice_of, exact, plain
from .predictions import Row

if TYPE_CHECKING:
    from ..data import Example
    from .listener import Listener
    from .suites import Options


def run(listener: Listener, options: Options) -> dict[str, Any]:
    """Every question of ``options.examples`` answered by the listener, and judged."""
    _check(options.examples, options.data)
    questions = by_question(options.examples)

    def answer(rows: list[Row], samples: list[np.ndarray]) -> list[str]:
        return listener.answer([asked(row) for row in rows], samples)

    maker = f"{listener.name}@{listener.fingerprint[:12]}"
    systems = [System(OWN, answer, maker)]
    rows = collect.collect(questions, systems, data=options.data, batch_size=options.batch_size,
                           out=options.out, shard=options.shard)  # fmt: skip
    for row in rows:
        row["kind"] = kind_of(row)
        if "error" not in row:
            row["right"] = {OWN: is_right(row, row[OWN])}
    result = grading.result_of("aqa", rows, systems, data=options.data, adapter=listener.name, about=listener.about(),
                               shard=options.shard, more=protocol(collect.heard(rows, options.data)))  # fmt: skip
    if options.out is not None:
        collect.save(options.out, options.shard, rows, result)
    return result


def by_question(examples: Sequence[Example]) -> list[Example]:
    """One example a question, with the ``answers`` of all its annotators, who may have come one a row."""
    groups: dict[Any, list[Example]] = {}
    for i, e in enumerate(examples):
        alone = e.more.get("answers") or e.more.get("choices")
        groups.setdefault(i if alone else (str(e.audio), e.start, e.end, e.prompt), []).append(e)
    return [
        members[0]
        if len(members) == 1
        else replace(members[0], more={**members[0].more, "answers": [e.text for e in members]})
        for members in groups.values()
    ]


def _check(examples: Sequence[Example], data: str) -> None:
    for example in examples:
        answers, choices = example.more.get("answers"), example.more.get("choices")
        if not example.prompt:
            raise DataError(f"{data}: clip {example.id} has no prompt, which is the question")
        for key, value in (("answers", answers), ("choices", choices)):
            told = isinstance(value, list) and value and all(isinstance(item, str) for item in value)
            if value is not None and not told:
                raise DataError(f"{data}: clip {example.id}: {key}: {value!r} is no list of texts")
        if choices and sum(plain(choice) == plain(example.text) for choice in choices) != 1:
            raise DataError(
                f"{data}: clip {example.id}: the answer {example.text!r} is not one of its choices {choices}"
            )
        if not any(plain(answer) for answer in answers or [example.text]):
            raise DataError(f"{data}: clip {example.id}: its answer is empty")


def asked(row: Row) -> str:
    """The question as it is put: choices get letters."""
    if not row.get("choices"):
        return str(row["question"])
    lettered = "\n".join(f"({letter}) {choice}" for letter, choice in zip(LETTERS, row["choices"], strict=False))
    return f"{row['question']}\n{lettered}\nAnswer with one of these."


def golds(row: Row) -> list[str]:
    """What most annotators said, after ``plain``; all that was said where no two agree."""
    said = Counter(filter(None, map(plain, row.get("answers") or [row["reference"]])))
    most = max(said.values())
    return sorted(answer for answer, count in said.items() if count == most)


def kind_of(row: Row) -> str:
    if row.get("kind"):
        return str(row["kind"])
    if row.get("choices"):
        return "choice"
    return "yes or no" if set(golds(row)) <= {"yes", "no"} else "single word"


def is_right(row: Row, answer: str) -> bool:
    if row.get("choices"):
        number = choice_of(answer, row["choices"])
        return number is not None and plain(row["choices"][number]) == plain(row["reference"])
    return exact(answer, golds(row))


def protocol(rows: Sequence[Row]) -> dict[str, float | None]:
    """Clotho-AQA's ways to count, over the open questions; None where there are none."""
    judged = [
        (row, [plain(a) for a in row.get("answers") or [row["reference"]]]) for row in rows if not row.get("choices")
    ]
    agreed = [(row, said) for row, said in judged if len(set(said)) == 1]
    return {
        "any": grading.mean([exact(row[OWN], said) for row, said in judged]),
        "unanimous": grading.mean([exact(row[OWN], said) for row, said in agreed]),
        "annotators": grading.mean([exact(row[OWN], [one]) for row, said in judged for one in said]),
    }

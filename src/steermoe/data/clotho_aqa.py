"""``clotho_aqa``: questions about 1,991 sounds, each answered by three people (Lipping et al., 2022; zenodo.org/record/6473207).

``clotho_aqa_{train,val,test}.csv`` (``file_name``, ``QuestionText``, ``answer``, ``confidence``) and ``audio_files/``. A question has
three rows, one an annotator: all are kept. Their ids, ``FILE/QUESTION/ANNOTATOR`` from 1, tell what belongs together.
"""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

from ..errors import DataError
from .manifest import Example
from .shipped import choose, find, there

SPLITS = ("train", "val", "test")
COLUMNS = ("file_name", "QuestionText", "answer")
PROMPT = (
    "please answer the following question. The question is : "  # the authors' code; the paper lacks the first letter
)


def load(split: str, root: Path | None = None) -> list[Example]:
    """One example an answer: the question, after PROMPT, is the clip's ``prompt``, the answer its ``text``."""
    book = find(f"clotho_aqa:{choose('clotho_aqa', split, SPLITS)}", root, f"clotho_aqa_{split}.csv")
    folder = find("clotho_aqa", book.parent, "audio_files")
    numbers: dict[tuple[str, str], int] = {}  # of a file's questions, in their order
    asked: Counter[str] = Counter()
    heard: Counter[tuple[str, str]] = Counter()
    examples = []
    try:
        with open(book, encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            if missing := [name for name in COLUMNS if name not in (rows.fieldnames or [])]:
                raise DataError(
                    f"{book}:1: no column {missing[0]!r}; it has {', '.join(rows.fieldnames or []) or 'none'}"
                )
            for row in rows:
                where = f"{book}:{rows.line_num}"
                if not all(row[name] and row[name].strip() for name in COLUMNS):
                    raise DataError(f"{where}: file_name, QuestionText and answer must not be empty")
                name, question, answer = (row[key].strip() for key in COLUMNS)
                audio = there(folder / name, where)
                if (name, question) not in numbers:
                    asked[name] += 1
                    numbers[name, question] = asked[name]
                heard[name, question] += 1
                id = f"{Path(name).stem}/{numbers[name, question]}/{heard[name, question]}"
                examples.append(Example(id, audio, answer, language="en", prompt=PROMPT + question))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{book}: not a CSV file in UTF-8 ({error})") from None
    if not examples:
        raise DataError(f"{book}: holds no question")
    return examples

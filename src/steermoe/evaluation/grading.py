"""Is an answer right? Exact after normalisation: a word inside a longer text never counts by itself.

Shared by the suites whose answers are judged right or wrong; what they have in common of a result is here, too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from . import collect, scoring
from .collect import OWN, Shard, System
from .predictions import Row
from .provenance import provenance

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LABELLED = re.compile(r"\s*\(?([A-Za-z])(?:\)[.:]?|[.:](?=\s|$))\s*(.*)", re.S)  # "(b) a dog", "B. a dog", "b:"


def plain(text: str) -> str:
    """Lower case, British as American, numbers as digits, without punctuation and a leading article.

    By Whisper's English normaliser, which takes fillers such as "uh" away as well.
    """
    words = [w for w in scoring.normalizer("english")(text).split() if any(c.isalnum() for c in w)]
    return " ".join(words[1:] if len(words) > 1 and words[0] in ("a", "an", "the") else words)


def exact(answer: str, golds: Sequence[str]) -> bool:
    """Whether ``answer`` is one of ``golds`` after ``plain``; no gold is empty."""
    said = plain(answer)
    return bool(said) and said in {plain(gold) for gold in golds}


def choice_of(answer: str, choices: Sequence[str]) -> int | None:
    """Which of ``choices`` an answer names: by its whole text, by its letter, or by both where they agree; else None."""
    wanted, bare = [plain(choice) for choice in choices], answer.strip()
    if bare in choices:
        return list(choices).index(bare)
    letters = LETTERS[: len(choices)]
    if len(bare) == 1 and bare.upper() in letters:
        return letters.index(bare.upper())
    labelled = _LABELLED.fullmatch(answer)
    if labelled is None:
        said = plain(answer)
        return wanted.index(said) if said and wanted.count(said) == 1 else None
    number, rest = letters.find(labelled[1].upper()), plain(labelled[2])
    return number if number >= 0 and (not rest or rest == wanted[number]) else None


def names_only(answer: str, gold: str, others: Sequence[str]) -> bool:
    """Whether ``answer`` has the words of ``gold`` in a row and those of none of ``others`` (all after ``plain``)."""
    said = f" {plain(answer)} "
    return (
        bool(plain(gold))
        and f" {plain(gold)} " in said
        and not any(f" {plain(o)} " in said for o in others if plain(o))
    )


def accuracy(right: Sequence[bool]) -> dict[str, Any]:
    """``n``, ``accuracy`` and its bootstrap ``interval``."""
    counts = scoring.verdicts(right)
    low, high = scoring.interval(counts)
    if len(right) and all(right):
        high = scoring.sure(len(right))
    if len(right) and not any(right):
        low = 1 - scoring.sure(len(right))
    return {"n": len(right), "accuracy": 1 - scoring.rate(counts), "interval": [1 - high, 1 - low]}


def groups(rows: Sequence[Row], column: str = OWN, key: str = "kind") -> dict[str, dict[str, Any]]:
    """``accuracy`` of the rows of each kind, by name."""
    kinds = sorted({str(row[key]) for row in rows if key in row})
    return {kind: accuracy([row["right"][column] for row in rows if str(row.get(key)) == kind]) for kind in kinds}


def answer_failures(rows: Sequence[Row], column: str = OWN) -> dict[str, int]:
    """Answers that are empty, or that repeat a phrase."""
    texts = [row[column] for row in rows]
    return {"empty": sum(not text.split() for text in texts),
            "repeated": sum(scoring.is_looping("", text) for text in texts)}  # fmt: skip


def result_of(
    suite: str,
    rows: Sequence[Row],
    systems: Sequence[System],
    *,
    data: str,
    adapter: str,
    about: Mapping[str, Any],
    shard: Shard | None,
    more: Mapping[str, float | None],
) -> dict[str, Any]:
    """The result of a suite of right and wrong: ``rows`` are all, those that were heard have ``right`` by column.

    ``more`` are further metrics, beside ``accuracy``.
    """
    heard = collect.heard(rows, data)
    own = scoring.verdicts([row["right"][OWN] for row in heard])

    def column(system: System) -> dict[str, Any]:
        mine = scoring.verdicts([row["right"][system.column] for row in heard])
        return {
            **accuracy([row["right"][system.column] for row in heard]),
            "name": system.maker,
            "groups": groups(heard, system.column),
            "p_value": scoring.paired_p(own, mine),
            "rtfx": collect.speed(heard, system.column),
            "failures": answer_failures(heard, system.column),
        }

    whole = accuracy([row["right"][OWN] for row in heard])
    return {
        "suite": suite,
        **({"shard": str(shard)} if shard else {}),
        "data": data,
        "n": len(heard),
        "metrics": {"accuracy": whole["accuracy"], **more},
        "interval": {"accuracy": whole["interval"]},
        "groups": groups(heard),
        "columns": {system.column: column(system) for system in systems if system.column != OWN},
        "rtfx": collect.speed(heard, OWN),
        "latency": collect.latency(heard, OWN),
        "adapter": adapter,
        "failures": answer_failures(heard) | {"undecodable": len(rows) - len(heard)},
        "undecodable": collect.undecodable(rows),
        "seconds": round(sum(row["duration"] for row in heard), 3),
        "provenance": provenance() | dict(about) | {"data_sha256": collect.data_digest(heard)},
    }


def mean(right: Sequence[bool]) -> float | None:
    """Share of what is right; None of nothing."""
    return float(np.mean(right)) if len(right) else None

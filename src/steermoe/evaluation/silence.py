"""The ``silence`` suite: what is heard where nothing is said?

On clips without a word, a transcript is right if it has none after Whisper's English normaliser; ``invented`` counts those
that do. Texts of the data are not looked at, so that any recordings that hold no speech will do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import collect, grading, scoring
from .asr import as_answer
from .collect import OWN, System
from .grading import plain
from .predictions import Row

if TYPE_CHECKING:
    from .listener import Listener
    from .suites import Options


def run(listener: Listener, options: Options) -> dict[str, Any]:
    """Every clip of ``options.examples`` transcribed; with ``--baseline`` by the encoder's own decoder, too."""
    maker = f"{listener.name}@{listener.fingerprint[:12]}"
    systems = [System(OWN, as_answer(listener.transcribe), maker)]
    if options.baseline:
        decoder = listener.own_decoder()
        systems.append(System("baseline", as_answer(decoder), getattr(decoder, "name", "baseline")))
    rows = collect.collect(options.examples, systems, data=options.data, batch_size=options.batch_size,
                           out=options.out, shard=options.shard)  # fmt: skip
    for row in rows:
        if "error" not in row:
            row["right"] = {system.column: not plain(row[system.column]) for system in systems}
    result = grading.result_of("silence", rows, systems, data=options.data, adapter=listener.name,
                               about=listener.about(), shard=options.shard, more={})  # fmt: skip
    heard = collect.heard(rows, options.data)
    result["failures"] = failures(heard, OWN) | {"undecodable": len(rows) - len(heard)}
    for column in result["columns"]:
        result["columns"][column]["failures"] = failures(heard, column)
    if options.out is not None:
        collect.save(options.out, options.shard, rows, result)
    return result


def failures(rows: list[Row], column: str) -> dict[str, int]:
    """Transcripts with a word in them, and those that repeat a phrase."""
    return {"invented": sum(not row["right"][column] for row in rows),
            "repeated": sum(scoring.is_looping("", row[column]) for row in rows)}  # fmt: skip

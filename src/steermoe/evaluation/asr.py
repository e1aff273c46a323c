"""The ``asr`` suite: word and character error rates of a transcriber over a whole set, never a sample of it.

A clip that cannot be decoded is listed under ``undecodable``, counted in ``failures`` and named on stderr; it
enters no rate, since no transcriber heard it. ``n`` is the number of clips that were heard.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DataError, UsageError
from . import collect, scoring
from .collect import BASE, OWN, WORK, Shard, System
from .predictions import Row
from .provenance import provenance

if TYPE_CHECKING:
    from ..data import Example
    from .listener import Listener
    from .suites import Options

Transcribe = Callable[[list[np.ndarray]], list[str]]
RESERVED = BASE | WORK | {OWN, "baseline", "duration", "error", "question", "speaker"}


def run(listener: Listener, options: Options) -> dict[str, Any]:
    """As the command line asks: the listener on ``options.data``."""
    if options.heard:
        listener.hear([])  # one that cannot says so now
    baseline = listener.own_decoder(spoken(options)) if options.baseline else None
    return measured(listener, options, baseline=baseline, columns={"heard": listener.hear} if options.heard else None)


def spoken(options: Options) -> str | None:
    """The language of all clips (``en``, ``zh``), what is normalised as English being English; None: unknown, or several."""
    told = {example.language[:2].lower() for example in options.examples if example.language}
    if not told and options.normalizer == "english":
        return "en"
    return told.pop() if len(told) == 1 else None


def measured(listener: Listener, options: Options, **more: Any) -> dict[str, Any]:
    """``evaluate_asr`` of a listener's transcripts; ``more`` are its other arguments."""
    return evaluate_asr(
        listener.transcribe,
        options.examples,
        data=options.data,
        normalizer=options.normalizer,
        batch_size=options.batch_size,
        out=options.out,
        shard=options.shard,
        adapter=listener.name,
        fingerprint=listener.fingerprint,
        about=listener.about(),
        **more,
    )


def evaluate_asr(
    transcribe: Transcribe,
    examples: Sequence[Example],
    *,
    normalizer: str = "english",
    batch_size: int = 8,
    out: Path | None = None,
    shard: Shard | None = None,
    baseline: Transcribe | None = None,
    columns: Mapping[str, Transcribe] | None = None,
    data: str = "",
    adapter: str = "",
    fingerprint: str = "",
    suite: str = "asr",
    about: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Transcribe all ``examples`` and score what was heard.

    ``transcribe``, ``baseline`` and every one of ``columns`` map a batch of float32 mono 16 kHz arrays to as
    many texts. With ``out``, rows go to ``out/predictions.jsonl`` as they come, and those found there from the
    same ``data``, ``adapter`` and ``fingerprint`` (a digest of the adapter's tensors, so that one trained anew
    under an old name is heard anew) are not computed again; the result is ``out/metrics.json`` too.

    Returns the value of ``evaluate --json`` and beside it ``columns`` (rates of each), ``edits``, ``failures``,
    ``undecodable``, ``latency`` and ``provenance`` (with ``about``). ``rtfx`` is seconds of audio per second spent
    in ``transcribe``. Raises DataError for a set with no clip, with two clips of one id, or without a word to score.
    """
    maker = f"{adapter}@{fingerprint[:12]}" if fingerprint else adapter
    systems = [System(OWN, as_answer(transcribe), maker)]
    if baseline is not None:
        systems.append(System("baseline", as_answer(baseline), getattr(baseline, "name", "baseline")))
    for name, extra in (columns or {}).items():
        if name in RESERVED:
            raise UsageError(f"the extra column {name!r} has the name of a field of predictions.jsonl; rename it")
        systems.append(System(name, as_answer(extra), f"{maker}/{name}"))
    normalize = scoring.normalizer(normalizer)
    if examples and not any(normalize(example.text).strip() for example in examples):
        raise DataError(f"{data or 'the set'} has no word of reference text left after the normalizer {normalizer!r}")

    rows = collect.collect(examples, systems, data=data, batch_size=batch_size, out=out, shard=shard)
    result = _result(rows, systems, normalizer, data, adapter, dict(about or {}))
    result = {"suite": suite, **({"shard": str(shard)} if shard else {}), **result}
    if out is not None:
        collect.save(out, shard, rows, result)
    return result


def as_answer(transcribe: Transcribe) -> collect.Answer:
    return lambda rows, samples: transcribe(samples)


def _result(
    rows: list[Row], systems: list[System], normalizer: str, data: str, adapter: str, about: dict[str, Any]
) -> dict[str, Any]:
    heard = collect.heard(rows, data)
    references = [row["reference"] for row in heard]
    scores = {s.column: scoring.score(references, [row[s.column] for row in heard], normalizer) for s in systems}
    own = scores[OWN]

    def rates(system: System) -> dict[str, Any]:
        mine = scores[system.column]
        return mine.metrics() | {
            "name": system.maker,
            "interval": {"wer": list(scoring.interval(mine.words))},
            "p_value": scoring.paired_p(own.words, mine.words),
            "edits": scoring.edits(mine.words),
            "rtfx": collect.speed(heard, system.column),
            "failures": mine.failures,
        }

    others = {system.column: rates(system) for system in systems[1:]}
    return {
        "data": data,
        "n": len(heard),
        "normalizer": normalizer,
        "metrics": own.metrics(),
        "interval": {"wer": list(scoring.interval(own.words))},
        "baseline": others.pop("baseline", None),
        "rtfx": collect.speed(heard, OWN),
        "latency": collect.latency(heard, OWN),
        "adapter": adapter,
        "columns": others,
        "edits": scoring.edits(own.words),
        "failures": own.failures | {"undecodable": len(rows) - len(heard), "unscored": own.dropped},
        "undecodable": collect.undecodable(rows),
        "seconds": round(sum(row["duration"] for row in heard), 3),
        "provenance": provenance() | about | {"data_sha256": collect.data_digest(heard)},
    }

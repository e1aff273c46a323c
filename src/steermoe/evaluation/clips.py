"""The clips of a report: what was said and heard, word beside word, and the audio to listen to."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

from ..errors import AudioError
from . import scoring
from .collect import OWN
from .page import section
from .predictions import Row

WORST = 10
LONGEST_PLAYER = 120.0  # seconds of audio that still go into the file
MOST_AUDIO = 8 << 20  # bytes of it in all


def data_uri(kind: str, content: bytes) -> str:
    """A picture or a sound that lies within the page."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def worst_clips(rows: Sequence[Row], normalizer: str = "english", count: int = WORST) -> list[Row]:
    """The ``count`` rows with the most word errors after ``normalizer``: those that cost the corpus rate most."""
    normalize = scoring.normalizer(normalizer)
    heard = [r for r in rows if OWN in r and normalize(r["reference"]).strip()]
    counts = scoring.count_words([normalize(r["reference"]) for r in heard], [normalize(r[OWN]) for r in heard])
    wrong = scoring.errors(counts)
    order = sorted(range(len(heard)), key=lambda i: (-wrong[i], heard[i]["id"]))
    return [heard[i] for i in order[:count] if wrong[i]]


def costliest(clips: Sequence[Row], normalizer: str, players: Players) -> str:
    """A section of the clips with the most word errors."""
    note = (
        f'<p class="soft">Those with the most word errors, words as the normalizer ({escape(normalizer)}) leaves them.'
        '</p><div class="words" aria-hidden="true"><span class="s"><del>said</del><ins>heard</ins></span>'
        '<span class="d"><del>missed</del></span><span class="i"><ins>invented</ins></span></div>'
    )
    items = "".join(f"<li>{_clip(clip, normalizer, players)}</li>" for clip in clips)
    return section("Worst clips", f'{note}<ol class="clips">{items}</ol>')


def _clip(clip: Row, normalizer: str, players: Players) -> str:
    normalize = scoring.normalizer(normalizer)
    pairs = scoring.align(normalize(clip["reference"]), normalize(clip[OWN]))
    wrong = sum(pair.kind != scoring.HITS for pair in pairs)
    said = sum(bool(pair.reference) for pair in pairs)
    cost = f"{wrong} {'error' if wrong == 1 else 'errors'}, {said} {'word' if said == 1 else 'words'} said"
    words = "".join(_word(pair) for pair in pairs)
    texts = {"Said": clip["reference"], "Heard": clip[OWN]}
    texts |= {name: clip[name] for name in clip.get("by", {}) if name != OWN and name in clip}
    facts = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(text) or '<i>nothing</i>'}</dd>" for name, text in texts.items()
    )
    return (
        f'<div class="head"><h3>{escape(clip["id"])}</h3><span class="soft">{cost}</span></div>{players.of(clip)}'
        f'<div class="words" aria-hidden="true">{words}</div><dl>{facts}</dl>'
    )


def _word(pair: scoring.Pair) -> str:
    said, heard = f"<del>{escape(pair.reference)}</del>", f"<ins>{escape(pair.hypothesis)}</ins>"
    return {
        scoring.HITS: f"<span>{escape(pair.reference)}</span>",
        scoring.SUBSTITUTIONS: f'<span class="s">{said}{heard}</span>',
        scoring.DELETIONS: f'<span class="d">{said}</span>',
        scoring.INSERTIONS: f'<span class="i">{heard}</span>',
    }[pair.kind]


def wrong_answers(name: str, rows: Sequence[Row], players: Players) -> str:
    """A section of the first answers that are wrong."""
    lost = [row for row in rows if not row.get("right", {}).get(OWN, True)]
    items = []
    for row_ in lost[:WORST]:
        asked = {"Asked": row_["question"]} if "question" in row_ else {}
        texts = asked | {"Right": row_["reference"], "Answered": row_[OWN]}
        texts |= {column: row_[column] for column in row_["by"] if column != OWN}
        facts = "".join(
            f"<dt>{escape(key)}</dt><dd>{escape(str(text)) or '<i>nothing</i>'}</dd>" for key, text in texts.items()
        )
        items.append(
            f'<li><div class="head"><h3>{escape(row_["id"])}</h3></div>{players.of(row_)}<dl>{facts}</dl></li>'
        )
    note = f'<p class="soft">{escape(name)}: the first of {len(lost):,}.</p>'
    return section("Wrong answers", f'{note}<ol class="clips">{"".join(items)}</ol>') if items else ""


class Players:
    """Audio elements with the clips inside, as long as ``budget`` bytes last."""

    def __init__(self, budget: int) -> None:
        self.budget = budget

    def of(self, clip: Row) -> str:
        if not self.budget:
            return ""
        import soundfile

        from ..audio import RATE, decode
        from ..data.manifest import Slice

        try:
            samples = decode(Slice.parse(clip["audio"]), start=clip.get("start"), end=clip.get("end"))
        except (AudioError, OSError, KeyError):
            return '<p class="soft">The audio is not on this machine.</p>'
        if len(samples) > LONGEST_PLAYER * RATE:
            return f'<p class="soft">{len(samples) / RATE:.0f} s of audio: too long to be kept in this file.</p>'
        buffer = io.BytesIO()
        soundfile.write(buffer, samples, RATE, format="FLAC", subtype="PCM_16")
        if len(buffer.getvalue()) > self.budget:
            return '<p class="soft">Left out: this file holds as much audio as it may.</p>'
        self.budget -= len(buffer.getvalue())
        label = escape(f"Play {clip['id']}", quote=True)
        source = data_uri("audio/flac", buffer.getvalue())
        return f'<audio controls preload="metadata" aria-label="{label}" src="{source}"></audio>'

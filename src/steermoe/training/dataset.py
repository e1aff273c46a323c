"""What is heard in training, and in which order: the clips of all sources, their shares, their prompts, their batches.

The batches of all epochs form one endless row that depends on the seed alone. Of it, process r of w takes every w-th from
the r-th on: whatever their number, they see the same batches, each the same number of them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import compress, count
from pathlib import Path

from ..data import Example, load_source
from ..data.batching import by_duration, check_share, measured
from ..data.texts import numbers_in_digits
from ..errors import DataError
from ..evaluation.scoring import HAN
from .distill import Offer
from .metrics import Skipped, say
from .recipe import Recipe, Source, Stage


@dataclass
class TrainingSet:
    """Clips whose ``duration`` is known; ``part[i]`` is the number of the source that clip i comes from."""

    clips: list[Example]
    part: list[int] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)
    offers: list[Offer | None] = field(default_factory=list)
    """Of each source."""

    @property
    def durations(self) -> list[float]:
        return [clip.duration or 0.0 for clip in self.clips]

    def epoch(self, seed: int, epoch: int) -> list[int]:
        """Indices of the clips of one epoch: those of a source of weight 2.5 twice each, and half of them once more."""
        if all(source.weight == 1 for source in self.sources):
            return list(range(len(self.clips)))
        chosen: list[int] = []
        for number, source in enumerate(self.sources):
            own = [i for i, part in enumerate(self.part) if part == number]
            whole, more = int(source.weight), source.weight % 1
            rng = random.Random(f"{seed}/{epoch}/{number}")
            part = max(round(more * len(own)), 0 if whole or not own else 1)  # what is asked for is heard
            chosen += own * whole + sorted(rng.sample(own, part))
        return chosen

    def asked(self, index: int, recipe: Recipe, rng: random.Random) -> str | None:
        """What is asked of a clip: its own prompt, or one drawn from those of its source, or of its language; None: the config's.

        A prompt of the source may hold {prompt} and {language}, the clip's own; only then does it replace the clip's.
        """
        clip = self.clips[index]
        own = self.sources[self.part[index]].prompts if self.sources else []
        choice = own or recipe.data.prompts.get(clip.language or "", [])
        if clip.prompt is not None:
            choice = [prompt for prompt in choice if "{prompt}" in prompt]
        if not choice:
            return clip.prompt
        return rng.choice(choice).replace("{prompt}", clip.prompt or "").replace("{language}", clip.language or "")

    def offer(self, index: int) -> Offer | None:
        """The functions that are shown beside a clip."""
        return self.offers[self.part[index]] if self.offers else None


def named(key: str, source: str, root: str | None) -> list[Example]:
    """The examples of a source that the recipe's ``key`` names; its DataError says so."""
    try:
        return load_source(source, Path(root) if root else None)
    except DataError as error:
        raise DataError(f"{key}: {error}") from None


def training_set(
    recipe: Recipe, examples: list[Example] | None = None, lost: Skipped | None = None, window: float = math.inf
) -> TrainingSet:
    """All training sources (or ``examples``), without clips that are too long (for the recipe, or the encoder's ``window`` of
    seconds) or too short of words, or cannot be read.

    Says how many it left out, and lists in ``lost`` those that cannot be read. Raises DataError where nothing is left, or too many cannot be read.
    """
    sources = recipe.data.sources if examples is None else [Source("examples")]
    offers = [Offer.of(source) for source in sources]
    found = [named("data.train", s.source, s.root) for s in sources] if examples is None else [examples]
    if recipe.data.digits:
        found = [[replace(clip, text=numbers_in_digits(clip.text)) for clip in clips] for clips in found]
    part = [number for number, clips in enumerate(found) for _ in clips]
    clips, unreadable = measured([clip for clips in found for clip in clips])
    if lost is not None:
        lost.add([(clips[i], why) for i, why in unreadable])
    check_share(len(unreadable), len(clips), recipe.data.max_skipped, unreadable[-1][1] if unreadable else "")
    limit, words = min(recipe.data.max_clip_seconds, window), recipe.data.min_words
    fit = [clip.duration is not None and clip.duration <= limit and _words(clip) >= words for clip in clips]
    kept = TrainingSet(list(compress(clips, fit)), list(compress(part, fit)), sources, offers)
    names = ", ".join(source.source for source in sources)
    if not kept.clips:
        raise DataError(f"{names}: no clip of at most {limit:g} s and {words} words or more")
    left, long = len(clips) - len(kept.clips) - len(unreadable), sum((clip.duration or 0) > limit for clip in clips)
    why = f" ({long} longer than {limit:g} s, {left - long} with fewer words than {words})" if left else ""
    say(f"training set: {len(kept.clips)} clips, {sum(kept.durations) / 3600:.2f} h; left out {left}{why}")
    for number, source in enumerate(sources):
        if number not in kept.part:
            say(f"nothing is left of {source.source}")
    return kept


def _words(clip: Example) -> int:
    """Of Chinese, which is written without blanks, every character is one."""
    return len(clip.text.split()) + len(HAN.findall(clip.text[1:]))


def batch_order(
    clips: TrainingSet, stage: Stage, recipe: Recipe, skip: int, rank: int, world: int
) -> Iterator[list[int]]:
    """Indices of this process's batches from its batch ``skip`` of the stage on, epoch after epoch."""
    durations = clips.durations
    if recipe.model.pad_to_window:  # what a clip costs is the window, whatever its own length
        durations = [max(recipe.data.max_clip_seconds, *durations)] * len(durations)
    position = skip * world + rank
    for epoch in count():
        chosen = clips.epoch(recipe.seed, epoch)
        lengths = [durations[i] for i in chosen]
        batches = by_duration(lengths, stage.batch_seconds, recipe.seed, epoch, stage.batch_clips)
        while position < len(batches):
            yield [chosen[i] for i in batches[position]]
            position += world
        position -= len(batches)

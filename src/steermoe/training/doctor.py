"""`steermoe doctor`: what a recipe will do, found out in a minute or two instead of after a night. Writes nothing into ``out``.

Each check is one line, ok or the reason why not: the data and its durations, the rendered prompt with what is labelled in it, what
is trained at which rate, memory and time measured on two batches, and whether one batch can be learned by heart.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data import Example
from ..data.batching import Batch
from ..errors import SteerMoEError
from ..inference.ears import from_model
from ..splice import IGNORED
from .dataset import TrainingSet, batch_order, named, training_set
from .distill import Teacher
from .kept import Entered
from .loop import Trainer
from .metrics import Skipped
from .objectives import Objectives, groups
from .recipe import Recipe, Stage
from .run import first_model

BARS, EDGES = 30, (0, 1, 2, 4, 6, 8, 10, 12, 14, 16, 20, 25, 30, 60)  # of the histogram; seconds
FALL = 0.9  # of its first loss is the most that a batch learned by heart may have left
LOOKED_AT = 200  # files whose rate is read
GREEN, DIM, PLAIN = "\033[32m", "\033[2m", "\033[0m"


@dataclass
class Check:
    """One line: what was looked at, whether it is right, and what was found or why it is not."""

    name: str
    ok: bool
    text: str

    def __str__(self) -> str:
        return f"{'ok ' if self.ok else 'BAD'}  {self.name}: {self.text}"


def doctor(
    recipe: Recipe, overfit: int = 30, colour: bool = False, say: Callable[[Check], None] | None = None
) -> list[Check]:
    """Run all checks, ``say`` each as it is known; stops where the next would need what is broken."""
    done: list[Check] = []
    with tempfile.TemporaryDirectory() as folder:
        checks = _checks(replace(recipe, out=folder), overfit, colour)
        try:
            for check in checks:
                done.append(check)
                if say:
                    say(check)
        except SteerMoEError as error:
            done.append(Check("stopped", False, str(error)))
            if say:
                say(done[-1])
    return done


def _checks(recipe: Recipe, overfit: int, colour: bool) -> Iterator[Check]:
    lost = Skipped(Path(recipe.out) / "skipped.jsonl")
    model = first_model(recipe)
    clips = training_set(recipe, None, lost, model.frames.window)
    text = f"{len(clips.clips)} clips, {sum(clips.durations) / 3600:.2f} h, {len(lost.said)} unreadable"
    yield Check("data", True, f"{text}\n{histogram(clips.durations)}")
    yield _rates(clips.clips)
    if recipe.data.valid is not None:
        heard = set(map(_where, clips.clips))
        valid = named("data.valid", recipe.data.valid, recipe.data.valid_root)
        both = sum(_where(clip) in heard for clip in valid)
        text = f"{recipe.data.valid}, {len(valid)} clips" + (f", of which {both} are trained on" if both else "")
        yield Check("validation", not both, text)
    trainer = Trainer(recipe, model, from_model(model).processor)
    for number, stage in enumerate(recipe.stages):
        name = f"stages.{number}"
        chosen = groups(model, stage)
        yield Check(f"{name} trains", bool(chosen), table(model, chosen))
        yield from _stage(name, trainer, clips, stage, overfit, colour)


def _where(clip: Example) -> tuple[Any, ...]:
    """What of which file a clip is, however its path is spelled."""
    return Path(str(clip.audio)).resolve(), clip.start, clip.end


def _stage(
    name: str, trainer: Trainer, clips: TrainingSet, stage: Stage, overfit: int, colour: bool
) -> Iterator[Check]:
    recipe, model, processor = trainer.recipe, trainer.model, trainer.processor
    stage = replace(stage, keep_frames=False)
    entered = None if set(stage.objectives) == {"copy"} else Entered(model, processor, keep=False)
    teacher, objectives = Teacher(model, processor, stage.response_tokens), Objectives(model, stage)
    order = batch_order(clips, stage, recipe, 0, 0, 1)

    def batch(indices: list[int]) -> tuple[dict[str, Any], int]:
        items = [clips.clips[i].load() if entered else None for i in indices]
        return trainer._batch(clips, Batch(0, indices, items), stage, entered, teacher, 0)

    first, second = next(order), next(order)
    made = batch(first)
    yield from _prompts(name, trainer, made[0], colour)
    if "ctc" in stage.objectives:
        _, lengths = model.leave(*made[0]["entered"])
        frames = (lengths + model.projector.kernel - 1) // model.projector.kernel
        needed = [len(t) + sum(a == b for a, b in pairwise(t)) for t in made[0]["targets"]]
        short = sum(n > f for n, f in zip(needed, frames.tolist(), strict=True))
        text = f"{short} of {len(needed)} clips of a batch have more tokens than frames, and so teach nothing"
        yield Check(f"{name} alignment", short <= len(needed) // 10, text)
    optimizer = torch.optim.AdamW(groups(model, stage))
    seconds, device = [], trainer.accelerator.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for indices in (first, second):
        began = time.perf_counter()
        trainer._backward(objectives, [batch(indices)])
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - began)
    total = min(seconds) * stage.accumulate * stage.steps
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _resident()
    text = f"{min(seconds):.2f} s a batch, about {total / 60:.0f} min for {stage.steps} steps; {peak / 2**30:.1f} GiB at most so far"
    yield Check(f"{name} cost", True, text)
    before = {key: value.detach().clone() for key, value in model.trainable().items()}
    losses = []
    for _ in range(overfit):
        losses.append(trainer._backward(objectives, [made])["loss"])
        torch.nn.utils.clip_grad_norm_(list(model.trainable().values()), stage.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    with torch.no_grad():
        for key, parameter in model.trainable().items():
            parameter.copy_(before[key])
    text = f"the loss of one batch went from {losses[0]:.3f} to {losses[-1]:.3f} in {overfit} steps"
    fine = losses[-1] < FALL * losses[0]
    why = "" if fine else "; it should fall by a tenth: look at the rates, at what is trained, and at the texts"
    yield Check(f"{name} overfit", fine, text + why)


def _prompts(name: str, trainer: Trainer, batch: dict[str, Any], colour: bool) -> Iterator[Check]:
    """What the LLM reads of the first clip, and what of it counts."""
    processor = trainer.processor
    for objective in ("ce", "distill", "copy"):
        told = batch if objective == "ce" else batch.get(objective, {})
        if "labels" not in told:
            continue
        ids, mask, labels = (told[key][0].tolist() for key in ("input_ids", "attention_mask", "labels"))
        text = shown([i for i, m in zip(ids, mask, strict=True) if m], [x for x, m in zip(labels, mask, strict=True) if m],
                     processor, colour)  # fmt: skip
        counted = sum(x != IGNORED for x in labels)
        yield Check(f"{name} {objective} prompt", counted > 0, f"{counted} labelled tokens\n  {text}")
    if "ctc" in trainer.recipe.stages[int(name.partition(".")[2])].objectives:
        tokens = [processor.tokenizer.decode([t]) for t in batch["targets"][0]]
        yield Check(f"{name} ctc target", bool(tokens), " ".join(map(repr, tokens)))


def shown(ids: list[int], labels: list[int], processor: Any, colour: bool) -> str:
    """A prompt as text: what is labelled is green (or between » and «), an audio is <audio>, a line's end is ⏎."""
    parts, start = [], 0
    marks = [label != IGNORED for label in labels]
    for end in range(1, len(ids) + 1):
        if end < len(ids) and marks[end] == marks[start] and processor.audio_token_id not in (ids[end], ids[end - 1]):
            continue
        piece = "<audio>" if ids[start] == processor.audio_token_id else processor.tokenizer.decode(ids[start:end])
        piece = piece.replace("\n", "⏎")
        if colour:
            parts.append((GREEN if marks[start] else DIM) + piece + PLAIN)
        else:
            parts.append(f"»{piece}«" if marks[start] else piece)
        start = end
    return "".join(parts)


def table(model: Any, chosen: list[dict[str, Any]]) -> str:
    """What is trained: name, shape, numbers and rate; and how much is frozen."""
    names = {id(p): n for n, p in model.named_parameters()}
    rows = [(names[id(p)], "x".join(map(str, p.shape)) or "1", p.numel(), g["lr"]) for g in chosen for p in g["params"]]
    total = sum(row[2] for row in rows)
    frozen = sum(p.numel() for p in model.parameters()) - total
    lines = [f"  {name:44}{shape:>16}{count:>12,}  rate {rate:g}" for name, shape, count, rate in rows]
    return f"{total:,} numbers; {frozen:,} are frozen\n" + "\n".join(lines)


def histogram(seconds: list[float]) -> str:
    """Bars of the clips by duration."""
    counts, _ = np.histogram(seconds, [*EDGES, max(EDGES[-1] + 1, *seconds)])
    edges = [*map(str, EDGES), ""]
    lines = [
        f"  {edges[i]:>3}-{edges[i + 1]:<3}s {'█' * round(BARS * n / max(counts))} {n}"
        for i, n in enumerate(counts)
        if n
    ]
    return "\n".join(lines)


def _rates(clips: list[Example]) -> Check:
    """Sampling rates of some files: any are read, but telephone speech among studio speech should be no surprise."""
    import io

    import soundfile

    found: dict[int, int] = {}
    for clip in clips[:: max(1, len(clips) // LOOKED_AT)]:
        try:
            source = str(clip.audio) if isinstance(clip.audio, Path) else io.BytesIO(clip.audio.read())
            rate = soundfile.info(source).samplerate
        except (soundfile.SoundFileError, OSError):
            continue
        found[rate] = found.get(rate, 0) + 1
    each = ", ".join(f"{rate} Hz ({count})" for rate, count in sorted(found.items()))
    mixed = "mixed rates, all resampled to 16000 Hz: " if len(found) > 1 else ""
    narrow = " (below 16000 Hz nothing is above half the rate)" if found and min(found) < 16_000 else ""
    return Check("sampling rates", bool(found), f"{mixed}{each or 'none could be read'}{narrow}")


def _resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def as_json(checks: list[Check]) -> dict[str, Any]:
    """For the command line's --json."""
    return {"ok": all(check.ok for check in checks), "checks": [asdict(check) for check in checks]}

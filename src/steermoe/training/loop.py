"""The training loop: plain, resumable, and the same run for the same seed.

A batch is a pure function of (seed, step), so a run that was killed and resumed sees what it would have seen.
Numbers go to ``metrics.jsonl`` and TensorBoard, a line a step to the screen; Ctrl-C saves a checkpoint first.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, replace
from itertools import compress, islice
from pathlib import Path
from typing import Any

import torch

from ..data import Example, load_source
from ..data.augment import augment
from ..data.batching import by_duration, durations_of, load_batches
from ..encoders.attach import checkpointed
from ..errors import DataError, SteerMoEError, UsageError
from ..model import SteerMoEForConditionalGeneration
from ..processing import SteerMoEProcessor
from .alarm import CollapseAlarm
from .checkpoint import latest, restore, save_checkpoint
from .kept import Entered
from .objectives import Objectives, collate, copies, groups
from .recipe import Recipe, Stage

# Seconds a clip below which, on CPUs, plain attention is faster to train with than the fused kernel, whose backward
# pass is slow there; above it the scores of all pairs of frames cost more.
SHORT = 8.0


class Interrupted(SteerMoEError):
    """Ctrl-C: a checkpoint was written."""

    exit_code = 130


def rate(step: int, stage: Stage) -> float:
    """Share of the peak rate at ``step`` of the stage: linear warm-up, then a cosine down to ``floor``."""
    if step < stage.warmup:
        return (step + 1) / stage.warmup
    done = (step - stage.warmup) / max(1, stage.steps - stage.warmup)
    return stage.floor + (1 - stage.floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def training_set(recipe: Recipe, examples: list[Example] | None = None) -> list[Example]:
    """All training sources, without clips that are too long or too short of words; says how many it left out."""
    if examples is None:
        examples = [example for source in recipe.data.train for example in load_source(source)]
    limit, words = recipe.data.max_clip_seconds, recipe.data.min_words
    lengths = durations_of(examples)
    fit = [seconds <= limit and len(e.text.split()) >= words for e, seconds in zip(examples, lengths, strict=True)]
    # With its duration each, so that no file's header is read again for batches and logs.
    kept = [
        replace(example, duration=seconds) for example, seconds in compress(zip(examples, lengths, strict=True), fit)
    ]
    if not kept:
        raise DataError(f"{', '.join(recipe.data.train)}: no clip of at most {limit:g} s and {words} words or more")
    hours = sum(compress(lengths, fit)) / 3600
    _say(
        f"training set: {len(kept)} clips, {hours:.2f} h; left out {len(examples) - len(kept)} (too long or too short)"
    )
    return kept


def check_same(path: Path, recipe: Recipe) -> None:
    """A run is continued with the recipe it began with; only reports, threads and numbers of steps may differ.

    Raises UsageError that names the first key that differs.
    """
    free = ("out", "log_every", "valid_every", "checkpoint_every", "threads", "data.valid", "data.valid_clips",
            "gradient_checkpointing")  # fmt: skip
    try:
        before = json.loads(path.read_text())
    except (OSError, ValueError):
        return  # nothing to compare with
    was, now = (dict(_leaves(tree)) for tree in (before, json.loads(json.dumps(asdict(recipe)))))
    for key in {**was, **now}:
        if key not in free and not key.endswith(".steps") and key in was and was[key] != now.get(key):
            raise UsageError(
                f"{path} began with {key}={was[key]!r}, and this recipe says {now.get(key)!r}: resume with the "
                "same recipe, or give another out="
            )


def check_stage(recipe: Recipe, step: int, stage: int) -> None:
    """The checkpoint of ``step`` was made in ``stage``, counted from 0: so must it be under the recipe's numbers of steps.

    Raises UsageError, which says how many steps the stage may have.
    """
    before = sum(s.steps for s in recipe.stages[:stage])
    if stage >= len(recipe.stages) or not before <= step <= before + recipe.stages[stage].steps:
        raise UsageError(
            f"the newest checkpoint is of step {step}, in stages.{stage}: the stages before it must keep their numbers "
            f"of steps, and it needs {max(1, step - before)} or more"
        )


def _leaves(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of everything in nested dicts and lists."""
    if not isinstance(value, (dict, list)):
        yield where, value
        return
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield from _leaves(item, f"{where}.{key}" if where else str(key))


def batch_order(
    examples: list[Example], stage: Stage, recipe: Recipe, skip: int, rank: int, world: int
) -> Iterator[list[int]]:
    """Indices of this rank's batches from step ``skip`` of the stage on, epoch after epoch."""
    durations = durations_of(examples)
    if recipe.model.pad_to_window:  # what a clip costs is the window, whatever its own length
        durations = [max(recipe.data.max_clip_seconds, *durations)] * len(durations)
    epoch, position = 0, 0
    while True:
        batches = by_duration(durations, stage.batch_seconds, seed=recipe.seed, epoch=epoch)
        if len(batches) < world:
            raise DataError(
                f"{len(batches)} batch(es) for {world} processes: lower batch_seconds={stage.batch_seconds:g}"
            )
        while position + rank < len(batches):
            if skip > 0:
                skip -= 1
            else:
                yield batches[position + rank]
            position += world
        epoch, position = epoch + 1, 0


class Trainer:
    """One run of a recipe, in ``recipe.out``."""

    def __init__(self, recipe: Recipe, model: SteerMoEForConditionalGeneration, processor: SteerMoEProcessor) -> None:
        from accelerate import Accelerator
        from accelerate.utils import DistributedDataParallelKwargs

        self.recipe, self.model, self.processor = recipe, model, processor
        # `nothing` of the lexical projector has no gradient under ctc, nor has the blank under ce.
        ddp = DistributedDataParallelKwargs(find_unused_parameters=True)
        self.accelerator = Accelerator(kwargs_handlers=[ddp])
        self.model.to(self.accelerator.device)
        self.out = Path(recipe.out)
        self.interrupted = False

    def run(
        self,
        resume: bool = False,
        validate: Callable[[int], dict[str, float]] | None = None,
        examples: list[Example] | None = None,
    ) -> Path:
        """Train all stages; returns the folder of the finished adapter, ``out/adapter``. ``examples`` replace the sources.

        ``validate(step)`` gives numbers to log every ``valid_every`` steps and at the end.
        Raises Interrupted after Ctrl-C (a checkpoint was saved), UsageError if ``out`` holds another run.
        """
        checkpoint = latest(self.out / "checkpoints")
        if checkpoint and not resume:
            raise UsageError(f"{self.out} holds a run already: continue it with --resume, or give another out=")
        if resume and not checkpoint:
            _say(f"{self.out} holds no checkpoint: starting anew")
        if checkpoint:
            check_same(self.out / "recipe.json", self.recipe)
        state = json.loads((checkpoint / "state.json").read_text()) if checkpoint else {"step": 0, "stage": 0}
        start: int = state["step"]
        check_stage(self.recipe, start, state["stage"])
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "recipe.json").write_text(json.dumps(asdict(self.recipe), indent=2))
        examples = training_set(self.recipe, examples)
        if checkpoint:
            restore(checkpoint, self.model, None)
        metrics = Metrics(self.out, start, sum(s.steps for s in self.recipe.stages), self.accelerator.is_main_process)
        previous = signal.signal(signal.SIGINT, self._interrupt) if _main_thread() else None
        first = 0
        towers: list[Any] = [self.model.frames.encoder, self.model.llm]
        attention = [tower.config._attn_implementation for tower in towers]
        seconds = durations_of(examples)
        if self.accelerator.device.type == "cpu" and sum(seconds) < SHORT * len(seconds):
            for tower in towers:
                tower.set_attn_implementation("eager")
        leaner = checkpointed(self.model.frames.layers) if self.recipe.gradient_checkpointing else nullcontext()
        try:
            with leaner:
                for number, stage in enumerate(self.recipe.stages):
                    if start < first + stage.steps:
                        within = max(0, start - first)
                        self._stage(number, stage, first, within, checkpoint, examples, metrics, validate)
                        checkpoint = None
                    first += stage.steps
        finally:
            for tower, kind in zip(towers, attention, strict=True):
                tower.set_attn_implementation(kind)
            metrics.close()
            if previous is not None:
                signal.signal(signal.SIGINT, previous)
        if self.accelerator.is_main_process:
            self.model.trained = {"recipe": asdict(self.recipe), "step": first}
            self.model.save_adapter(self.out / "adapter", trained=self.model.trained)
            shutil.rmtree(self.out / "kept", ignore_errors=True)
        return self.out / "adapter"

    def _stage(
        self,
        number: int,
        stage: Stage,
        first: int,
        within: int,
        checkpoint: Path | None,
        examples: list[Example],
        metrics: Metrics,
        validate: Callable[[int], dict[str, float]] | None,
    ) -> None:
        recipe, accelerator, model = self.recipe, self.accelerator, self.model
        optimizer = torch.optim.AdamW(groups(model, stage), weight_decay=stage.weight_decay, betas=(0.9, 0.98))
        if checkpoint is not None and within:  # else its moments are those of the stage before
            restore(checkpoint, model, optimizer)
        objectives, optimizer = accelerator.prepare(Objectives(model, stage), optimizer)
        order = batch_order(examples, stage, recipe, within, accelerator.process_index, accelerator.num_processes)
        batches = list(islice(order, stage.steps - within))
        kept = self.out / "kept" / f"rank-{accelerator.process_index}"
        note = f"{recipe.seed}/{recipe.data.augment}"
        entered = Entered(model, self.processor, stage.keep_frames, kept, note)
        deaf = set(stage.objectives) == {"copy"}  # text is all it needs

        def load(example: Example, batch: int) -> Any:
            if deaf or example in entered:
                return None
            clip = example.load()
            if not recipe.data.augment:
                return clip
            when = "" if stage.keep_frames else first + within + batch  # what is kept must not depend on when it came
            return augment(clip, random.Random(f"{recipe.seed}/{example.id}/{when}"), recipe.data.max_clip_seconds)

        loader, alarm = load_batches(examples, batches, load), CollapseAlarm(model.steering)
        began = time.perf_counter()
        for loaded in loader:
            step = within + loaded.number
            rng = random.Random(f"{recipe.seed}/{first + step}/{accelerator.process_index}")
            batch = self._batch(
                [examples[i] for i in loaded.indices], loaded.items, stage, None if deaf else entered, rng
            )
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * rate(step, stage)
            torch.manual_seed(rng.getrandbits(48))  # dropout, too, is a function of the step
            with alarm.watching(first + step + 1) as lines:
                losses = objectives(batch)
            for line in lines:
                _say(line)
            accelerator.backward(losses["loss"])
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            norm = accelerator.clip_grad_norm_(parameters, stage.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            done = first + step + 1
            seconds = 0.0 if deaf else sum(examples[i].duration or 0.0 for i in loaded.indices)
            row = {"step": done, "stage": number, **{name: round(float(v.detach()), 5) for name, v in losses.items()}}
            row |= {"grad_norm": round(float(norm), 4), "audio_seconds": round(seconds, 1)}
            row |= {f"lr_{g['name']}": g["lr"] for g in optimizer.param_groups}
            if model.steering is not None:
                row["scale_mean"] = round(float(model.steering.scales.detach().mean()), 5)
            row["seconds"] = round(time.perf_counter() - began, 3)
            began = time.perf_counter()
            metrics.add(row, show=done % recipe.log_every == 0 or step == 0)
            if validate and done % recipe.valid_every == 0 and step + 1 < stage.steps:
                self._validate(done, metrics, validate)
            if self.interrupted or done % recipe.checkpoint_every == 0:
                saved = self._save(optimizer, done, number)
                entered.flush()
                if self.interrupted:
                    raise Interrupted(f"interrupted after step {done}; {saved} is whole: continue with --resume")
        for index, why in loader.skipped:
            _say(f"skipped {examples[index].id}: {why}")
        if validate:
            self._validate(first + stage.steps, metrics, validate)
        self._save(optimizer, first + stage.steps, number)

    def _batch(
        self, chosen: list[Example], clips: list[Any], stage: Stage, entered: Entered | None, rng: random.Random
    ) -> dict[str, Any]:
        """Everything ``Objectives`` needs for one step, on this process's device."""
        texts, batch, device = [e.text for e in chosen], {}, self.accelerator.device
        if entered is not None:
            vocabulary = self.model.audio_token_id
            batch = collate(
                self.processor, entered(chosen, clips), texts, stage, vocabulary, rng, [e.prompt for e in chosen]
            )
        if "copy" in stage.objectives:
            batch["copy"] = copies(self.model, self.processor, texts, rng)
        from accelerate.utils import send_to_device

        return send_to_device(batch, device)

    def _save(self, optimizer: Any, step: int, stage: int) -> Path:
        folder = self.out / "checkpoints"
        if not self.accelerator.is_main_process:
            return folder
        return save_checkpoint(folder, self.model, optimizer, {"step": step, "stage": stage})

    def _validate(self, step: int, metrics: Metrics, validate: Callable[[int], dict[str, float]]) -> None:
        metrics.add({"step": step, **validate(step)}, show=True)

    def _interrupt(self, *_: Any) -> None:
        if self.interrupted:  # a second Ctrl-C does not wait
            raise KeyboardInterrupt
        self.interrupted = True
        _say("\nfinishing this step, then saving a checkpoint (Ctrl-C again stops at once)")


class Metrics:
    """``metrics.jsonl``, TensorBoard and the screen. On resume, rows after the checkpoint are dropped."""

    def __init__(self, out: Path, start: int, total: int, active: bool) -> None:
        self.total, self.start, self.active, self.began = total, start, active, time.perf_counter()
        if not active:
            return
        path = out / "metrics.jsonl"
        rows = path.read_text().splitlines() if start and path.is_file() else []
        kept = [row for row in rows if _step(row) <= start]
        path.write_text("".join(row + "\n" for row in kept))
        self.file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed by close()
        from torch.utils.tensorboard import SummaryWriter

        self.board = SummaryWriter(out / "tensorboard", purge_step=start or None)

    def add(self, row: dict[str, Any], show: bool) -> None:
        if not self.active:
            return
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()
        for name, value in row.items():
            if name != "step" and isinstance(value, (int, float)):
                self.board.add_scalar(name, value, row["step"])
        if show:
            step = row["step"]
            spent = time.perf_counter() - self.began
            left = spent / max(1, step - self.start) * (self.total - step)
            names = [n for n in row if n in ("loss", "ctc", "ce", "scale_mean") or n.startswith("valid")]
            shown = "  ".join(f"{name} {row[name]:.3f}" for name in names)
            _say(f"step {step}/{self.total}  {shown}  {spent / 60:.1f} min, {left / 60:.1f} min left")

    def close(self) -> None:
        if self.active:
            self.file.close()
            self.board.close()


def _step(row: str) -> float:
    try:
        return float(json.loads(row)["step"])
    except ValueError:  # a kill or a full disk can leave half a row
        return math.inf


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _main_thread() -> bool:
    import threading

    return threading.current_thread() is threading.main_thread()

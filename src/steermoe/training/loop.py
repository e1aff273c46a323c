"""The training loop: plain, resumable, and the same run for the same seed.

A batch is a pure function of (seed, step), so a run that was killed and resumed sees what it would have seen. A step's batches
lie one after the other in one process, side by side in several: the losses are the same. Ctrl-C saves a checkpoint first.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from ..audio import RATE
from ..data import Example
from ..data.augment import augment, codec
from ..data.batching import Batch, load_batches
from ..encoders.attach import checkpointed
from ..errors import SteerMoEError, UsageError
from ..model import SteerMoEForConditionalGeneration
from ..processing import SteerMoEProcessor
from .alarm import CollapseAlarm
from .checkpoint import latest, restore, save_checkpoint
from .dataset import TrainingSet, batch_order, training_set
from .distill import Teacher
from .distributed import shard, sum_gradients, summed
from .kept import Entered
from .metrics import Metrics, Skipped, say
from .objectives import Objectives, collate, copies, groups
from .recipe import Recipe, Stage
from .resume import check_same, check_stage

# Seconds a clip below which, on CPUs, plain attention is faster to train with than the fused kernel, whose backward
# pass is slow there; above it the scores of all pairs of frames cost more.
SHORT = 8.0


class Interrupted(SteerMoEError):
    """Ctrl-C: a checkpoint was written."""

    exit_code = 130


def rate(step: int, stage: Stage) -> float:
    """Share of the peak rate at ``step`` of the stage: linear warm-up, then down to ``floor``, in a cosine or a line."""
    if step < stage.warmup:
        return (step + 1) / stage.warmup
    done = min(1.0, (step - stage.warmup) / max(1, stage.steps - stage.warmup))
    left = 1 - done if stage.decay == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return stage.floor + (1 - stage.floor) * left


class Trainer:
    """One run of a recipe, in ``recipe.out``."""

    def __init__(self, recipe: Recipe, model: SteerMoEForConditionalGeneration, processor: SteerMoEProcessor) -> None:
        from accelerate import Accelerator

        self.recipe, self.model, self.processor = recipe, model, processor
        # Left to itself it takes several processes on CPUs for several runs.
        self.accelerator = Accelerator(cpu=not torch.accelerator.is_available())
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        if recipe.shard_llm:
            shard(model.llm, self.accelerator.device)
            model.share_beginning = False
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
            say(f"{self.out} holds no checkpoint: starting anew")
        if not checkpoint:  # another LLM may have written them
            for stale in self.out.glob(f"responses-*-rank-{self.rank}.jsonl"):
                stale.unlink()
        if checkpoint:
            check_same(self.out / "recipe.json", self.recipe)
        state = json.loads((checkpoint / "state.json").read_text()) if checkpoint else {"step": 0, "stage": 0}
        told = state if checkpoint else self.model.trained
        self.before = {"before": told["before"]} if "before" in told else {}  # how what init_from names was trained
        start: int = state["step"]
        check_stage(self.recipe, start, state["stage"])
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "recipe.json").write_text(json.dumps(asdict(self.recipe), indent=2))
        self.lost = Skipped(self.out / ("skipped.jsonl" if self.rank == 0 else f"skipped-rank-{self.rank}.jsonl"))
        clips = training_set(self.recipe, examples, self.lost, self.model.frames.window)
        if checkpoint:
            restore(checkpoint, self.model, None)
        metrics = Metrics(self.out, start, sum(s.steps for s in self.recipe.stages), self.accelerator.is_main_process)
        previous = (
            signal.signal(signal.SIGINT, self._interrupt)
            if threading.current_thread() is threading.main_thread()
            else None
        )
        first = 0
        towers: list[Any] = [self.model.frames.encoder, self.model.llm]
        attention = [tower.config._attn_implementation for tower in towers]
        seconds = clips.durations
        if self.accelerator.device.type == "cpu" and sum(seconds) < SHORT * len(seconds):
            for tower in towers:
                tower.set_attn_implementation("eager")
        leaner = checkpointed(self.model.frames.layers) if self.recipe.gradient_checkpointing else nullcontext()
        try:
            with leaner:
                for number, stage in enumerate(self.recipe.stages):
                    if start < first + stage.steps:
                        within = max(0, start - first)
                        self._stage(number, stage, first, within, checkpoint, clips, metrics, validate)
                        checkpoint = None
                    first += stage.steps
        finally:
            for tower, kind in zip(towers, attention, strict=True):
                tower.set_attn_implementation(kind)
            metrics.close()
            if previous is not None:
                signal.signal(signal.SIGINT, previous)
        if self.accelerator.is_main_process:
            self.model.trained = {"recipe": asdict(self.recipe), "step": first, **self.before}
            self.model.save_adapter(self.out / "adapter", trained=self.model.trained)
            shutil.rmtree(self.out / "kept", ignore_errors=True)
        self.accelerator.wait_for_everyone()
        return self.out / "adapter"

    def _stage(
        self,
        number: int,
        stage: Stage,
        first: int,
        within: int,
        checkpoint: Path | None,
        clips: TrainingSet,
        metrics: Metrics,
        validate: Callable[[int], dict[str, float]] | None,
    ) -> None:
        recipe, accelerator, model = self.recipe, self.accelerator, self.model
        optimizer: Any = torch.optim.AdamW(groups(model, stage), weight_decay=stage.weight_decay, betas=(0.9, 0.98))
        if checkpoint is not None and within:  # else its moments are those of the stage before
            restore(checkpoint, model, optimizer)
        objectives, optimizer = Objectives(model, stage), accelerator.prepare(optimizer)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        kept = self.out / "kept" / f"rank-{self.rank}"
        note = f"{recipe.seed}/{recipe.data.augment}/{recipe.data.codec:g}"
        entered = Entered(model, self.processor, stage.keep_frames, kept, note, recipe.data.mask)
        responses = self.out / f"responses-{number}-rank-{self.rank}.jsonl"
        teacher = Teacher(model, self.processor, stage.response_tokens, responses, recipe.shard_llm)
        deaf = set(stage.objectives) == {"copy"}  # text is all it needs
        done_before = within * stage.accumulate  # of this process's batches

        def when(batch: int) -> int:
            """The place of this process's ``batch`` in the row of all batches: what is drawn for it depends on that alone."""
            return (first * stage.accumulate + done_before + batch) * self.world + self.rank

        def load(example: Example, batch: int) -> Any:
            if deaf or example in entered:
                return None
            clip = example.load()
            place = "" if stage.keep_frames else when(batch)  # what is kept must not depend on when it came
            rng = random.Random(f"{recipe.seed}/{example.id}/{place}")
            longest = min(recipe.data.max_clip_seconds, model.frames.window)
            if recipe.data.augment:
                clip = augment(clip, rng, longest)
            if rng.random() < recipe.data.codec:
                clip = codec(clip, rng)[: int(longest * RATE)]
            return clip

        order = batch_order(clips, stage, recipe, done_before, self.rank, self.world)
        wanted = islice(order, (stage.steps - within) * stage.accumulate)
        loader = load_batches(clips.clips, wanted, load, max_skipped=recipe.data.max_skipped)
        loaded, alarm = iter(loader), CollapseAlarm(model.steering)
        began = time.perf_counter()
        for step in range(within, stage.steps):
            done, batches, seconds = first + step + 1, [], 0.0
            for batch in islice(loaded, stage.accumulate):
                seconds += 0.0 if deaf else sum(clips.clips[i].duration or 0.0 for i in batch.indices)
                batches.append(self._batch(clips, batch, stage, None if deaf else entered, teacher, when(batch.number)))
            self.lost.add([(clips.clips[i], why) for i, why in loader.skipped])
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * rate(step, stage)
            with alarm.watching(done) as lines:
                losses = self._backward(objectives, batches)
            for line in lines:
                say(line)
            sum_gradients(parameters)
            norm = accelerator.clip_grad_norm_(parameters, stage.clip)
            if not math.isfinite(norm):  # the same on all processes
                raise SteerMoEError(
                    f"step {done}: gradients of {float(norm)}, the losses were {losses}: this step was not taken; go on from the "
                    "newest checkpoint (--resume) with lower rates, or a longer warmup"
                )
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            *sums, seconds, interrupted = summed([*losses.values(), seconds, self.interrupted], accelerator.device)
            row = {"step": done, "stage": number, **{n: round(v, 5) for n, v in zip(losses, sums, strict=True)}}
            row |= {"grad_norm": round(float(norm), 4), "audio_seconds": round(seconds, 1)}
            row |= {f"lr_{g['name']}": g["lr"] for g in optimizer.param_groups}
            if model.steering is not None:
                row["scale_mean"] = round(float(model.steering.scales.detach().mean()), 5)
            row["seconds"] = round(time.perf_counter() - began, 3)
            began = time.perf_counter()
            metrics.add(row, show=done % recipe.log_every == 0 or step == 0)
            if validate and done % recipe.valid_every == 0 and step + 1 < stage.steps:
                self._validate(done, metrics, validate)
            stop = bool(interrupted) or (self.interrupted and self.world == 1)  # all processes stop at the same step
            if stop or done % recipe.checkpoint_every == 0:
                saved = self._save(optimizer, done, number)
                entered.flush()
                if stop:
                    raise Interrupted(f"interrupted after step {done}; {saved} is whole: continue with --resume")
        if validate:
            self._validate(first + stage.steps, metrics, validate)
        self._save(optimizer, first + stage.steps, number)

    def _backward(self, objectives: Objectives, batches: list[tuple[dict[str, Any], int]]) -> dict[str, float]:
        """Gradients of one step's batches; returns this process's share of the losses."""
        counts = [objectives.counts(batch) for batch, _ in batches]
        names = list(counts[0])
        totals = summed([sum(count[name] for count in counts) for name in names], self.accelerator.device)
        sums: dict[str, float] = {}
        for batch, seed in batches:
            torch.manual_seed(seed)  # dropout, too, is a function of the step
            with self.accelerator.autocast():
                losses = objectives(batch, dict(zip(names, totals, strict=True)))
            self.accelerator.backward(losses["loss"])
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach())
        return sums

    def _batch(
        self,
        clips: TrainingSet,
        loaded: Batch[Any],
        stage: Stage,
        entered: Entered | None,
        teacher: Teacher,
        when: int,
    ) -> tuple[dict[str, Any], int]:
        """Everything ``Objectives`` needs of one batch, on this process's device, and the seed for what it draws itself."""
        rng = random.Random(f"{self.recipe.seed}/{when}/0")
        chosen = [clips.clips[i] for i in loaded.indices]
        texts, batch = [clip.text for clip in chosen], {}
        if entered is not None:
            asked = [
                clips.asked(i, self.recipe, random.Random(f"{self.recipe.seed}/{when}/{clips.clips[i].id}"))
                for i in loaded.indices
            ]
            frames = entered(chosen, loaded.items, f"{self.recipe.seed}/{when}")
            batch = collate(self.processor, frames, texts, stage, self.model.audio_token_id, rng, asked)
            if "distill" in stage.objectives:
                batch["distill"] = teacher.batch(texts, asked, [clips.offer(i) for i in loaded.indices])
        if "copy" in stage.objectives:
            batch["copy"] = copies(self.model, self.processor, texts, rng)
        from accelerate.utils import send_to_device

        return send_to_device(batch, self.accelerator.device), rng.getrandbits(48)

    def _save(self, optimizer: Any, step: int, stage: int) -> Path:
        folder = self.out / "checkpoints"
        if not self.accelerator.is_main_process:
            return folder
        return save_checkpoint(folder, self.model, optimizer, {"step": step, "stage": stage, **self.before})

    def _validate(self, step: int, metrics: Metrics, validate: Callable[[int], dict[str, float]]) -> None:
        metrics.add({"step": step, **validate(step)}, show=True)

    def _interrupt(self, *_: Any) -> None:
        if self.interrupted:  # a second Ctrl-C does not wait
            raise KeyboardInterrupt
        self.interrupted = True
        say("\nfinishing this step, then saving a checkpoint (Ctrl-C again stops at once)")

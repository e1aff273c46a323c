"""`make quickstart`: hear the shipped adapter, train a fresh one on real speech, read the report."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import torch

from .audio import RATE
from .config import SteerMoEConfig
from .data import Example, load_source
from .errors import FetchError
from .evaluation.run import evaluate_ears, table
from .evaluation.scoring import score
from .inference.ears import Ears, from_model, load
from .inference.find import needed_models
from .model import SteerMoEForConditionalGeneration
from .pretrained import resolve
from .training.checkpoint import latest
from .training.loop import Interrupted, Trainer
from .training.recipe import Data, Rates, Recipe, Stage

BATCH_SECONDS = 64.0
SIMPLE = "synth:simple/20"


def quickstart(out: Path, minutes: float) -> None:
    """Everything a newcomer should see once; files go to a new folder in ``out``."""
    folder = next(out / f"run-{n}" for n in range(1, 10_000) if not (out / f"run-{n}").exists())
    began = time.perf_counter()

    _title("1. The frozen pair")
    for name in needed_models("tiny"):
        _say(f"{name} -> {resolve(name)}")
    ears = load("tiny")

    _title("2. Five human recordings, heard by the adapter that ships")
    _listen(ears, load_source("librivox"))

    _title("3. A fresh adapter for the same pair")
    train, valid, source = _speech()
    model = _fresh(ears)
    names = ", ".join(f"{n} {p.numel():,}" for n, p in model.trainable().items() if p.numel() > 1000)
    _say(f"it trains {sum(p.numel() for p in model.trainable().values()):,} parameters: {names}; the rest is frozen")
    fresh = from_model(model, "fresh")
    weighed, model.config.readings = model.config.readings, 1  # nothing has been learned that is worth weighing
    before = evaluate_ears(fresh, valid, "valid", heard=True, out=folder / "before")
    model.config.readings = weighed

    _title(f"4. Training, about {minutes:g} minutes")
    recipe = _recipe(model, train, source, minutes, folder)
    trainer = Trainer(recipe, model, fresh.processor)
    try:
        trainer.run(examples=train)
    except Interrupted as stopped:
        checkpoint = latest(folder / "checkpoints")
        raise Interrupted(
            f"interrupted; the next quickstart trains anew, what this one has learned is the adapter {checkpoint}"
        ) from stopped

    _title("5. What it hears now")
    after = evaluate_ears(fresh, valid, "valid", heard=True, out=folder / "after")
    _say("before: " + table(before).split("\n")[2])
    print(table(after))

    _title("6. The report")
    _say(f"{_report(fresh, folder, before, after, valid[0])}  (opens by a double click)")
    _say(f"all of this took {(time.perf_counter() - began) / 60:.1f} minutes")
    _title("What to try next")
    for command, why in (
        ("steermoe transcribe your.wav", "any length, rate or common format"),
        (f"steermoe transcribe --adapter {folder}/adapter your.wav", "the adapter you just trained"),
        ("steermoe inspect your.wav --out gates.png", "where the router sends each frame"),
        ("steermoe evaluate --data fotaq:test --baseline --heard", "the shipped adapter on unheard characters"),
        ("steermoe train recipes/fotaq.yaml", "a longer training on real speech; every key is a knob"),
    ):
        _say(f"{command:58} # {why}")


def _listen(ears: Ears, clips: list[Example]) -> None:
    heard = [str(ears.transcribe(clip.load(), sampling_rate=RATE)) for clip in clips]
    for clip, text in zip(clips, heard, strict=True):
        _say(f"said:  {clip.text}\nheard: {text}\n")
    _say(f"WER {score([clip.text for clip in clips], heard).metrics()['wer']:.1%} (Whisper's English normaliser)")


def _speech() -> tuple[list[Example], list[Example], str]:
    """Training and validation clips, and the name of the training source."""
    try:
        valid = load_source("fotaq:valid")
        train = load_source("fotaq:train")
        _say(f"real speech: {len(train)} acted lines of Flight of the Amazon Queen, {len(valid)} to test on")
        return train, valid, "fotaq:train"
    except FetchError as error:
        _say(f"no real speech here ({error})")
        train = load_source(SIMPLE)
        _say(
            f"so it trains on {len(train)} synthetic sentences of one voice and is tested on the 5 shipped recordings: "
            "expect it to know few of their words"
        )
        return train, load_source("librivox"), SIMPLE


def _fresh(ears: Ears) -> SteerMoEForConditionalGeneration:
    """A new adapter on the pair that ``ears`` has loaded; the last two layers are steered.

    Everything below the first steered layer is computed once a clip and kept, which is what makes minutes
    enough. Its prompt vectors are the shipped adapter's: they say "write what you hear", whoever hears.
    """
    if ears.model.attached is not None:
        ears.model.attached.remove()
    count = len(ears.model.frames.layers)
    vectors = ears.config.prompt_vectors
    config = SteerMoEConfig(
        encoder=ears.config.encoder, llm=ears.config.llm, steer_layers=[count - 2, count - 1],
        prompt_vectors=vectors, instruction=ears.config.instruction,
    )  # fmt: skip
    torch.manual_seed(0)
    model = SteerMoEForConditionalGeneration(config, ears.model.frames, ears.model.llm, ears.processor.tokenizer)
    model = model.to(ears.model.device)
    with torch.no_grad():
        model.prompt_vectors.copy_(ears.model.prompt_vectors)
    model.prompt_vectors.requires_grad_(False)
    return model


def _recipe(
    model: SteerMoEForConditionalGeneration, train: list[Example], source: str, minutes: float, folder: Path
) -> Recipe:
    """As many steps as fit: a first pass that encodes each clip, then cheap ones over what was kept."""
    stage = Stage(
        objectives={"ctc": 1.0},
        trains=["steering", "projector"],
        rates=Rates(vectors=1e-2, router=1e-3, projector=2e-3),
        warmup=20,
        keep_frames=True,
        batch_seconds=BATCH_SECONDS,
        dropout=0.1,
    )
    first, later = _speed(model, train, stage)
    passes = sum(e.duration or 0.0 for e in train) / (0.9 * BATCH_SECONDS)  # steps in a first pass over all
    seconds = 60 * minutes
    encoding = min(passes, 0.6 * seconds / first)
    stage.steps = int(min(1500, max(100, encoding + (seconds - encoding * first) / later)))
    _say(f"a step takes {first:.1f} s where clips are new and {later:.1f} s later: {stage.steps} steps")
    share = encoding / passes
    if share < 1:
        random.Random(0).shuffle(train)
        del train[max(200, int(share * len(train))) :]
        _say(f"this machine encodes {share:.0%} of the clips in that time: training on {len(train)}")
    return Recipe(
        model=model.config, data=Data(train=[source], min_words=2), stages=[stage], out=str(folder),
        checkpoint_every=200, log_every=10,
    )  # fmt: skip


def _speed(model: SteerMoEForConditionalGeneration, train: list[Example], stage: Stage) -> tuple[float, float]:
    """Seconds of one step with and without encoding, measured on one batch of median clips."""
    from .training.kept import Entered
    from .training.objectives import Objectives, collate

    ears = from_model(model)
    middle = sorted(train, key=lambda e: e.duration or 0.0)[len(train) // 2 :]
    batch = middle[: max(1, int(BATCH_SECONDS / max(0.5, middle[0].duration or 2.0)))]
    entered, times, rng = Entered(model, ears.processor, keep=True), [], random.Random(0)
    for _ in range(3):
        began = time.perf_counter()
        clips = [None if e in entered else e.load() for e in batch]
        data = collate(ears.processor, entered(batch, clips), [e.text for e in batch], stage, model.audio_token_id, rng)
        Objectives(model, stage)(data)["loss"].backward()
        times.append(time.perf_counter() - began)
    model.zero_grad(set_to_none=True)
    return times[0], min(times[1:])


def _report(ears: Ears, folder: Path, before: dict[str, Any], after: dict[str, Any], clip: Example) -> Path:
    from .evaluation.report import write_report
    from .inspection import picture

    samples, title = clip.load(), f"“{clip.text}”"
    picture_of = ("Gates of the fresh adapter under the spectrogram", picture(ears, samples, title),
                  picture(ears, samples, title, dark=True))  # fmt: skip
    runs = [
        {"label": "untrained", "predictions": folder / "before" / "predictions.jsonl", **before},
        {"label": "trained", "predictions": folder / "after" / "predictions.jsonl", **after},
    ]
    return write_report(folder / "report.html", title="Quickstart: a fresh adapter", runs=runs,
                        curves=folder / "metrics.jsonl", pictures=[picture_of])  # fmt: skip


def _title(text: str) -> None:
    print(f"\n{text}\n{'-' * len(text)}", flush=True)


def _say(text: str) -> None:
    print(text, flush=True)

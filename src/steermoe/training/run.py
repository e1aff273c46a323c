"""From a recipe to a trained adapter: what `steermoe train` calls."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from ..audio import RATE
from ..errors import DataError
from ..evaluation.scoring import HAN, normalizer, score
from ..inference.ears import Ears, from_model
from ..model import SteerMoEForConditionalGeneration
from ..pretrained import auto_dtype, load_tokenizer
from .checkpoint import latest
from .dataset import named
from .loop import Trainer
from .metrics import say
from .recipe import Recipe


def new_model(recipe: Recipe) -> SteerMoEForConditionalGeneration:
    """The recipe's pair with a fresh adapter, drawn from its seed."""
    settings = {k: v for k, v in vars(recipe.model).items() if k not in ("encoder", "llm")}
    torch.manual_seed(recipe.seed)
    where = "cuda" if torch.cuda.is_available() else "cpu"  # where accelerate will put it
    dtype = auto_dtype(where) if recipe.dtype == "auto" else getattr(torch, recipe.dtype)
    model = SteerMoEForConditionalGeneration.from_pair(recipe.model.encoder, recipe.model.llm, dtype=dtype, **settings)
    if recipe.model.prompt_vectors and recipe.model.instruction:
        model.tokenizer = model.tokenizer or load_tokenizer(recipe.model.llm)
        start_from_words(model, model.tokenizer.encode(recipe.model.instruction, add_special_tokens=False))
    return model


def first_model(recipe: Recipe) -> SteerMoEForConditionalGeneration:
    """The model as training begins: new, or from ``init_from``; says what of that it could not keep."""
    model = new_model(recipe)
    if recipe.init_from is not None:
        from ..adapter import start_from
        from ..inference.find import find_adapter

        for line in start_from(model, find_adapter(recipe.init_from)):
            say(line)
    return model


def start_from_words(model: SteerMoEForConditionalGeneration, tokens: list[int]) -> None:
    """Prompt vectors begin as the instruction's own embeddings, over and over: nearly right, instead of noise."""
    table = model.llm.get_input_embeddings()
    ids = torch.tensor([tokens[i % len(tokens)] for i in range(len(model.prompt_vectors))], device=model.device)
    with torch.no_grad():
        model.prompt_vectors.copy_(table(ids))


def validator(recipe: Recipe, ears: Ears) -> Callable[[int], dict[str, float]] | None:
    """Numbers on a fixed draw of the validation source: WER of the text that is heard, and of what the LLM writes, asked what
    each clip asks. Raises DataError where its texts hold no word."""
    if recipe.data.valid is None:
        return None
    clips = named("data.valid", recipe.data.valid, recipe.data.valid_root)
    clips = random.Random(0).sample(clips, min(recipe.data.valid_clips, len(clips)))
    clips.sort(key=lambda clip: clip.duration or 0.0)
    audio, texts = [clip.load() for clip in clips], [clip.text for clip in clips]
    told = {(clip.language or ("zh" if HAN.search(clip.text) else "en")).lower()[:2] for clip in clips}
    words = {"en": "english", "zh": "chinese"}.get(told.pop(), "basic") if len(told) == 1 else "basic"
    if not any(map(normalizer(words), texts)):
        raise DataError(f"{recipe.data.valid}: the texts of its {len(texts)} clips hold no word to score against")
    asked = {clip.prompt for clip in clips}

    def written() -> list[str]:
        said = [""] * len(clips)
        for prompt in asked:
            rows = [i for i, clip in enumerate(clips) if clip.prompt == prompt]
            answers = ears.transcribe([audio[i] for i in rows], sampling_rate=RATE, instruction=prompt)
            for i, text in zip(rows, answers, strict=True):
                said[i] = text
        return said

    def wer(said: Any) -> float:
        return float(score(texts, list(said), words).metrics()["wer"])

    total = sum(stage.steps for stage in recipe.stages)

    def validate(step: int) -> dict[str, float]:
        numbers = {}
        if ears.config.projector == "lexical" and asked == {None}:  # an answer is not what is heard
            numbers["valid_wer_heard"] = wer(ears.hear(audio, sampling_rate=RATE))
        # Before its prompt vectors have learned, the LLM does not know what is asked of it.
        if not recipe.model.prompt_vectors or step == total:
            numbers["valid_wer"] = wer(written())
        return numbers

    return validate


def train(recipe: Recipe, resume: bool = False, init_from: str | None = None) -> Path:
    """Run ``recipe``; returns the adapter's folder. ``init_from`` replaces the recipe's own.

    ``resume`` continues from the newest checkpoint, and starts anew where there is none.
    """
    if init_from is not None:
        recipe.init_from = init_from
    elif resume and recipe.init_from is None:  # --resume alone goes on with what --init-from began
        with suppress(OSError, ValueError):
            recipe.init_from = json.loads((Path(recipe.out) / "recipe.json").read_text()).get("init_from")
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    resumed = resume and latest(Path(recipe.out) / "checkpoints")
    model = new_model(recipe) if resumed else first_model(recipe)
    ears = from_model(model, recipe.out)
    return Trainer(recipe, model, ears.processor).run(resume, validator(recipe, ears))

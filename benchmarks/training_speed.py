"""Training samples a second and peak memory: ours, a good plain implementation, and one in the shape of the reference.

    python benchmarks/training_speed.py [--clips 40] [--json FILE]

The paper's recipe (linear projector, every layer steered, `ce` through the LLM) on the tiny pair, over the same clips, whose
lengths are spread as LibriSpeech's; what is said in them does not matter for time. Each runs in a process of its own;
the time of `plain` leaves out what its data loader does, which is in the others'.

ours       the library: any-length batches by duration, frozen weights in bfloat16, logits of labelled positions only
plain      transformers' Trainer, bfloat16 autocast over float32 weights, Whisper's 30 s, text padded to the longest,
           logits and loss over all positions; the three equations of steering as they are written
reference  the authors' code as described: float32, the router's logits of all layers at every layer, then sliced, 30 s, text
           padded to 448 tokens, 823 positions a sample, logits of all of them, batches of 4
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

ENCODER, LLM = "openai/whisper-base", "HuggingFaceTB/SmolLM2-135M-Instruct"
PROMPT = "please transcribe the audio content into text: "
WORDS = "the of a to and in it that was he you his with had for at but on him she as not her be said".split()
PAIRED = {"plain": 8, "reference": 4}  # batch sizes; ours is run with the same


def clips(count: int) -> list[tuple[np.ndarray, str]]:
    """(samples, text): lengths spread as in LibriSpeech's training set, 1.3 to 17 s, most of 12 to 16, 2.7 words a second."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        seconds = float(np.clip(rng.normal(14.2, 1.6) if rng.random() < 0.72 else rng.uniform(1.3, 13), 1.3, 17))
        text = " ".join(rng.choice(WORDS, max(1, round(2.7 * seconds))))
        made.append((rng.standard_normal(round(seconds * 16_000)).astype(np.float32) * 0.05, text))
    return made


class Steered(nn.Module):
    """Equations (1) to (3) as anybody would write them; ``full``: with the logits of all layers at every layer."""

    def __init__(self, layers: int, width: int, experts: int = 8, full: bool = False) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.randn(layers, experts, width) * 0.01)
        self.router, self.scales = nn.Linear(width, layers * experts), nn.Parameter(torch.full((layers,), 0.1))
        self.experts, self.full = experts, full

    def forward(self, h: Tensor, layer: int) -> Tensor:
        rows = slice(layer * self.experts, (layer + 1) * self.experts)
        if self.full:
            logits = self.router(h)[..., rows]
        else:
            logits = F.linear(h, self.router.weight[rows], self.router.bias[rows])
        return h + self.scales[layer] * (logits.softmax(-1) @ self.vectors[layer])


class PlainPair(nn.Module):
    """Encoder with hooks, mean pooling, one linear map, LLM with labels: what a careful user of transformers writes."""

    def __init__(self, full_router: bool, encoder: Any = None, llm: Any = None) -> None:
        super().__init__()
        from steermoe.pretrained import load_encoder, load_llm

        self.encoder: Any = (encoder or load_encoder(ENCODER, torch.float32)).requires_grad_(False)
        self.llm: Any = (llm or load_llm(LLM, torch.float32)).requires_grad_(False)
        width = self.encoder.config.d_model
        self.steering = Steered(len(self.encoder.layers), width, full=full_router)
        self.proj = nn.Linear(width, self.llm.config.hidden_size)
        for i, layer in enumerate(self.encoder.layers):
            layer.register_forward_hook(lambda _, __, out, i=i: self.steering(out, i))

    def train(self, mode: bool = True) -> PlainPair:
        super().train(mode)
        self.encoder.eval()
        self.llm.eval()
        return self

    def forward(self, input_features: Tensor, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Any:
        h = self.encoder(input_features).last_hidden_state  # (B, 1500, D)
        audio = self.proj(h.unflatten(1, (-1, 4)).mean(2))  # (B, 375, D_llm)
        text = self.llm.get_input_embeddings()(input_ids)
        embeds = torch.cat([audio.to(text.dtype), text], dim=1)
        mask = torch.cat([attention_mask.new_ones(audio.shape[:2]), attention_mask], dim=1)
        marks = torch.cat([labels.new_full(audio.shape[:2], -100), labels], dim=1)
        return {"loss": self.llm(inputs_embeds=embeds, attention_mask=mask, labels=marks).loss}


def plain_batch(data: list[tuple[np.ndarray, str]], text_length: int | None) -> dict[str, Tensor]:
    from steermoe.pretrained import load_feature_extractor, load_tokenizer

    extractor, tokenizer = load_feature_extractor(ENCODER), load_tokenizer(LLM)
    features = extractor([clip for clip, _ in data], sampling_rate=16_000, return_tensors="pt")["input_features"]
    prompt = tokenizer(PROMPT)["input_ids"]
    answers = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for _, text in data]
    length = text_length or len(prompt) + max(map(len, answers))
    ids, labels = torch.zeros(len(data), length, dtype=torch.long), torch.full((len(data), length), -100)
    mask = torch.zeros(len(data), length, dtype=torch.long)
    for row, answer in enumerate(answers):
        whole = [*prompt, *answer]
        ids[row, : len(whole)], mask[row, : len(whole)] = torch.tensor(whole), 1
        labels[row, len(prompt) : len(whole)] = torch.tensor(answer)
    return {"input_features": features, "input_ids": ids, "attention_mask": mask, "labels": labels}


def ours(data: list[tuple[np.ndarray, str]], size: int) -> list[float]:
    """Seconds a sample of each step."""
    import soundfile

    from steermoe.config import SteerMoEConfig
    from steermoe.data import Example
    from steermoe.training.loop import Trainer
    from steermoe.training.recipe import Data, Recipe, Stage
    from steermoe.training.run import from_model, new_model

    with tempfile.TemporaryDirectory() as folder:
        examples = []
        for i, (clip, text) in enumerate(data):
            soundfile.write(f"{folder}/{i}.wav", clip, 16_000)
            examples.append(Example(id=str(i), audio=Path(f"{folder}/{i}.wav"), text=text, duration=len(clip) / 16_000))
        budget = size * float(np.mean([len(clip) / 16_000 for clip, _ in data]))
        stage = Stage(steps=len(data) // size, objectives={"ce": 1.0}, batch_seconds=budget, warmup=1)
        config = SteerMoEConfig(encoder=ENCODER, llm=LLM, projector="linear", prompt_mode="raw", instruction=PROMPT)
        recipe = Recipe(
            model=config, data=Data(train=["-"]), stages=[stage], out=f"{folder}/run", checkpoint_every=10**6
        )
        model = new_model(recipe)
        ears = from_model(model)
        Trainer(recipe, model, ears.processor).run(examples=examples)
        rows = [json.loads(line) for line in Path(f"{folder}/run/metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "audio_seconds" in row]
    mean = sum(len(clip) for clip, _ in data) / 16_000 / len(data)
    return [row["seconds"] / (row["audio_seconds"] / mean) for row in rows]


def plain(data: list[tuple[np.ndarray, str]], size: int) -> list[float]:
    from transformers import Trainer, TrainerCallback, TrainingArguments

    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append((time.perf_counter() - self.began) / size)

    class Collator:
        def __call__(self, rows: list[tuple[np.ndarray, str]]) -> dict[str, Tensor]:
            return plain_batch(rows, None)

    model = PlainPair(full_router=False)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, per_device_train_batch_size=size, bf16=True, use_cpu=not torch.cuda.is_available(), report_to=[],
            max_steps=len(data) // size, save_strategy="no", logging_strategy="no", remove_unused_columns=False,
            disable_tqdm=True,
        )  # fmt: skip
        Trainer(model, arguments, data_collator=Collator(), train_dataset=data, callbacks=[Clock()]).train()  # type: ignore[arg-type]
    return times


def reference(data: list[tuple[np.ndarray, str]], size: int) -> list[float]:
    model = PlainPair(full_router=True).train()
    trained = [*model.steering.parameters(), *model.proj.parameters()]
    optimizer, times = torch.optim.AdamW(trained, lr=5e-5), []
    for start in range(0, len(data) - size + 1, size):
        began = time.perf_counter()
        model(**plain_batch(data[start : start + size], 448))["loss"].backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        times.append((time.perf_counter() - began) / size)
    return times


def child(variant: str, size: int, count: int) -> None:
    """One variant in this process: prints seconds a sample (median over steps, the first left out) and peak bytes."""
    times = {"ours": ours, "plain": plain, "reference": reference}[variant](clips(count), size)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": median(times[1:]), "peak": peak, "steps": len(times)}))


def measure(variant: str, size: int, count: int) -> dict[str, float]:
    count = max(3 * size, count if variant != "reference" else 0)  # three steps of the slow one are enough
    command = [sys.executable, __file__, "--variant", variant, "--batch", str(size), "--clips", str(count)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{variant}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--variant", choices=("ours", *PAIRED), help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.variant:
        child(arguments.variant, arguments.batch, arguments.clips)
        return
    numbers = {}
    print("| training | batch | samples a second | peak memory | ours: faster | memory |\n|---|---|---|---|---|---|")
    for name, size in PAIRED.items():
        mine, theirs = (measure(which, size, arguments.clips) for which in ("ours", name))
        faster, leaner = theirs["seconds"] / mine["seconds"], mine["peak"] / theirs["peak"]
        for which, row, cells in (("ours", mine, " | "), (name, theirs, f"{faster:.1f} x | {leaner:.2f}")):
            print(f"| {which} | {size} | {1 / row['seconds']:.2f} | {row['peak'] / 1e9:.2f} GB | {cells} |", flush=True)
        numbers |= {f"train_speedup_vs_{name}": faster, f"train_memory_vs_{name}": leaner}
    if arguments.json:
        arguments.json.write_text(json.dumps(numbers))


if __name__ == "__main__":
    main()

"""Everything that is asked of a GPU, in one call: no weights are needed, pairs of the paper's shape are made with random ones.

    python benchmarks/gpu.py [--shape w7b] [--out benchmarks/results/gpu.json]

1. the tests of the CUDA kernels, then their time and bandwidth (`steering_op.py`);
2. steering's share of the forward pass of Whisper-large-v3's stack (`steering_overhead.py`);
3. training steps of the pair (8 clips of 15 s, 60 tokens each): ours, a plain implementation (30 s, all logits, the equations
   of steering as they are written), and one in the shape of the reference (float32, all layers' logits at every layer, text
   padded to 448 tokens): text tokens a second and peak memory, each in a process of its own;
4. transcription, 40 tokens for every clip of 10 s, at batch 1, 32 and 128.

`--shape tiny` runs the same on any machine, in a minute: it shows that the script works, and nothing else.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from steering_overhead import DEVICE, clock, large, measure
from training_speed import PlainPair

from steermoe.evaluation.predictions import replace

HERE = Path(__file__).parent
CLIPS, SECONDS, TOKENS = 8, 15, 60  # of a training step
HEARD, WRITTEN, BATCHES = 10, 40, (1, 32, 128)  # seconds of a clip, tokens of its text
SHAPES: dict[str, tuple[dict[str, int], dict[str, int]]] = {
    "w7b": (  # Whisper-large-v3 and Qwen2.5-7B
        {"d_model": 1280, "encoder_layers": 32, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120, "num_mel_bins": 128},
        {"hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
         "intermediate_size": 18944, "vocab_size": 152064},
    ),
    "tiny": (
        {"d_model": 64, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 128, "num_mel_bins": 80},
        {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
         "intermediate_size": 128, "vocab_size": 500},
    ),
}  # fmt: skip


def parts(shape: str, dtype: torch.dtype) -> tuple[Any, Any, Any]:
    """Encoder, feature extractor and LLM of random weights, on the device."""
    from transformers import Qwen2Config, Qwen2ForCausalLM, WhisperConfig, WhisperFeatureExtractor
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    heard, read = SHAPES[shape]
    encoder_config = WhisperConfig(**heard)
    encoder_config._attn_implementation = "sdpa"
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    torch.manual_seed(0)
    try:
        with torch.device(DEVICE):
            encoder = WhisperEncoder(encoder_config).eval()
            llm = Qwen2ForCausalLM(Qwen2Config(**read, attn_implementation="sdpa")).eval()
    finally:
        torch.set_default_dtype(before)
    return encoder, WhisperFeatureExtractor(feature_size=heard["num_mel_bins"]), llm


def ours(shape: str) -> Any:
    from steermoe.config import SteerMoEConfig
    from steermoe.encoders import wrap
    from steermoe.model import SteerMoEForConditionalGeneration

    encoder, extractor, llm = parts(shape, torch.bfloat16)
    config = SteerMoEConfig(encoder="random", llm="random", projector="linear")
    return SteerMoEForConditionalGeneration(config, wrap(encoder, extractor), llm).to(DEVICE)


def noise(count: int, seconds: float) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(int(seconds * 16_000)).astype(np.float32) * 0.05 for _ in range(count)]


def step(variant: str, shape: str) -> Callable[[], Any]:
    """One training step of a variant, features ready."""
    prompt = 12
    if variant == "ours":
        model = ours(shape).train()
        features, lengths = (x.to(DEVICE) for x in model.frames.features(noise(CLIPS, SECONDS)))
        ids = torch.randint(100, 400, (CLIPS, 1 + prompt + TOKENS), device=DEVICE)
        ids[:, 0] = model.audio_token_id
        labels = ids.clone()
        labels[:, : 1 + prompt] = -100
        inputs = {"input_ids": ids, "labels": labels, "input_features": features, "feature_lengths": lengths}
        inputs["audio_windows"] = torch.ones(CLIPS, dtype=torch.long)
        trained = [p for p in model.parameters() if p.requires_grad]
        loss: Callable[[], Any] = lambda: model(**inputs).loss  # noqa: E731
    else:
        plain = variant == "plain"
        encoder, extractor, llm = parts(shape, torch.float32)
        pair = PlainPair(full_router=not plain, encoder=encoder, llm=llm).to(DEVICE).train()
        features = extractor(noise(CLIPS, SECONDS), sampling_rate=16_000, return_tensors="pt")["input_features"]
        length = prompt + TOKENS if plain else 448
        ids = torch.randint(100, 400, (CLIPS, length), device=DEVICE)
        labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
        labels[:, prompt : prompt + TOKENS], mask[:, : prompt + TOKENS] = ids[:, prompt : prompt + TOKENS], 1
        inputs = {"input_features": features.to(DEVICE), "input_ids": ids, "attention_mask": mask, "labels": labels}
        trained = [*pair.steering.parameters(), *pair.proj.parameters()]

        def loss() -> Any:
            with torch.autocast(DEVICE, torch.bfloat16, enabled=plain):
                return pair(**inputs)["loss"]

    optimizer = torch.optim.AdamW(trained, lr=1e-4)

    def work() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    return work


def train(variant: str, shape: str) -> dict[str, Any]:
    try:
        work = step(variant, shape)
        times = [clock(work) for _ in range(7)][2:]
    except torch.OutOfMemoryError:
        return {"out_of_memory": True}
    peak = torch.cuda.max_memory_allocated() / 1e9 if DEVICE == "cuda" else None
    return {"tokens_per_s": CLIPS * TOKENS / median(times), "step_s": median(times), "peak_gb": peak}


@torch.inference_mode()
def transcribe(shape: str) -> dict[str, float]:
    """RTFx, seconds of speech a second, spectrograms included."""
    model, found = ours(shape), {}
    for size in BATCHES:
        clips = noise(size, HEARD)
        ids = torch.randint(100, 400, (size, 13), device=DEVICE)
        ids[:, 0] = model.audio_token_id

        def work(clips: list[np.ndarray] = clips, ids: Any = ids, size: int = size) -> None:
            features, lengths = (x.to(DEVICE) for x in model.frames.features(clips))
            model.generate(
                ids, input_features=features, feature_lengths=lengths, audio_windows=torch.ones(size, dtype=torch.long),
                do_sample=False, min_new_tokens=WRITTEN, max_new_tokens=WRITTEN, pad_token_id=0,
            )  # fmt: skip

        work()
        found[f"rtfx_batch{size}"] = size * HEARD / median(clock(work) for _ in range(3))
    return found


def child(*arguments: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True)
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1:]}
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="w7b")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "gpu.json")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    shape = arguments.shape
    if arguments.part:
        value = transcribe(shape) if arguments.part == "transcribe" else train(arguments.part, shape)
        print(json.dumps(value))
        return
    if shape == "w7b" and DEVICE == "cpu":
        raise SystemExit("error: no GPU was found; `--shape tiny` tries the script on a CPU")
    numbers: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if DEVICE == "cuda" else "CPU", "torch": torch.__version__, "shape": shape,
    }  # fmt: skip

    def tell(**values: Any) -> None:
        numbers.update(values)
        for name, value in values.items():
            print(f"{name}: {value}", flush=True)
        replace(
            arguments.out, json.dumps(numbers, indent=2) + "\n"
        )  # after every figure: what was measured stays, whatever comes

    tests = [sys.executable, "-m", "pytest", "-q", str(HERE.parent / "tests" / "test_kernels.py"), "-k", "cuda"]
    done = subprocess.run(tests, capture_output=True, text=True)
    tell(kernel_tests=(done.stdout.strip().splitlines() or [done.stderr[-300:]])[-1])
    answer = arguments.out.with_name(".steering_op.json")
    subprocess.run([sys.executable, str(HERE / "steering_op.py"), "--json", str(answer)], check=False)
    if answer.is_file():
        tell(steering_op=json.loads(answer.read_text()))
        answer.unlink()
    if shape == "w7b":
        tell(steering_overhead_large=measure(large(), 30.0, 15))
    for variant in ("ours", "plain", "reference"):
        tell(**{f"train_{variant}": child("--part", variant, "--shape", shape)})
    tell(**child("--part", "transcribe", "--shape", shape))


if __name__ == "__main__":
    main()

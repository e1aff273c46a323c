"""A pair so small that everything runs in milliseconds, saved as plain transformers folders; and the real one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import soundfile
import torch

from steermoe.inference.ears import Ears, from_model
from steermoe.model import SteerMoEForConditionalGeneration


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--support-table", metavar="FILE", help="write what the contract suites saw (see support.py)")


def pytest_configure(config: pytest.Config) -> None:
    from .support import configure

    configure(config)


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if tools %}{{ tools | tojson }}\n{% endif %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = ["repeat the text above word for word. user system assistant", "very very well said the quick brown fox"]


class Pair(NamedTuple):
    encoder: str
    llm: str


def tiny_whisper(folder: Path) -> None:
    """80 mels and 1,500 positions as the real ones, 2 + 1 layers of width 32."""
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    config = WhisperConfig(
        vocab_size=64,
        d_model=32,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=3,
        dropout=0.1,  # must never act
    )
    WhisperForConditionalGeneration(config).save_pretrained(folder)
    WhisperFeatureExtractor().save_pretrained(folder)


def tiny_llm(folder: Path) -> None:
    """A Llama of 2 layers of width 48, with a byte-level BPE tokenizer that speaks ChatML."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=300, special_tokens=specials, initial_alphabet=alphabet, show_progress=False),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHATML
    )
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        attention_dropout=0.1,  # must never act
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.3,  # else every token is as likely as any other
    )
    LlamaForCausalLM(config).save_pretrained(folder)


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Names that ``from_pair`` takes: two folders."""
    root = tmp_path_factory.mktemp("pair")
    torch.manual_seed(0)
    tiny_whisper(root / "encoder")
    tiny_llm(root / "llm")
    return Pair(str(root / "encoder"), str(root / "llm"))


def livened(model: SteerMoEForConditionalGeneration, seed: int = 0) -> SteerMoEForConditionalGeneration:
    """The adapter's tensors drawn large, as if trained: steering shows, words and blanks are heard."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in sorted(model.adapter_state().items()):
            if not tensor.is_floating_point():
                continue
            if name.split(".")[-1] not in ("log_scale", "blank_bias"):
                tensor.add_(torch.randn(tensor.shape, generator=generator) * (0.3 if tensor.ndim > 1 else 0.1))
            elif name.endswith("blank_bias"):
                tensor.fill_(6.0)  # about half of all frames
    return model


@pytest.fixture(scope="session")
def liven() -> Callable[..., SteerMoEForConditionalGeneration]:
    return livened


@pytest.fixture(scope="session")
def make(pair: Pair) -> Callable[..., Ears]:
    """``make(**config) -> Ears`` of the tiny pair, with a livened adapter; ``fresh=True`` leaves it untrained."""

    def make(seed: int = 0, fresh: bool = False, **config: Any) -> Ears:
        torch.manual_seed(seed)
        model = SteerMoEForConditionalGeneration.from_pair(*pair, **{"dtype": torch.float32, **config})
        return from_model(model if fresh else livened(model, seed))

    return make


@pytest.fixture(scope="session")
def ears(make: Callable[..., Ears]) -> Ears:
    """Lexical, livened, with prompt vectors. Shared: leave it as it is."""
    return make(prompt_vectors=2)


def speechlike(seconds: float, seed: int = 0) -> np.ndarray:
    """(N,) float32 at 16 kHz: noise and tones that change several times a second."""
    rng = np.random.default_rng(seed)
    count = max(1, round(seconds * 16_000))
    pieces = []
    while sum(map(len, pieces)) < count:
        time = np.arange(int(rng.uniform(0.05, 0.3) * 16_000)) / 16_000
        tone = np.sin(2 * np.pi * rng.uniform(80, 4000) * time) * rng.uniform(0, 0.5)
        pieces.append(tone + rng.standard_normal(len(time)) * rng.uniform(0, 0.1))
    return np.concatenate(pieces)[:count].astype(np.float32)


@pytest.fixture(scope="session")
def speech() -> Callable[..., np.ndarray]:
    return speechlike


@pytest.fixture(scope="session")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 clips of a third of a second to two, with texts of the tiny tokenizer's corpus."""
    root = tmp_path_factory.mktemp("clips")
    words = " ".join(CORPUS).split()
    rows = []
    for i in range(12):
        samples = speechlike(0.4 + 0.13 * i, seed=i)
        soundfile.write(root / f"{i}.wav", samples, 16_000)
        text = " ".join(words[i % 7 : i % 7 + 1 + i % 2])
        rows.append({"audio": f"{i}.wav", "text": text, "duration": len(samples) / 16_000})
    (root / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root / "clips.jsonl"


@pytest.fixture
def recipe(pair: Pair, manifest: Path, tmp_path: Path) -> dict[str, Any]:
    """A recipe of two stages, ctc then ce, as YAML would give it; seconds to run."""
    rates = {"vectors": 1e-2, "router": 1e-2, "projector": 1e-2, "prompt": 1e-2}
    common = {"rates": rates, "warmup": 1, "batch_seconds": 6, "negatives": 20}
    return {
        "model": {"encoder": pair.encoder, "llm": pair.llm, "num_experts": 2, "prompt_vectors": 2},
        "data": {"train": [str(manifest)]},
        "stages": [
            {"objectives": {"ctc": 1.0}, "trains": ["steering", "projector"], "steps": 4, **common},
            {"objectives": {"ce": 1.0}, "trains": ["prompt_vectors"], "steps": 4, **common},
        ],
        "out": str(tmp_path / "run"),
        "checkpoint_every": 3,
    }


@pytest.fixture(scope="session")
def real_pair() -> Iterator[Ears]:
    """Whisper-base and SmolLM2-135M-Instruct with an untrained adapter; fetched on first use."""
    torch.manual_seed(0)
    names = ("openai/whisper-base", "HuggingFaceTB/SmolLM2-135M-Instruct")
    yield from_model(SteerMoEForConditionalGeneration.from_pair(*names, dtype=torch.float32))

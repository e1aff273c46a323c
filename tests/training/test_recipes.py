"""Every recipe in recipes/ is valid, and those for large pairs run: on tiny models of the same architecture and miniature trees."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from steermoe.adapter import HEARD, PARTS, load_config, read_config
from steermoe.config import build
from steermoe.encoders.fireredasr import FireRedConfig, FireRedEncoder
from steermoe.errors import UsageError
from steermoe.inference.find import find_adapter
from steermoe.training.recipe import Recipe, load_recipe
from steermoe.training.run import train
from tests.data import trees

RECIPES = Path(__file__).parents[2] / "recipes"
ALL = sorted(str(path.relative_to(RECIPES)) for path in RECIPES.rglob("*.yaml"))
LARGE = [name for name in ALL if name.startswith(("paper/", "modern/"))]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, pair: Any) -> dict[str, Path]:
    """By the names in the recipes: folders of tiny models."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    whisper = WhisperConfig(
        vocab_size=64, d_model=32, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=48, decoder_ffn_dim=48, num_mel_bins=128, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=3,
    )  # fmt: skip
    for name in ("whisper-large-v3", "whisper-large-v3-turbo"):
        WhisperForConditionalGeneration(whisper).save_pretrained(root / name)
        WhisperFeatureExtractor(feature_size=128).save_pretrained(root / name)
    firered = {"idim": 80, "n_layers_enc": 2, "n_head": 4, "d_model": 32, "kernel_size": 7, "pe_maxlen": 800}
    folder = root / "FireRedASR-AED-L"
    folder.mkdir()
    save_file(FireRedEncoder(FireRedConfig(**firered)).state_dict(), folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": "fireredasr", **firered}))
    (folder / "preprocessor_config.json").write_text(json.dumps({"mean": [10.0] * 80, "inverse_std": [0.25] * 80}))
    sizes: dict[str, Any] = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 16,
        "num_key_value_heads": 1, "vocab_size": 300, "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    for name in ("Qwen2.5-7B-Instruct", "Qwen2.5-3B-Instruct", "Qwen3-1.7B"):
        made = Qwen3ForCausalLM(Qwen3Config(**sizes)) if "Qwen3" in name else Qwen2ForCausalLM(Qwen2Config(**sizes))
        made.save_pretrained(root / name)
        for file in Path(pair.llm).glob("*token*"):
            (root / name / file.name).write_bytes(file.read_bytes())
        for file in Path(pair.llm).glob("chat_template*"):
            (root / name / file.name).write_bytes(file.read_bytes())
    return {path.name: path for path in root.iterdir()}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    trees.librispeech(root, "train-clean-100", "train-clean-360", "train-other-500", "dev-clean")
    trees.aishell2(root)
    trees.clotho_aqa(root / "clotho_aqa")
    return root


@pytest.mark.parametrize("name", ALL)
def test_is_valid(name: str) -> None:
    recipe = load_recipe(RECIPES / name)
    assert recipe.out.startswith("runs/") and sum(stage.steps for stage in recipe.stages) > 100


@pytest.mark.parametrize("name", ["finetune.yaml", "fotaq.yaml"])
def test_what_begins_from_tiny_keeps_all_of_it(name: str) -> None:
    recipe, folder = load_recipe(RECIPES / name), find_adapter("tiny")
    assert recipe.init_from == "tiny"
    has = load_config(read_config(folder), folder)
    assert {k: getattr(recipe.model, k) for k in (*HEARD, *PARTS)} == {k: getattr(has, k) for k in (*HEARD, *PARTS)}


def test_tiny_is_what_its_recipes_say() -> None:
    told = read_config(find_adapter("tiny"))["trained"]
    for name in ("tiny-3-phones.yaml", "tiny-2-words.yaml", "tiny-1-steering.yaml"):
        recipe = load_recipe(RECIPES / name)
        was = build(Recipe, told["recipe"])  # what recipes could not say then had its default
        assert replace(was, threads=recipe.threads) == recipe  # how many threads is the machine's matter
        told = told.get("before")
    assert told is None


def test_each_runs_elsewhere() -> None:
    outs = [load_recipe(RECIPES / name).out for name in ALL]
    assert len(set(outs)) == len(outs)


@pytest.mark.parametrize("name", LARGE)
def test_runs_on_tiny_models(name: str, models: dict[str, Path], data: Path, tmp_path: Path) -> None:
    recipe = load_recipe(RECIPES / name)
    for end in ("encoder", "llm"):
        setattr(recipe.model, end, str(models[Path(getattr(recipe.model, end)).name]))
    for source in recipe.data.sources:
        assert source.root is not None
        source.root = str(data / Path(source.root).relative_to("data"))
    recipe.data.valid_root, recipe.data.valid_clips, recipe.out = str(data), 2, str(tmp_path / "run")
    for stage in recipe.stages:
        stage.steps, stage.response_tokens, stage.batch_seconds = 1, 3, min(stage.batch_seconds, 60)
        stage.negatives = min(stage.negatives, 100)
    folder = train(recipe)
    rows = [json.loads(line) for line in Path(recipe.out, "metrics.jsonl").read_text().splitlines()]
    assert (folder / "adapter_model.safetensors").is_file() and all(row["loss"] > 0 for row in rows if "loss" in row)
    if recipe.data.valid:
        assert "valid_wer" in rows[-1]


def test_a_base_is_laid_under(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("model: {num_experts: 4, scale: 0.2}\nseed: 3\nstages: [{steps: 7}, {steps: 9}]")
    (tmp_path / "b.yaml").write_text("base: a.yaml\nmodel: {num_experts: 2}\nstages: [{steps: 5}]")
    recipe = load_recipe(tmp_path / "b.yaml", ["model.scale=0.3"])
    assert (recipe.model.num_experts, recipe.model.scale, recipe.seed) == (2, 0.3, 3)
    assert [stage.steps for stage in recipe.stages] == [5]
    (tmp_path / "a.yaml").write_text("base: b.yaml")
    with pytest.raises(UsageError, match=r"a\.yaml: base: .*b\.yaml is based on this recipe"):
        load_recipe(tmp_path / "b.yaml")
    (tmp_path / "a.yaml").write_text("base: c.yaml")
    with pytest.raises(UsageError, match=r"c\.yaml: no such recipe"):
        load_recipe(tmp_path / "b.yaml")

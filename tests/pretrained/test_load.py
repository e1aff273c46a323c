"""The loaders on tiny random models of several families; test_models.py has the real ones."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    Gemma2Config,
    LlamaConfig,
    LlamaForCausalLM,
    MoonshineConfig,
    MoonshineForConditionalGeneration,
    PreTrainedModel,
    Wav2Vec2Config,
    Wav2Vec2Model,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from steermoe.errors import FetchError, UsageError
from steermoe.pretrained import auto_dtype, load_encoder, load_feature_extractor, load_llm, load_tokenizer
from steermoe.pretrained.load import outline_llm


def whisper() -> PreTrainedModel:
    sides = {f"{side}_{key}": value for side in ("encoder", "decoder")
             for key, value in {"layers": 2, "attention_heads": 2, "ffn_dim": 32}.items()}  # fmt: skip
    ids = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 1)
    return WhisperForConditionalGeneration(
        WhisperConfig(vocab_size=50, d_model=16, num_mel_bins=8, max_source_positions=20, **sides, **ids)
    )


def moonshine() -> PreTrainedModel:
    return MoonshineForConditionalGeneration(
        MoonshineConfig(
            vocab_size=50,
            hidden_size=16,
            intermediate_size=32,
            encoder_num_hidden_layers=2,
            decoder_num_hidden_layers=2,
            encoder_num_attention_heads=2,
            decoder_num_attention_heads=2,
        )
    )


def wav2vec2() -> PreTrainedModel:
    return Wav2Vec2Model(
        Wav2Vec2Config(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            conv_dim=(8, 8),
            conv_stride=(4, 4),
            conv_kernel=(4, 4),
            num_conv_pos_embeddings=8,
            num_conv_pos_embedding_groups=2,
            num_feat_extract_layers=2,
        )
    )


def llama() -> PreTrainedModel:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=50,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            tie_word_embeddings=True,
        )
    )


def saved(make: Callable[[], PreTrainedModel], folder: Path, **kwargs: str) -> tuple[str, PreTrainedModel]:
    torch.manual_seed(0)
    model = make().eval()
    model.save_pretrained(folder, **kwargs)
    return str(folder), model


@pytest.mark.parametrize("shards", ["1GB", "20KB"])
def test_whisper_gives_its_encoder_alone(tmp_path: Path, shards: str) -> None:
    name, whole = saved(whisper, tmp_path, max_shard_size=shards)
    assert (shards == "1GB") == (tmp_path / "model.safetensors").exists()
    encoder = load_encoder(name, torch.float32)
    mel = torch.randn(2, 8, 40)
    assert not any("decoder" in key for key in encoder.state_dict())
    assert torch.equal(encoder(mel).last_hidden_state, whole.model.encoder(mel).last_hidden_state)
    assert encoder.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("make", [wav2vec2, moonshine])
def test_other_families_give_their_encoder(tmp_path: Path, make: Callable[[], PreTrainedModel]) -> None:
    name, whole = saved(make, tmp_path)
    encoder = load_encoder(name, "float32")
    wave = torch.randn(1, 4000)
    expected = whole.get_encoder() if whole.config.is_encoder_decoder else whole
    assert torch.equal(encoder(wave).last_hidden_state, expected(wave).last_hidden_state)
    assert not encoder.config.is_encoder_decoder or not any("decoder" in key for key in encoder.state_dict())


@pytest.mark.parametrize("make, load", [(whisper, load_encoder), (wav2vec2, load_encoder), (llama, load_llm)])
def test_frozen_in_eval_mode_and_cast(tmp_path: Path, make, load) -> None:  # type: ignore[no-untyped-def]
    name, _ = saved(make, tmp_path)
    for dtype in (torch.float32, torch.bfloat16):
        module = load(name, dtype)
        assert not any(part.training for part in module.modules())
        assert {(p.requires_grad, p.dtype, p.is_meta) for p in module.parameters()} == {(False, dtype, False)}
    assert next(load(name).parameters()).dtype == auto_dtype()


def test_llm_keeps_its_weights_and_its_tie(tmp_path: Path) -> None:
    name, whole = saved(llama, tmp_path)
    llm = load_llm(name, torch.float32)
    ids = torch.arange(10)[None]
    assert torch.equal(llm(ids).logits, whole(ids).logits)
    assert llm.lm_head.weight is llm.model.embed_tokens.weight


def drop(folder: Path, key: str) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors[key]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    "make, load, key",
    [
        (whisper, load_encoder, "model.encoder.layers.1.fc1.weight"),
        (wav2vec2, load_encoder, "encoder.layers.1.feed_forward.output_dense.weight"),
        (llama, load_llm, "model.layers.1.mlp.up_proj.weight"),
    ],
)
def test_an_absent_weight_is_an_error_not_a_random_number(tmp_path: Path, make, load, key: str) -> None:  # type: ignore[no-untyped-def]
    name, _ = saved(make, tmp_path)
    drop(tmp_path, key)
    with pytest.raises(FetchError) as caught:
        load(name, torch.float32)
    assert key.removeprefix("model.encoder.") in str(caught.value) and "\n" not in str(caught.value)


def test_broken_folders_are_named(tmp_path: Path) -> None:
    name, _ = saved(whisper, tmp_path)
    for load in (load_tokenizer, load_feature_extractor):  # the folder has neither
        with pytest.raises(FetchError) as caught:
            load(name)
        assert name in str(caught.value) and "\n" not in str(caught.value)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(FetchError, match=r"model\.safetensors: cannot be loaded"):
        load_encoder(name)
    file.unlink()
    with pytest.raises(UsageError, match=r"no model\.safetensors"):
        load_encoder(name)
    (tmp_path / "config.json").write_text('{"model_type": "nothing-known"}')
    with pytest.raises(FetchError, match="cannot be loaded"):
        load_encoder(name)


def test_a_dtype_that_is_none(tmp_path: Path) -> None:
    name, _ = saved(llama, tmp_path)
    for dtype in ("int8", "bf16", torch.int64):
        with pytest.raises(UsageError, match="use float32, bfloat16, float16 or auto"):
            load_llm(name, dtype)


def test_auto_dtype_follows_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert auto_dtype() == torch.bfloat16
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert auto_dtype("cpu") == torch.float32
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert auto_dtype("cuda:1") == torch.float32  # emulated only
    assert auto_dtype("mps") == torch.float32


def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    name, _ = saved(llama, tmp_path)
    capfd.readouterr()
    load_llm(name, torch.float32)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", [LlamaConfig, Gemma2Config])  # Gemma scales its embeddings by a buffer
def test_an_outline_has_shapes_and_no_weights(kind: type, tmp_path: Path) -> None:
    sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 8}
    kind(**sizes, num_attention_heads=2, num_key_value_heads=1).save_pretrained(tmp_path)
    llm = outline_llm(str(tmp_path))  # no weights are there
    table = llm.get_input_embeddings()
    assert table.weight.shape == (50, 16) and float(getattr(table, "embed_scale", 1.0)) == 1.0
    assert all(p.is_meta and not p.requires_grad for p in llm.parameters()) and not llm.training

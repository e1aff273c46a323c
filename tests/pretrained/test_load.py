"""The loaders on tiny random models of several families; test_models.py has the real ones."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    BertConfig,
    BertLMHeadModel,
    Gemma2Config,
    LlamaConfig,
    LlamaForCausalLM,
    MoonshineConfig,
    MoonshineForConditionalGeneration,
    PreTrainedModel,
    Qwen2AudioConfig,
    Qwen2AudioEncoder,
    Qwen2AudioEncoderConfig,
    SeamlessM4TConfig,
    T5Config,
    T5ForConditionalGeneration,
    Wav2Vec2Config,
    Wav2Vec2Model,
    WhisperConfig,
    WhisperForConditionalGeneration,
)
from transformers.models.seamless_m4t.modeling_seamless_m4t import SeamlessM4TSpeechEncoder

from steermoe.errors import FetchError, UsageError
from steermoe.model import SteerMoEForConditionalGeneration
from steermoe.pretrained import (
    auto_dtype,
    load_embeddings,
    load_encoder,
    load_feature_extractor,
    load_llm,
    load_tokenizer,
)
from steermoe.pretrained.load import outline_llm
from tests.llms.families import FAMILIES, build


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


@pytest.mark.parametrize("prefix", ["audio_tower.", "model.audio_tower."])
def test_the_tower_of_an_audio_llm_comes_alone(tmp_path: Path, prefix: str) -> None:
    """The rest of the model is never read: here it is not even there."""
    audio = Qwen2AudioEncoderConfig(
        d_model=16,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=32,
        num_mel_bins=80,
        max_source_positions=50,
    )
    Qwen2AudioConfig(audio_config=audio, text_config={"model_type": "qwen2", "hidden_size": 24}).save_pretrained(
        tmp_path
    )
    tower = Qwen2AudioEncoder(audio)
    save_file({prefix + k: v for k, v in tower.state_dict().items()}, tmp_path / "model.safetensors")
    loaded = load_encoder(str(tmp_path), torch.float32)
    assert type(loaded) is Qwen2AudioEncoder
    assert all(torch.equal(v, tower.state_dict()[k]) for k, v in loaded.state_dict().items())


def test_the_speech_encoder_of_seamless_comes_alone(tmp_path: Path) -> None:
    config = SeamlessM4TConfig(
        hidden_size=16, speech_encoder_layers=2, speech_encoder_attention_heads=2, speech_encoder_intermediate_size=32,
        feature_projection_input_dim=160, num_adapter_layers=1, vocab_size=40, t2u_vocab_size=40,
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    encoder = SeamlessM4TSpeechEncoder(config).eval()
    save_file({"speech_encoder." + k: v for k, v in encoder.state_dict().items()}, tmp_path / "model.safetensors")
    loaded, x = load_encoder(str(tmp_path), torch.float32), torch.randn(1, 30, 160)
    with torch.no_grad():
        assert torch.equal(loaded(x).last_hidden_state, encoder(x).last_hidden_state)


def test_what_is_no_llm_is_refused(tmp_path: Path) -> None:
    bert = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=50)
    BertLMHeadModel(bert).save_pretrained(tmp_path / "bert")  # transformers counts it among the causal ones
    t5 = T5Config(d_model=16, num_layers=1, num_heads=2, d_ff=16, vocab_size=50, decoder_start_token_id=0)
    T5ForConditionalGeneration(t5).save_pretrained(tmp_path / "t5")
    saved(whisper, tmp_path / "whisper")
    for name in ("bert", "t5", "whisper"):
        with pytest.raises(UsageError, match=f"{name}: a '{name}' model is no causal LLM; give a decoder, such as"):
            load_llm(str(tmp_path / name))
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "config.json").write_text('{"model_type": "wave2vec3"}')
    for load in (load_encoder, load_llm):
        with pytest.raises(
            FetchError, match=r"new: cannot be loaded: .*`wave2vec3` but Transformers does not recognize"
        ):
            load(str(tmp_path / "new"))


@pytest.mark.parametrize("kind", [LlamaConfig, Gemma2Config])  # Gemma scales its embeddings by a buffer
def test_an_outline_has_shapes_and_no_weights(kind: type, tmp_path: Path) -> None:
    sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 8}
    kind(**sizes, num_attention_heads=2, num_key_value_heads=1).save_pretrained(tmp_path)
    llm = outline_llm(str(tmp_path))  # no weights are there
    table = llm.get_input_embeddings()
    assert table.weight.shape == (50, 16) and float(getattr(table, "embed_scale", 1.0)) == 1.0
    assert all(p.is_meta and not p.requires_grad for p in llm.parameters()) and not llm.training


@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_alone_are_the_llms(family: str, tmp_path: Path) -> None:
    build(family).save_pretrained(tmp_path)
    whole, alone = (load(str(tmp_path), torch.float32) for load in (load_llm, load_embeddings))
    ids = torch.arange(7)
    assert torch.equal(whole.get_input_embeddings()(ids), alone.get_input_embeddings()(ids))  # scaled where it scales
    assert alone.get_output_embeddings().weight is alone.get_input_embeddings().weight
    assert alone.generation_config.eos_token_id == whole.generation_config.eos_token_id
    table = alone.get_input_embeddings().weight.numel()
    assert sum(p.numel() for p in alone.parameters()) - table < (25_000 if family == "gpt2" else 500)  # its positions


def test_what_is_no_audio_encoder_is_refused(tmp_path: Path) -> None:
    saved(llama, tmp_path / "llama")
    name = str(tmp_path / "llama")
    with pytest.raises(
        FetchError, match=r"llama: has no preprocessor_config.json, so it is no audio encoder, or lacks its feature"
    ):
        SteerMoEForConditionalGeneration.from_pair(name, name)


def test_an_outline_of_what_is_no_llm_is_refused(tmp_path: Path) -> None:
    name, _ = saved(whisper, tmp_path)
    with pytest.raises(UsageError, match="a 'whisper' model is no causal LLM"):
        outline_llm(name)


GROWTH = """
import steermoe.pretrained.load, torch
torch.set_num_threads(1)
def held():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 1e6
weight, before = torch.randn(96, 64).bfloat16(), held()
for length in range(20, 5420, 3):
    torch.nn.functional.linear(torch.randn(length, 64).bfloat16(), weight)
print(held() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="tells its memory another way")
def test_products_of_ever_new_lengths_do_not_fill_memory() -> None:
    def grown(**limits: str) -> float:
        environment = {name: value for name, value in os.environ.items() if not name.endswith("_CACHE_CAPACITY")}
        command = [sys.executable, "-c", GROWTH]
        return float(subprocess.check_output(command, text=True, env=environment | limits))

    everything = grown(ONEDNN_PRIMITIVE_CACHE_CAPACITY="100000", LRU_CACHE_CAPACITY="100000")
    # Megabytes, of 1,800 products: 110 to 280 against 1,240 with AVX512, about 3 of either where nothing is compiled.
    assert grown() < max(everything / 2, 50)

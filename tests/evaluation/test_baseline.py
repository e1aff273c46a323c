"""The baseline: a real Whisper class with toy weights; the real weights in the slow test."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from steermoe.errors import UsageError
from steermoe.evaluation import WhisperOwnDecoder

WORDS = ["red", "green", "blue", "black", "white"]
SPECIAL = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>", "<|0.00|>"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Whisper with one layer of width 16 and a decoder window of 12 tokens, saved as transformers does."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import (
        PreTrainedTokenizerFast,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
    )

    target = tmp_path_factory.mktemp("whisper")
    vocabulary = {word: i for i, word in enumerate(WORDS + SPECIAL)}
    words = Tokenizer(WordLevel(vocabulary, unk_token="<|endoftext|>"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token=SPECIAL[0], additional_special_tokens=SPECIAL[1:]
    ).save_pretrained(target)
    torch.manual_seed(2)
    size = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16,
            "encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_mel_bins": 8}  # fmt: skip
    ids = {"bos_token_id": 5, "eos_token_id": 5, "pad_token_id": 5, "decoder_start_token_id": 6}
    config = WhisperConfig(
        vocab_size=11, max_target_positions=12, max_source_positions=1500, init_std=0.5, **size, **ids
    )
    model = WhisperForConditionalGeneration(config)
    with torch.no_grad():
        model.model.decoder.embed_tokens.weight[5:] = 0  # or it would say what it was told: special tokens
    model.save_pretrained(target)
    WhisperFeatureExtractor(feature_size=8).save_pretrained(target)
    (target / "generation_config.json").write_text(json.dumps({
        **ids, "is_multilingual": True, "lang_to_id": {"<|en|>": 7}, "task_to_id": {"transcribe": 8},
        "no_timestamps_token_id": 9, "max_length": 448, "begin_suppress_tokens": [5], "suppress_tokens": [0],
    }))  # fmt: skip
    return target


def clips() -> list[np.ndarray]:
    """Noise, a full window of it, and silence."""
    noise = np.random.default_rng(0).normal(0, 0.3, 480_000).astype(np.float32)
    return [noise[:8_000], noise, np.zeros(16_000, dtype=np.float32)]


def test_a_batch_is_heard_as_its_clips_alone_in_words_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = WhisperOwnDecoder(str(folder), batch_size=2)
    assert decoder.name == str(folder)
    told = []
    generate = decoder.model.generate

    def spy(features, **options):  # type: ignore[no-untyped-def]
        told.append((tuple(features.shape), options))
        return generate(features, **options)

    monkeypatch.setattr(decoder.model, "generate", spy)
    texts = decoder(clips())
    assert [shape for shape, _ in told] == [(2, 8, 3000), (1, 8, 3000)]  # 30 s, as Whisper was trained
    assert {told[0][1][key] for key in ("language", "task")} == {"en", "transcribe"}
    free = WhisperOwnDecoder(str(folder), language=None)
    assert free.name == f"{folder} (any language)" and free.language is None
    assert told[0][1]["do_sample"] is False and told[0][1]["num_beams"] == 1
    assert told[0][1]["return_timestamps"] is False
    assert len(set(texts)) > 1
    for text in texts:
        assert text and set(text.split()) <= set(WORDS[1:])  # something, and no special token
        assert len(text.split()) <= 12 - 4
    assert texts == [decoder([clip])[0] for clip in clips()]
    assert decoder([]) == []
    assert decoder.model.generation_config.suppress_tokens == [0, 10]  # its own, and all timestamps
    assert not decoder.model.training and not any(p.requires_grad for p in decoder.model.parameters())


def test_long_audio_is_heard_in_windows_that_lose_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = WhisperOwnDecoder(str(folder), batch_size=2)
    heard: list[np.ndarray] = []

    def decode(pieces: list[np.ndarray]) -> list[str]:
        heard.extend(pieces)
        return [f"piece{len(heard) - len(pieces) + i}" for i in range(len(pieces))]

    monkeypatch.setattr(decoder, "_decode", decode)
    long = np.random.default_rng(1).normal(0, 0.1, 16_000 * 70).astype(np.float32)
    short = clips()[0]
    texts = decoder([short, long])
    assert all(len(piece) <= 30 * 16_000 for piece in heard)
    assert np.array_equal(np.concatenate(heard), np.concatenate([short, long]))
    assert texts == ["piece0", " ".join(f"piece{i}" for i in range(1, len(heard)))]


def test_what_is_no_whisper_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "wav2vec2"}))
    with pytest.raises(UsageError, match="wav2vec2"):
        WhisperOwnDecoder(str(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "most"), [("openai/whisper-tiny.en", 0.12), ("openai/whisper-base", 0.1)])
def test_real_whisper_hears_real_speech(name: str, most: float) -> None:
    from steermoe.data import load_source
    from steermoe.evaluation import evaluate_asr

    result = evaluate_asr(WhisperOwnDecoder(name), load_source("librivox"), data="librivox", adapter=name)
    assert result["n"] == 5
    assert result["metrics"]["wer"] < most

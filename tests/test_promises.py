"""The nine promises of the design, each by tests that can fail."""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from steermoe import adapter as adapters
from steermoe.audio import windows
from steermoe.config import SteerMoEConfig, build
from steermoe.encoders import wrap
from steermoe.errors import AudioError, DataError
from steermoe.inference.ears import Ears, from_model, load
from steermoe.model import SteerMoEForConditionalGeneration
from steermoe.pretrained import load_encoder, load_feature_extractor, load_llm
from steermoe.processing import Prompt
from steermoe.projector import LinearProjector
from steermoe.splice import IGNORED
from steermoe.steering import Steering
from steermoe.training.loop import Interrupted, Metrics, Trainer
from steermoe.training.recipe import Recipe
from steermoe.training.run import new_model

Make = Callable[..., Ears]
Speech = Callable[..., np.ndarray]
Values = dict[str, Any]


def train(values: Values, resume: bool = False) -> SteerMoEForConditionalGeneration:
    """Run a recipe; the trained model, which is still in memory."""
    recipe = build(Recipe, values)
    model = new_model(recipe)
    Trainer(recipe, model, from_model(model).processor).run(resume)
    return model


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def digests(*modules: nn.Module) -> list[tuple[str, str]]:
    """Of every parameter and every buffer, also those that no state dict holds."""
    tensors = [(n, t) for m in modules for n, t in [*m.named_parameters(), *m.named_buffers()]]
    return [
        (n, hashlib.sha256(t.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()).hexdigest())
        for n, t in tensors
    ]


# 1. Frozen means frozen.


@pytest.mark.parametrize("how", ["ctc then ce", "ctc then copy", "linear"])
def test_promise_1_frozen_parameters_and_buffers_stay(recipe: Values, how: str) -> None:
    if how == "ctc then copy":
        recipe["stages"][1]["objectives"] = {"copy": 1.0}
    if how == "linear":  # ce through the LLM into everything that is trained
        recipe["model"]["projector"] = "linear"
        recipe["stages"] = [{**recipe["stages"][1], "trains": ["steering", "projector", "prompt_vectors"]}]
    made = build(Recipe, recipe)
    model = new_model(made)
    fresh = {k: v.clone() for k, v in model.adapter_state().items()}
    before = digests(model.frames, model.llm)
    assert any("inv_freq" in name for name, _ in before)  # buffers are among them
    Trainer(made, model, from_model(model).processor).run()
    assert digests(model.frames, model.llm) == before
    unmoved = {k for k, v in model.adapter_state().items() if torch.equal(v, fresh[k])}
    assert unmoved <= {"projector.nothing"}  # all that is trained did train: no clip was without any word
    assert all(p.grad is None for part in (model.frames, model.llm) for p in part.parameters())


# 2. Text is untouched.


def test_promise_2_a_call_without_audio_is_the_plain_llm(ears: Ears, pair: Any) -> None:
    plain, model, processor = load_llm(pair.llm, torch.float32), ears.model, ears.processor
    ids = torch.tensor([[9, 8, 7, 6, 5], [0, 0, 4, 3, 12]])
    mask = torch.tensor([[1] * 5, [0, 0, 1, 1, 1]])
    with torch.no_grad():
        ours, own = model(ids, mask, labels=ids), plain(input_ids=ids, attention_mask=mask, labels=ids)
    assert torch.equal(ours.logits, own.logits) and torch.equal(ours.loss, own.loss)
    for options in ({"do_sample": False}, {"do_sample": True, "top_k": 20}, {"num_beams": 3}):
        options = {**options, "max_new_tokens": 12, "attention_mask": mask}
        written = []
        for llm in (model, plain):
            torch.manual_seed(0)
            written.append(llm.generate(input_ids=ids, **options))
        assert torch.equal(*written)
    messages = [{"role": "user", "content": "very well"}]
    rendered = processor.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
    new = plain.generate(**rendered, max_new_tokens=9, do_sample=False)[:, rendered["input_ids"].shape[1] :]
    own_text = processor.tokenizer.decode(new[0], skip_special_tokens=True).strip()
    assert ears.chat(messages, max_new_tokens=9) == own_text
    assert model.llm.get_input_embeddings().weight.shape == plain.get_input_embeddings().weight.shape


@pytest.mark.slow
def test_promise_2_on_the_real_pair(real_pair: Ears) -> None:
    plain = load_llm(real_pair.config.llm, torch.float32)
    prompt = real_pair.processor.chat([{"role": "user", "content": "Name three rivers."}])
    ids = torch.tensor([prompt.ids])
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 16, "do_sample": False}
    assert torch.equal(real_pair.model.generate(ids, **options), plain.generate(ids, **options))


# 3. Scale 0 is the plain encoder.


def test_promise_3_scale_zero_is_the_plain_encoder(make: Make, pair: Any, speech: Speech) -> None:
    plain = wrap(load_encoder(pair.encoder, torch.float32), load_feature_extractor(pair.encoder))
    model = make().model
    features = plain.features([speech(1.3), speech(0.4, 1)])
    with torch.no_grad():
        own = plain.final_norm(plain(*features)[0])
        steered = model.encode(*features)[0]
        assert not torch.allclose(steered, own, atol=0.1)
        with model.steering.disabled():
            assert torch.equal(model.encode(*features)[0], own)
        with model.steering.scaled(0):
            assert torch.equal(model.encode(*features)[0], own)
        assert torch.equal(model.encode(*features)[0], steered)
        model.attached.remove()
        assert torch.equal(model.encode(*features)[0], own)
    assert not any(m._forward_hooks for m in model.frames.modules())
    assert model.frames.state_dict().keys() == plain.state_dict().keys()


def test_promise_3_other_threads_stay_steered(make: Make, speech: Speech) -> None:
    model, plain = make().model, make(steer=False).model
    features = model.frames.features([speech(0.7)])
    with torch.no_grad():
        steered, own = model.encode(*features)[0], plain.encode(*features)[0]
    seen: dict[bool, list[Tensor]] = {True: [], False: []}
    gate = threading.Barrier(4)

    @torch.no_grad()
    def request(disabled: bool) -> None:
        for _ in range(5):
            gate.wait(30)
            if disabled:
                with model.steering.disabled():
                    gate.wait(30)
                    seen[True].append(model.encode(*features)[0])
            else:
                gate.wait(30)
                seen[False].append(model.encode(*features)[0])

    threads = [threading.Thread(target=request, args=(i % 2 == 0,)) for i in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert len(seen[True]) == len(seen[False]) == 10
    assert all(torch.equal(h, own) for h in seen[True]) and all(torch.equal(h, steered) for h in seen[False])


# 4. A batch of N equals N batches of one.


@pytest.fixture(scope="module", params=["lexical", "linear"])
def either(request: Any, make: Make) -> Ears:
    return make(projector=request.param, prompt_vectors=1)


def greedy(ears: Ears, prompts: list[Prompt]) -> list[list[int]]:
    """New tokens of each, up to the end of its turn."""
    end = ears.processor.tokenizer.eos_token_id
    options = {"eos_token_id": end, "pad_token_id": ears.processor.pad_id, "do_sample": False, "max_new_tokens": 12}
    rows = ears.model.generate(**ears.processor.batch(prompts), with_prompt=True, **options).tolist()
    return [row[: row.index(end)] if end in row else row for row in rows]


lengths = st.floats(0.02, 2.5) | st.floats(0.02, 2.5) | st.sampled_from([0.1, 1.0, 30.01])
chats = st.lists(st.lists(lengths, min_size=1, max_size=3), min_size=2, max_size=4)


@settings(max_examples=5, deadline=None, derandomize=True, database=None)
@given(chats=chats, seed=st.integers(0, 99))
def test_promise_4_a_batch_equals_its_rows(either: Ears, speech: Speech, chats: list[list[float]], seed: int) -> None:
    processor, prompts = either.processor, []
    for i, row in enumerate(chats):
        clips = [speech(seconds, seed + 10 * i + j) for j, seconds in enumerate(row)]
        parts: list[Any] = [{"type": "audio", "audio": c, "sampling_rate": 16_000} for c in clips]
        parts.insert(seed % (len(parts) + 1), {"type": "text", "text": "very " * i})
        prompts.append(processor.chat([{"role": "user", "content": parts}]))
    batch = processor.batch(prompts)
    model, hear = either.model, ("input_features", "feature_lengths", "audio_windows")
    with torch.inference_mode():
        together = iter(model.hear(*(batch[k] for k in hear)))
        for prompt in prompts:
            one = processor.batch([prompt])
            for audio in model.hear(*(one[k] for k in hear)):
                torch.testing.assert_close(next(together), audio, rtol=1e-3, atol=1e-4)
    assert next(together, None) is None
    assert greedy(either, prompts) == [greedy(either, [p])[0] for p in prompts]


def test_promise_4_transcripts_do_not_depend_on_the_batch(either: Ears, speech: Speech) -> None:
    clips = [speech(s, i) for i, s in enumerate([0.5, 2.1, 0.2, 1.2])]
    alone = [either.transcribe(clip, sampling_rate=16_000) for clip in clips]
    for size in (2, 8):
        assert either.transcribe(clips, sampling_rate=16_000, batch_size=size) == alone
    assert either.transcribe(clips[::-1], sampling_rate=16_000, batch_size=8) == alone[::-1]


def test_promise_4_in_bfloat16_only_what_is_within_rounding_differs(make: Make, speech: Speech) -> None:
    """Rows part from those alone only where the two tokens are as likely as each other, but for rounding; few do."""
    ears = make(projector="linear", prompt_vectors=1, dtype=torch.bfloat16)
    processor, parted = ears.processor, 0
    prompts = [processor.transcription(speech(0.2 + 0.3 * (i % 7), i)) for i in range(24)]
    for start in range(0, len(prompts), 8):
        some = prompts[start : start + 8]
        for prompt, row in zip(some, greedy(ears, some), strict=True):
            alone = greedy(ears, [prompt])[0]
            if row == alone:
                continue
            parted += 1
            at = next(i for i in range(13) if row[i : i + 1] != alone[i : i + 1])
            here, there = (x[at] if at < len(x) else processor.tokenizer.eos_token_id for x in (row, alone))
            with torch.inference_mode():
                told = Prompt([*prompt.ids, *alone[:at]], prompt.audios)
                logits = ears.model(**processor.batch([told]), with_prompt=True).logits[0, -1].float()
            assert logits[there] - logits[here] <= 4 * 2**-8 * logits.abs().max()
    assert parted <= len(prompts) // 4


@pytest.mark.slow
def test_promise_4_on_the_real_pair(real_pair: Ears, speech: Speech) -> None:
    clips = [speech(s, i) for i, s in enumerate([1.5, 6.0, 0.4, 31.0])]
    alone = [real_pair.transcribe(clip, sampling_rate=16_000, max_new_tokens=12) for clip in clips]
    assert real_pair.transcribe(clips, sampling_rate=16_000, max_new_tokens=12, batch_size=8) == alone


@pytest.mark.parametrize("poison", [float("nan"), 1e30])
def test_promise_4_no_padding_reaches_the_llm(either: Ears, speech: Speech, poison: float) -> None:
    inputs = either.processor.features([speech(s, i) for i, s in enumerate([1.31, 0.4, 0.93])])
    features, lengths = inputs["input_features"], inputs["feature_lengths"]
    outside = torch.arange(features.shape[2]) >= lengths[:, None, None]
    with torch.inference_mode():
        good = either.model.hear(**inputs)
        poisoned = either.model.hear(**{**inputs, "input_features": features.masked_fill(outside, poison)})
    assert all(torch.equal(a, b) and a.isfinite().all() for a, b in zip(good, poisoned, strict=True))
    if either.config.projector == "linear":  # one vector for four frames begun, nothing for padding
        assert [len(a) for a in good] == [math.ceil(math.ceil(n / 2) / 4) for n in lengths.tolist()]


def test_promise_4_the_loss_of_a_batch_is_that_of_its_rows(either: Ears, speech: Speech) -> None:
    processor = either.processor
    prompts = [processor.answered(processor.transcription(speech(0.4 + i, i)), "very " * (i + 1)) for i in range(3)]
    with torch.no_grad():
        total = sum(float(either.model(**processor.batch([p]), num_items_in_batch=1).loss) for p in prompts)
        together = float(either.model(**processor.batch(prompts), num_items_in_batch=1).loss)
    assert together == pytest.approx(total, rel=1e-5)


# 5. The reference's router, counts and order.


def test_promise_5_the_sliced_router_is_the_full_one_sliced() -> None:
    torch.manual_seed(0)
    steering, h = Steering(5, 3, 16), torch.randn(2, 7, 16)
    full = steering.router(h).view(2, 7, 5, 3)  # all layers' logits, as the reference computes them
    for layer in range(5):
        torch.testing.assert_close(steering.gates(h, layer), full[:, :, layer].softmax(-1))


@pytest.mark.parametrize(
    ("layers", "llm_width", "count"),
    [(32, 3584, 5_246_752), (16, 3584, 4_918_928), (16, 2048, 2_951_312)],
    ids=["whisper-large-v3 + 7B", "conformer + 7B", "conformer + 3B"],
)
def test_promise_5_parameter_counts(layers: int, llm_width: int, count: int) -> None:
    with torch.device("meta"):
        parts = nn.ModuleList([Steering(layers, 8, 1280), LinearProjector(1280, llm_width)])
    assert sum(p.numel() for p in parts.parameters()) == count


@torch.no_grad()
def test_promise_5_order_of_pooling_and_norm(make: Make, speech: Speech) -> None:
    """The reference: steer, pool, the final LayerNorm, project. Ours: steer, LayerNorm, pool, project."""
    settings = {"projector": "linear", "pooling": "max", "pad_to_window": True}
    reference, ours = make(pool_before_norm=True, **settings), make(**settings)
    model, inputs = reference.model, reference.processor.features([speech(3.0)])
    encoder, steering = model.frames.encoder, model.steering
    h = F.gelu(encoder.conv2(F.gelu(encoder.conv1(inputs["input_features"])))).transpose(1, 2)
    h = h + encoder.embed_positions.weight
    router = nn.functional.linear
    with steering.disabled():  # no hooks: the steering written out
        for i, layer in enumerate(encoder.layers):
            h = layer(h, None)
            gates = router(h, steering.router.weight, steering.router.bias)[..., 8 * i : 8 * (i + 1)].softmax(-1)
            h = h + steering.scales[i] * (gates @ steering.vectors[i])

    def pool(x: Tensor) -> Tensor:
        return F.max_pool1d(x.transpose(1, 2), 4).transpose(1, 2)

    wanted = {reference: encoder.layer_norm(pool(h)), ours: pool(encoder.layer_norm(h))}
    for ears, pooled in wanted.items():
        (audio,) = ears.model.hear(**inputs)
        assert audio.shape == (375, 48)
        torch.testing.assert_close(audio, ears.model.projector.proj(pooled)[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(pool(encoder.layer_norm(h)), encoder.layer_norm(pool(h)), atol=1e-2)


# 6. Saved and resumed exactly. (Full disks and kills: test_adapter.py and training/test_loop.py.)


def test_promise_6_tensors_round_trip_bit_exact(make: Make, tmp_path: Path) -> None:
    model = make(prompt_vectors=2).model
    with torch.no_grad():  # values that a detour over text or half precision would change
        model.steering.scales.copy_(torch.tensor([1e-42, 1 / 3]))
        model.projector.blank[:3] = torch.tensor([-0.0, 3.4e38, float("inf")])
    model.save_adapter(tmp_path)
    again = load(tmp_path, dtype=torch.float32).model
    for name, tensor in model.adapter_state().items():
        assert tensor.numpy().tobytes() == again.adapter_state()[name].numpy().tobytes()


@pytest.mark.parametrize("how", ["plain", "augmented", "kept", "copy", "accumulated"])
def test_promise_6_interrupted_and_resumed_is_never_interrupted(
    recipe: Values, tmp_path: Path, monkeypatch: Any, how: str
) -> None:
    """Ctrl-C within both stages, at their border and at the very end; and a death without any checkpoint."""
    recipe["data"] |= {"augment": how in ("augmented", "kept"), "codec": 0.5 * (how in ("augmented", "kept"))}
    for stage in recipe["stages"]:
        stage["keep_frames"] = how == "kept"
        stage["accumulate"] = 2 if how == "accumulated" else 1
    if how == "copy":
        recipe["stages"][1]["objectives"] = {"copy": 1.0}
    whole = train({**recipe, "out": str(tmp_path / "whole")}).adapter_state()
    add = Metrics.add
    for last in (2, 4, 6, 8):
        with monkeypatch.context() as patch:

            def at(metrics: Metrics, row: dict[str, Any], show: bool, last: int = last) -> None:
                add(metrics, row, show)
                if row["step"] == last:
                    os.kill(os.getpid(), signal.SIGINT)

            patch.setattr(Metrics, "add", at)
            with pytest.raises(Interrupted, match=f"interrupted after step {last}; .* continue with --resume"):
                train(recipe, resume=last > 2)
        assert not Path(recipe["out"], "adapter").exists()
    assert equal(train(recipe, resume=True).adapter_state(), whole)
    assert equal(load_file(Path(recipe["out"], "adapter", adapters.TENSORS)), whole)

    died = {**recipe, "out": str(tmp_path / "died")}  # its checkpoints are at 3, 4 and 6
    for step in (6, 8):
        with monkeypatch.context() as patch:

            def die(metrics: Metrics, row: dict[str, Any], show: bool, step: int = step) -> None:
                add(metrics, row, show)
                if row["step"] == step:
                    raise SystemExit

            patch.setattr(Metrics, "add", die)
            with pytest.raises(SystemExit):
                train(died, resume=step > 6)
    assert equal(train(died, resume=True).adapter_state(), whole)


# 7. No audio is cut silently.


@pytest.mark.parametrize("seconds", [29.99, 30.0, 30.01, 61.7])
def test_promise_7_long_audio_is_windowed_whole(either: Ears, speech: Speech, seconds: float) -> None:
    clip = speech(seconds)
    pieces = windows(clip, either.model.frames.window)
    assert np.array_equal(np.concatenate(pieces), clip) and max(map(len, pieces)) <= 480_000
    inputs = either.processor.features([clip])
    assert inputs["audio_windows"].tolist() == [len(pieces)] == [1 + (seconds > 30) + (seconds > 60)]
    assert inputs["feature_lengths"].tolist() == [len(p) // 160 for p in pieces]
    with torch.inference_mode():
        (whole,) = either.model.hear(**inputs)
        each = [either.model.hear(**either.processor.features([p]))[0] for p in pieces]
    assert len(whole) == sum(map(len, each))
    torch.testing.assert_close(whole, torch.cat(each), rtol=1e-3, atol=1e-4)


def test_promise_7_every_window_is_transcribed(ears: Ears, speech: Speech) -> None:
    clip = speech(61.7)
    pieces = windows(clip, 30.0)
    texts = [ears.transcribe(p, sampling_rate=16_000, max_new_tokens=5) for p in pieces]
    assert ears.transcribe(clip, sampling_rate=16_000, max_new_tokens=5) == " ".join(t for t in texts if t)


def test_promise_7_what_is_longer_than_the_limit_is_refused(ears: Ears, speech: Speech, recipe: Values) -> None:
    with pytest.raises(AudioError, match=r"2\.5 s long, more than the limit of 2 s"):
        ears.transcribe(speech(2.5), sampling_rate=16_000, max_duration=2)
    with pytest.raises(ValueError, match="longer than the window"):
        ears.model.frames.features([speech(30.1)])


def test_promise_7_training_never_cuts_a_clip(recipe: Values, tmp_path: Path, speech: Speech, capsys: Any) -> None:
    import json

    import soundfile

    soundfile.write(tmp_path / "long.wav", speech(30.5), 16_000)
    row = {"audio": str(tmp_path / "long.wav"), "text": "very"}  # its duration is not said
    (tmp_path / "long.jsonl").write_text(json.dumps(row) + "\n")
    recipe["data"]["train"].append(str(tmp_path / "long.jsonl"))
    recipe["stages"] = [{**recipe["stages"][0], "steps": 1}]
    train(recipe)
    assert "12 clips" in (said := capsys.readouterr().err) and "left out 1 (1 longer than 30 s" in said
    recipe["data"] |= {"train": [str(tmp_path / "long.jsonl")], "max_clip_seconds": 40}
    with pytest.raises(DataError, match="no clip of at most 30 s"):
        train({**recipe, "out": str(tmp_path / "other")})
    (tmp_path / "long.jsonl").write_text(json.dumps({**row, "duration": 2.0}) + "\n")  # or is said wrong
    with pytest.raises(DataError, match=r"30\.5 s is longer than the encoder.s window of 30 s"):
        train({**recipe, "out": str(tmp_path / "third")})


# 8. Every LLM family keeps the same contract. (Encoder families: encoders/.)

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
FAMILIES: dict[str, Values] = {
    "llama": {"tie_word_embeddings": False},
    "qwen2": {},
    "qwen3": {},
    "mistral": {"sliding_window": 8},
    "gemma": {},
    "gemma3_text": {"sliding_window": 8},  # its embedding scales after the look-up
    "phi3": {},
    "granite": {"embedding_multiplier": 3.0},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_promise_8_llm_families(family: str, pair: Any, speech: Speech) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    llm = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SMALL, **FAMILIES[family])).eval()
    frames = wrap(load_encoder(pair.encoder, torch.float32), load_feature_extractor(pair.encoder))
    model = SteerMoEForConditionalGeneration(SteerMoEConfig(num_experts=2, prompt_vectors=2), frames, llm)
    assert model.audio_token_id == 64
    before = digests(model.llm)

    words = torch.tensor([[5, 9, 17, 33, 2, 41]])
    with torch.no_grad():
        own = llm(input_ids=words).logits
        assert torch.equal(model(words).logits, own)  # text is untouched
        # Audio tokens that are words' own embeddings read as these words.
        heard = model.projector.table[words[0, 1:4]]
        spoken = model(torch.tensor([[5, 64, 2, 41]]), audios=[heard])
    torch.testing.assert_close(spoken.logits, own, rtol=1e-4, atol=1e-4)

    clips = [speech(0.9), speech(0.3, 1)]
    inputs = dict(zip(("input_features", "feature_lengths"), frames.features(clips), strict=True))
    inputs["audio_windows"] = torch.ones(2, dtype=torch.long)
    ids = torch.tensor([[5, 64, 9, 17], [64, 33, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    options = {"max_new_tokens": 6, "do_sample": False, "with_prompt": True}
    together = model.generate(ids, mask, **inputs, **options)
    labels = torch.where(mask.bool() & (ids < 64) & (ids != 5), ids, IGNORED)
    rest = {"with_prompt": True, "num_items_in_batch": 1}
    loss = model(ids, mask, **inputs, labels=labels, **rest).loss
    losses = []
    for i, n in enumerate([4, 2]):
        one = {k: v[i : i + 1] for k, v in inputs.items()}
        one["input_features"] = one["input_features"][:, :, : int(one["feature_lengths"])]
        alone = model.generate(ids[i : i + 1, :n], mask[i : i + 1, :n], **one, **options)[0]
        assert together[i, : len(alone)].tolist() == alone.tolist()
        losses.append(model(ids[i : i + 1, :n], mask[i : i + 1, :n], **one, labels=labels[i : i + 1, :n], **rest).loss)
    torch.testing.assert_close(loss, sum(losses), rtol=1e-4, atol=1e-4)

    loss.backward()
    assert model.prompt_vectors.grad.abs().sum() > 0 and all(p.grad is None for p in llm.parameters())
    assert digests(model.llm) == before


# 9. One seed, the same tensors.


def test_promise_9_two_runs_of_one_seed_are_one(recipe: Values, tmp_path: Path) -> None:
    recipe["data"]["augment"] = True
    first, second = (train({**recipe, "out": str(tmp_path / name)}).adapter_state() for name in "ab")
    assert equal(first, second)
    torch.manual_seed(99)  # nothing hangs on what was drawn before
    torch.rand(3)
    other = train({**recipe, "out": str(tmp_path / "c"), "seed": 1}).adapter_state()
    assert not any(torch.equal(first[k], other[k]) for k in ("steering.vectors", "projector.proj.weight"))


def test_promise_9_also_in_another_process(recipe: Values, tmp_path: Path) -> None:
    """Whatever order strings of a set have there."""
    recipe["data"]["augment"] = True
    recipe["threads"] = torch.get_num_threads()
    here = train(recipe).adapter_state()
    for seed in "12":
        out = tmp_path / f"hash-{seed}"
        (tmp_path / "recipe.yaml").write_text(json.dumps({**recipe, "out": str(out)}))
        command = [sys.executable, "-m", "steermoe", "train", str(tmp_path / "recipe.yaml")]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True)
        assert equal(here, load_file(out / "adapter" / adapters.TENSORS))

"""The pair as one module: what is trained, where audio is spliced, what the loss counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from steermoe.config import SteerMoEConfig
from steermoe.encoders import wrap
from steermoe.errors import UsageError
from steermoe.inference.ears import Ears
from steermoe.model import SteerMoEForConditionalGeneration
from steermoe.pretrained import load_llm
from steermoe.splice import IGNORED

from .encoders.families import FIRST
from .encoders.families import build as build_encoder

Make = Callable[..., Ears]
Speech = Callable[..., np.ndarray]


@pytest.fixture(scope="module")
def model(ears: Ears) -> SteerMoEForConditionalGeneration:
    return ears.model


@pytest.mark.parametrize("projector", ["lexical", "linear", "mlp"])
@pytest.mark.parametrize("steer", [True, False])
def test_only_the_adapter_is_trainable(make: Make, projector: str, steer: bool) -> None:
    model = make(projector=projector, steer=steer, prompt_vectors=3).model
    assert set(model.trainable()) == set(model.adapter_state())
    assert all(name.startswith(("steering.", "projector.", "prompt_vectors")) for name in model.trainable())
    assert any(name.startswith("steering.") for name in model.trainable()) == steer
    assert not any(p.requires_grad for part in (model.frames, model.llm) for p in part.parameters())
    assert "prompt_vectors" not in make(projector=projector).model.adapter_state()  # none asked for


def test_training_mode_never_wakes_the_frozen(make: Make) -> None:
    model = make().model.train()
    assert model.projector.training and model.steering.training
    assert not any(m.training for part in (model.frames, model.llm) for m in part.modules())


def test_prompt_vectors_start_as_rows_of_the_table(make: Make) -> None:
    model = make(fresh=True, prompt_vectors=4).model
    table = model.llm.get_input_embeddings().weight
    assert all((table == row).all(1).any() for row in model.prompt_vectors)


@pytest.mark.parametrize(("layers", "steered"), [(None, [0, 1]), ([1], [1]), ([-1], [1]), ([], [])])
def test_which_layers_are_steered(make: Make, speech: Speech, layers: list[int] | None, steered: list[int]) -> None:
    e = make(steer_layers=layers)
    hooked = [i for i, layer in enumerate(e.model.frames.layers) if layer._forward_hooks]
    assert hooked == steered and len(e.model.steering.vectors) == len(steered)
    assert e.model.first_steered == (steered[0] if steered else 2)
    inputs = e.processor.features([speech(0.5)])
    with torch.no_grad(), e.model.steering.recording() as gates:
        h, _ = e.model.encode(inputs["input_features"], inputs["feature_lengths"])
    assert sorted(gates) == list(range(len(steered)))
    with torch.no_grad(), e.model.steering.disabled():
        plain, _ = e.model.encode(inputs["input_features"], inputs["feature_lengths"])
    assert torch.equal(h, plain) == (not steered)


@pytest.mark.parametrize("layers", [[2], [0, -3]])
def test_layers_that_are_not_there(make: Make, layers: list[int]) -> None:
    with pytest.raises(UsageError, match=r"steer_layers=.* the encoder has 2 layers"):
        make(steer_layers=layers)


def test_splice_puts_everything_in_its_place(model: SteerMoEForConditionalGeneration) -> None:
    table, mark, width = model.llm.get_input_embeddings().weight, model.audio_token_id, 48
    audios = [torch.randn(n, width) for n in (3, 1, 2)]
    ids = torch.tensor([[5, mark, 6, mark, 7], [mark, 8, 0, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    labels = torch.where(ids >= 6, ids, IGNORED)
    embeds, out_mask, out_labels = model.splice(ids, mask, audios, labels)
    first = torch.cat([table[[5]], audios[0], table[[6]], audios[1], table[[7]]])
    second = torch.cat([audios[2], table[[8]]])
    assert torch.equal(embeds[0], first) and torch.equal(embeds[1, -3:], second)
    assert out_mask.tolist() == [[1] * 7, [0] * 4 + [1] * 3]  # padding is moved to the left
    ignored = IGNORED
    assert out_labels.tolist() == [[ignored] * 4 + [6, ignored, 7], [ignored] * 6 + [8]]


def test_splice_with_prompt_vectors(model: SteerMoEForConditionalGeneration) -> None:
    audio = torch.randn(3, 48)
    embeds, mask, _ = model.splice(
        torch.tensor([[model.audio_token_id, 5]]), torch.ones(1, 2), [audio], with_prompt=True
    )
    table = model.llm.get_input_embeddings().weight
    assert torch.equal(embeds[0], torch.cat([audio, model.prompt_vectors, table[[5]]])) and mask.sum() == 6


@pytest.mark.parametrize("count", [0, 1, 3])
def test_splice_counts_placeholders(model: SteerMoEForConditionalGeneration, count: int) -> None:
    ids = torch.tensor([[model.audio_token_id, 5, model.audio_token_id]])
    with pytest.raises(ValueError, match=f"2 audio placeholders, but {count} audios"):
        model.splice(ids, torch.ones_like(ids), [torch.randn(1, 48)] * count)


def test_loss_is_next_token_cross_entropy_on_labels(ears: Ears, speech: Speech) -> None:
    """Equation (5): over labelled tokens only, each predicted from the position before it."""
    model, processor = ears.model, ears.processor
    words = ["very well", "the quick brown fox said", ""]
    prompts = [processor.answered(processor.transcription(speech(0.5 + i, i)), w) for i, w in enumerate(words)]
    batch = processor.batch(prompts)
    with torch.no_grad():
        out = model(**batch)
        total, count = 0.0, 0
        for prompt in prompts:
            one = processor.batch([prompt])
            audios = model.hear(one["input_features"], one["feature_lengths"], one["audio_windows"])
            embeds, mask, labels = model.splice(one["input_ids"], one["attention_mask"], audios, one["labels"])
            logits = model.llm(inputs_embeds=embeds, attention_mask=mask).logits
            total += float(F.cross_entropy(logits[0, :-1], labels[0, 1:], ignore_index=IGNORED, reduction="sum"))
            count += int((labels != IGNORED).sum())
        halved = model(**batch, num_items_in_batch=2 * count)
    assert count == sum(len(processor.tokens(w)) + 1 for w in words)
    assert float(out.loss) == pytest.approx(total / count, rel=1e-5)
    assert float(halved.loss) == pytest.approx(total / count / 2, rel=1e-5)
    longest = max(len(processor.tokens(w)) + 1 for w in words)
    assert out.logits.shape[1] == longest + 1  # no logits where no label needs them


def test_gradient_reaches_every_trained_tensor(make: Make, speech: Speech) -> None:
    e = make(projector="linear", prompt_vectors=2)
    prompt = e.processor.answered(e.processor.transcription(speech(0.6)), "very well")
    e.model(**e.processor.batch([prompt]), with_prompt=True).loss.backward()
    assert {n for n, p in e.model.named_parameters() if p.grad is not None and p.grad.any()} == set(e.model.trainable())


@pytest.mark.parametrize("parts", [["steering"], ["projector"], []])
def test_no_graph_through_an_encoder_that_does_not_learn(make: Make, speech: Speech, parts: list[str]) -> None:
    e = make()
    for name, parameter in e.model.trainable().items():
        parameter.requires_grad_(name.startswith(tuple(parts)))
    inputs = e.processor.features([speech(0.5)])
    h, _ = e.model.encode(inputs["input_features"], inputs["feature_lengths"])
    assert h.requires_grad == ("steering" in parts)


def test_long_audio_is_heard_window_by_window(make: Make, speech: Speech) -> None:
    e = make(projector="linear")
    clips = [speech(31.0), speech(0.5, 1)]
    inputs = e.processor.features(clips)
    with torch.no_grad():
        whole = e.model.hear(inputs["input_features"], inputs["feature_lengths"], inputs["audio_windows"])
        each = e.model.hear(inputs["input_features"], inputs["feature_lengths"], torch.ones(3, dtype=torch.long))
    assert torch.equal(whole[0], torch.cat(each[:2])) and torch.equal(whole[1], each[2])


@pytest.mark.parametrize(
    ("family", "kernel", "told"), [("whisper", 4, None), ("parakeet", 1, None), ("parakeet", 3, 3)]
)
def test_about_twelve_tokens_a_second_whatever_the_encoder(
    pair: Any, family: str, kernel: int, told: int | None
) -> None:
    """So that a pair is swapped by its names alone; what was chosen is kept with the adapter."""
    frames = wrap(*build_encoder(FIRST[family]))
    llm = load_llm(pair.llm, torch.float32)
    for projector in ("lexical", "linear", "mlp"):
        config = SteerMoEConfig(encoder="one", llm=pair.llm, projector=projector, kernel=told)
        model = SteerMoEForConditionalGeneration(config, frames, llm)
        assert model.attached is not None
        model.attached.remove()
        assert model.projector.kernel == model.config.kernel == kernel

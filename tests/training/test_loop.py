"""The loop's parts: schedule, order, groups, metrics, checkpoints; whole runs are in test_promises.py."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
import signal
from collections.abc import Callable
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

from steermoe.adapter import start_from
from steermoe.config import build
from steermoe.data import Example, load_source
from steermoe.data.batching import by_duration
from steermoe.errors import AdapterError, DataError, SteerMoEError, UsageError
from steermoe.inference.ears import Ears, from_model
from steermoe.model import SteerMoEForConditionalGeneration
from steermoe.training import checkpoint as checkpoints
from steermoe.training.checkpoint import latest, restore, save_checkpoint
from steermoe.training.dataset import TrainingSet, batch_order, training_set
from steermoe.training.kept import Entered
from steermoe.training.loop import Metrics, Trainer, rate
from steermoe.training.objectives import Objectives, collate, groups
from steermoe.training.recipe import Data, Recipe, Source, Stage
from steermoe.training.resume import check_stage
from steermoe.training.run import new_model, train

Values = dict[str, Any]


def test_rate_warms_up_then_falls_to_the_floor() -> None:
    stage = Stage(steps=100, warmup=10, floor=0.1)
    rates = [rate(step, stage) for step in range(101)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10] == 1 and rates[55] == pytest.approx(0.55) and rates[100] == pytest.approx(0.1)
    assert all(a >= b for a, b in pairwise(rates[10:]))
    line = Stage(steps=100, warmup=0, decay="linear", floor=0.0)
    assert [rate(step, line) for step in (0, 25, 100)] == [1, 0.75, 0]
    assert rate(3, Stage(steps=2, warmup=50)) == 4 / 50  # a stage shorter than its warm-up


def some(count: int, duration: float | None = None) -> TrainingSet:
    return TrainingSet([Example(str(i), Path(f"{i}.wav"), "x", duration=duration or 1 + i % 7) for i in range(count)])


@pytest.mark.parametrize("world", [1, 2, 3])
def test_order_resumes_and_shares(world: int) -> None:
    clips, recipe, stage = some(40), Recipe(seed=3), Stage(batch_seconds=12)
    whole = [b for epoch in range(9) for b in by_duration(clips.durations, 12, seed=3, epoch=epoch)]
    for rank in range(world):
        order = list(islice(batch_order(clips, stage, recipe, 0, rank, world), 25))
        assert order == whole[rank::world][:25]  # together they see what one process sees, whatever their number
        for skip in (1, 7, 20):  # also into later epochs
            assert list(islice(batch_order(clips, stage, recipe, skip, rank, world), 5)) == order[skip : skip + 5]


def test_a_light_source_is_heard_all_the_same() -> None:
    clips = some(6)
    clips.part, clips.sources = [0] * 6, [Source("a", weight=0.05)]
    assert len(clips.epoch(0, 0)) == 1


def test_more_ranks_than_batches_go_on_with_the_next_epoch() -> None:
    assert next(batch_order(some(1), Stage(batch_seconds=60), Recipe(), 0, 1, 2)) == [0]


def test_weights_are_shares_of_an_epoch() -> None:
    clips = some(40, 1.0)
    clips.part, clips.sources = [0] * 10 + [1] * 30, [Source("a", weight=2.5), Source("b", weight=0.5)]
    seen = [clips.epoch(0, epoch) for epoch in range(2)]
    for chosen in seen:
        counts = [chosen.count(i) for i in range(40)]
        assert (
            sum(counts[:10]) == 25 and set(counts[:10]) == {2, 3} and sum(counts[10:]) == 15 and max(counts[10:]) == 1
        )
    assert seen[0] != seen[1] and seen[0] == clips.epoch(0, 0)
    batch = next(batch_order(clips, Stage(batch_seconds=6, batch_clips=4), Recipe(), 0, 0, 1))
    assert len(batch) == 4


def test_a_clip_is_asked_its_own_prompt_or_its_sources_or_its_languages() -> None:
    clips = [Example("a", Path("a"), "x", prompt="Why?"), Example("b", Path("b"), "x", language="zh")]
    recipe = Recipe(data=Data(prompts={"zh": ["请转写", "写下来"]}))

    def asked(index: int, *prompts: str) -> set[str | None]:
        data = TrainingSet(clips, [0, 0], [Source("s", prompts=list(prompts))])
        return {data.asked(index, recipe, random.Random(seed)) for seed in range(20)}

    assert asked(0) == {"Why?"} and asked(1) == {"请转写", "写下来"}
    assert asked(0, "Write.", "Q: {prompt}") == {"Q: Why?"} and asked(1, "In {language}.") == {"In zh."}
    assert TrainingSet(clips).asked(0, Recipe(), random.Random(0)) == "Why?"
    assert TrainingSet(clips).asked(1, Recipe(), random.Random(0)) is None


@pytest.mark.parametrize(
    ("trains", "names"),
    [
        (["steering", "projector"], ["vectors", "router", "projector"]),
        (["prompt_vectors"], ["prompt"]),
        (["projector", "prompt_vectors"], ["projector", "prompt"]),
    ],
)
def test_groups_are_the_papers(make: Callable[..., Ears], trains: list[str], names: list[str]) -> None:
    model = make(fresh=True, prompt_vectors=2).model
    found = {g["name"]: g for g in groups(model, Stage(trains=trains))}
    assert list(found) == names
    peaks = {"vectors": 1e-2, "router": 1e-3, "projector": 1e-4, "prompt": 1e-2}
    assert all(g["lr"] == g["peak"] == peaks[n] for n, g in found.items())
    grouped = {id(p) for g in found.values() for p in g["params"]}
    assert (
        grouped == {id(p) for p in model.trainable().values()} == {id(p) for p in model.parameters() if p.requires_grad}
    )
    assert all(n.startswith(tuple(trains)) for n in model.trainable())
    if "vectors" in found:
        of = {id(p): n for n, p in model.named_parameters()}
        assert {of[id(p)] for p in found["vectors"]["params"]} == {"steering.vectors", "steering.scales"}
        assert {of[id(p)] for p in found["router"]["params"]} == {"steering.router.weight", "steering.router.bias"}


def test_negatives_are_drawn_anew_and_again_alike(ears: Ears) -> None:
    def draw(stage: Stage, seed: int) -> torch.Tensor | None:
        entered = (torch.zeros(1, 4, 8), torch.tensor([4]))
        return collate(ears.processor, entered, ["very well"], stage, 300, random.Random(seed)).get("negatives")

    first = draw(Stage(negatives=20), 1)
    assert first is not None and len(set(first.tolist())) == 20 and first.min() >= 0 and first.max() < 300
    assert torch.equal(first, draw(Stage(negatives=20), 1)) and not torch.equal(first, draw(Stage(negatives=20), 2))
    assert draw(Stage(negatives=0), 1) is None and draw(Stage(negatives=300), 1) is None  # the whole vocabulary


def test_objectives_are_the_models_own_losses(make: Callable[..., Ears], manifest: Path) -> None:
    e = make(projector="lexical", prompt_vectors=2)
    examples = load_source(str(manifest))[:3]
    clips, texts = [x.load() for x in examples], [x.text for x in examples]
    stage = Stage(objectives={"ctc": 0.5, "ce": 2.0}, negatives=0)
    with torch.no_grad():
        batch = collate(
            e.processor, Entered(e.model, e.processor, keep=False)(examples, clips), texts, stage, 300, random.Random(0)
        )
        losses = Objectives(e.model, stage)(batch)
        prompts = [e.processor.answered(e.processor.transcription(c), t) for c, t in zip(clips, texts, strict=True)]
        whole = e.processor.batch(prompts)
        ce = e.model(**whole, with_prompt=True).loss
        h, lengths = e.model.encode(whole["input_features"], whole["feature_lengths"])
        ctc = e.model.projector.ctc_loss(h, lengths, [e.processor.tokens(t) for t in texts])
    torch.testing.assert_close(losses["ce"], ce)
    torch.testing.assert_close(losses["ctc"], ctc)
    torch.testing.assert_close(losses["loss"], 0.5 * ctc + 2 * ce)


def test_kept_frames_do_not_depend_on_their_first_batch(make: Callable[..., Ears], manifest: Path) -> None:
    e = make(steer_layers=[1])
    examples = load_source(str(manifest))[:4]
    clips = [x.load() for x in examples]
    one, other = (Entered(e.model, e.processor, keep=True) for _ in range(2))
    h, lengths = one(examples, clips)
    other(examples[2:], clips[2:])
    other([*examples[:2]], clips[:2])
    assert all(x in other for x in examples)
    assert torch.equal(other(examples, [None] * 4)[0], h) and torch.equal(one(examples, clips)[0], h)
    plain, plain_lengths = Entered(e.model, e.processor, keep=False)(examples, clips)
    assert torch.equal(lengths, plain_lengths)
    for i, n in enumerate(lengths.tolist()):
        torch.testing.assert_close(h[i, :n], plain[i, :n], rtol=2e-3, atol=2e-3)


def test_kept_frames_outlive_a_run(make: Callable[..., Ears], manifest: Path, tmp_path: Path) -> None:
    e = make(steer_layers=[1])
    examples = load_source(str(manifest))[:4]
    first = Entered(e.model, e.processor, True, tmp_path, "a")
    h, _ = first(examples, [x.load() for x in examples])
    first.flush()
    again = Entered(e.model, e.processor, True, tmp_path, "a")
    assert torch.equal(again(examples, [None] * 4)[0], h)
    assert examples[0] not in Entered(e.model, e.processor, True, tmp_path, "b")  # other augmentation
    for p in e.model.trainable().values():
        p.requires_grad_(False)
    rested = Entered(e.model, e.processor, True, tmp_path, "a")  # past all layers: the steering counts
    assert examples[0] not in rested
    rested(examples, [x.load() for x in examples])
    rested.flush()
    assert examples[0] in Entered(e.model, e.processor, True, tmp_path, "a")
    with torch.no_grad():
        e.model.steering.scales += 0.1
    assert examples[0] not in Entered(e.model, e.processor, True, tmp_path, "a")
    for path in tmp_path.rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:100])  # a kill as it wrote
    for p in e.model.trainable().values():
        p.requires_grad_(True)
    assert examples[0] not in Entered(e.model, e.processor, True, tmp_path, "a")


def test_training_set_counts_what_it_leaves_out(manifest: Path, capsys: Any, tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    kept = training_set(Recipe(data=Data(train=[str(manifest)], max_clip_seconds=1.2, min_words=2), out=out)).clips
    assert {e.id for e in kept} == {e.id for e in load_source(str(manifest)) if e.duration <= 1.2 and " " in e.text}
    long = sum(e.duration > 1.2 for e in load_source(str(manifest)))
    assert f"{len(kept)} clips" in (said := capsys.readouterr().err) and (
        f"left out {12 - len(kept)} ({long} longer than 1.2 s, {12 - len(kept) - long} with fewer words than 2)" in said
    )
    with pytest.raises(DataError, match=r"no clip of at most 0\.01 s"):
        training_set(Recipe(data=Data(train=[str(manifest)], max_clip_seconds=0.01), out=out))


def test_digits_are_what_a_clip_is_to_write(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(16_000, np.float32), 16_000)
    (tmp_path / "said.jsonl").write_text('{"audio": "a.wav", "text": "Press seventy two.", "duration": 1.0}\n')
    for digits, text in ((True, "Press 72."), (False, "Press seventy two.")):
        data = Data(train=[str(tmp_path / "said.jsonl")], digits=digits)
        assert [clip.text for clip in training_set(Recipe(data=data, out=str(tmp_path / "run"))).clips] == [text]


def test_clips_without_words_are_left_out_or_learned_from(recipe: Values, tmp_path: Path) -> None:
    rows = []
    for i in range(4):
        soundfile.write(tmp_path / f"{i}.wav", np.random.default_rng(i).normal(0, 0.05, 8_000), 16_000)
        rows.append(json.dumps({"audio": f"{i}.wav", "text": "", "duration": 0.5}) + "\n")
    (tmp_path / "quiet.jsonl").write_text("".join(rows))
    recipe["data"] = {"train": [str(tmp_path / "quiet.jsonl")]}
    recipe["stages"] = [
        {"steps": 6, "batch_seconds": 2, "negatives": 20, "rates": {"projector": 1e-2}},
        {"objectives": {"copy": 1.0}, "trains": ["prompt_vectors"], "steps": 1, "batch_seconds": 2},
    ]
    recipe["model"]["prompt_vectors"] = 2
    with pytest.raises(DataError, match="no clip"):
        train(build(Recipe, recipe))
    recipe["data"]["min_words"] = 0
    train(build(Recipe, recipe))
    losses = [json.loads(line) for line in (Path(recipe["out"]) / "metrics.jsonl").read_text().splitlines()]
    assert losses[5]["ctc"] < losses[0]["ctc"] / 2 and np.isfinite(losses[6]["copy"])


def test_metrics_drop_what_a_resumption_repeats(tmp_path: Path) -> None:
    rows = "".join(json.dumps({"step": step, "loss": 1.0}) + "\n" for step in (1, 2, 3, 4))
    (tmp_path / "metrics.jsonl").write_text(rows + '{"step": 5, "lo')  # killed as it wrote
    metrics = Metrics(tmp_path, start=3, total=9, active=True)
    metrics.add({"step": 4, "loss": 2.0}, show=False)
    metrics.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(r["step"], r["loss"]) for r in lines] == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0)]


def test_a_run_leaves_its_recipe_metrics_and_two_checkpoints(recipe: Values, capsys: Any) -> None:
    folder = train(build(Recipe, recipe))
    out = Path(recipe["out"])
    assert folder == out / "adapter"
    assert build(Recipe, json.loads((out / "recipe.json").read_text())) == build(Recipe, recipe)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == list(range(1, 9)) and [r["stage"] for r in rows] == [0] * 4 + [1] * 4
    assert all("ctc" in r and "ce" not in r for r in rows[:4]) and all("ce" in r for r in rows[4:])
    assert rows[0]["lr_vectors"] == 1e-2 > rows[3]["lr_vectors"] and "lr_prompt" in rows[4]
    assert [p.name for p in sorted((out / "checkpoints").iterdir())] == ["step-000006", "step-000008"]
    said = capsys.readouterr()
    assert said.out == "" and "step 1/8" in said.err  # stdout is for results

    with pytest.raises(UsageError, match="holds a run already: continue it with --resume"):
        train(build(Recipe, recipe))
    before = {p: p.read_bytes() for p in folder.iterdir()}
    train(build(Recipe, recipe), resume=True)  # nothing is left to do, and nothing is lost
    assert {p: p.read_bytes() for p in folder.iterdir()} == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="on CPUs only")
def test_the_encoder_attends_as_before_when_training_ends(recipe: Values) -> None:
    made = build(Recipe, recipe)
    model = new_model(made)
    config, seen = model.frames.encoder.config, []
    before = config._attn_implementation
    model.frames.encoder.layers[0].register_forward_hook(lambda *_: seen.append(config._attn_implementation))
    Trainer(made, model, from_model(model).processor).run()
    assert set(seen) == {"eager"} and config._attn_implementation == before != "eager"


def test_resume_refuses_another_recipe(recipe: Values) -> None:
    train(build(Recipe, recipe))
    for key, value in (("seed", 3), ("data", {**recipe["data"], "min_words": 2})):
        with pytest.raises(UsageError, match=f"began with {key}.*same recipe"):
            train(build(Recipe, {**recipe, key: value}), resume=True)
    data = {**recipe["data"], "train": recipe["data"]["train"] * 2}
    ce = [{**recipe["stages"][0], "objectives": {"ctc": 1.0, "ce": 0.5}}, recipe["stages"][1]]
    for key, value in (("data", data), ("stages", recipe["stages"] * 2), ("stages", ce)):
        with pytest.raises(UsageError, match=f"began with {key}.*same recipe"):
            train(build(Recipe, {**recipe, key: value}), resume=True)
    train(build(Recipe, {**recipe, "log_every": 1, "checkpoint_every": 7}), resume=True)


def test_a_key_that_the_library_did_not_have_is_no_other_recipe(recipe: Values) -> None:
    train(build(Recipe, recipe))
    path = Path(recipe["out"]) / "recipe.json"
    before = json.loads(path.read_text())
    del before["data"]["codec"], before["stages"][0]["clip"]
    path.write_text(json.dumps(before))
    train(build(Recipe, recipe), resume=True)


def test_a_loss_that_is_no_number_ends_the_run_before_it_is_learned_from(recipe: Values) -> None:
    recipe["stages"][0]["rates"]["projector"] = 1e25
    with pytest.raises(SteerMoEError, match=r"step 2: gradients of nan.*lower rates"):
        train(build(Recipe, {**recipe, "checkpoint_every": 1}))
    kept = load_file(Path(recipe["out"]) / "checkpoints" / "step-000001" / "adapter_model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in kept.values())
    assert not (Path(recipe["out"]) / "adapter").exists()


@pytest.mark.parametrize(("step", "stage", "fits"), [(0, 0, True), (3, 0, True), (4, 0, True), (5, 0, False),
                                                     (4, 1, True), (3, 1, False), (8, 1, True), (8, 2, False)])  # fmt: skip
def test_a_checkpoint_stays_in_its_stage(recipe: Values, step: int, stage: int, fits: bool) -> None:
    made = build(Recipe, recipe)  # two stages of four steps
    if fits:
        check_stage(made, step, stage)
    else:
        with pytest.raises(UsageError, match=f"step {step}, in stages.{stage}: .* or more"):
            check_stage(made, step, stage)


def test_ce_asks_each_clip_its_own_question(ears: Ears) -> None:
    stage = Stage(objectives={"ctc": 1.0, "ce": 1.0})
    entered = (torch.zeros(2, 4, 32), torch.tensor([4, 4]))
    batch = collate(ears.processor, entered, ["very", "well"], stage, 300, random.Random(0), [None, "the quick fox"])
    said = [ears.processor.tokenizer.decode([i for i in row if i < 300]) for row in batch["input_ids"].tolist()]
    assert ears.config.instruction in said[0] and "the quick fox" in said[1] and "the quick fox" not in said[0]


def test_masks_are_drawn_by_clip_and_step(make: Callable[..., Ears], manifest: Path, recipe: Values) -> None:
    e = make()
    examples = load_source(str(manifest))[:3]
    clips = [x.load() for x in examples]

    def frames(mask: bool, when: str, chosen: slice = slice(3)) -> torch.Tensor:
        return Entered(e.model, e.processor, False, mask=mask)(examples[chosen], clips[chosen], when)[0]

    plain, masked = frames(False, "1"), frames(True, "1")
    assert torch.equal(frames(False, "2"), plain) and torch.equal(frames(True, "1"), masked)
    assert not torch.equal(masked, plain) and not torch.equal(frames(True, "2"), masked)
    n = int(Entered(e.model, e.processor, False)(examples[1:2], clips[1:2])[1])
    torch.testing.assert_close(frames(True, "1", slice(1, 2))[0, :n], masked[1, :n])  # whatever batch it comes in
    with pytest.raises(UsageError, match=r"data\.mask draws anew each step"):
        stages = [{**stage, "keep_frames": True} for stage in recipe["stages"]]
        build(Recipe, {**recipe, "data": {**recipe["data"], "mask": True}, "stages": stages})


def test_padded_clips_cost_the_window() -> None:
    clips, recipe, stage = some(40, 0.5), Recipe(), Stage(batch_seconds=60)
    assert len(next(batch_order(clips, stage, recipe, 0, 0, 1))) == 40
    recipe.model.pad_to_window = True
    assert len(next(batch_order(clips, stage, recipe, 0, 0, 1))) == 2


def test_validates_on_time(recipe: Values) -> None:
    made = build(Recipe, {**recipe, "valid_every": 3})
    model = new_model(made)
    seen: list[int] = []

    def validate(step: int) -> dict[str, float]:
        seen.append(step)
        return {"valid_wer": 0.5}

    Trainer(made, model, from_model(model).processor).run(validate=validate)
    assert seen == [3, 4, 6, 8]


def test_init_from_starts_there(recipe: Values, tmp_path: Path) -> None:
    first = train(build(Recipe, recipe))
    second = {**recipe, "out": str(tmp_path / "second"), "seed": 9}
    for group in second["stages"][0]["rates"]:
        second["stages"][0]["rates"][group] = 0.0  # moves nothing
    folder = train(build(Recipe, second), init_from=str(first))
    a, b = (load_file(f / "adapter_model.safetensors") for f in (first, folder))
    assert all(torch.equal(a[k], b[k]) for k in a)
    how, then = (json.loads((f / "adapter_config.json").read_text())["trained"] for f in (first, folder))
    assert then["before"] == how and "before" not in how
    shutil.rmtree(folder)
    again = train(build(Recipe, second), resume=True)  # from a checkpoint, which remembers it, too
    assert json.loads((again / "adapter_config.json").read_text())["trained"] == then


def test_resume_remembers_init_from(recipe: Values, tmp_path: Path) -> None:
    first = train(build(Recipe, recipe))
    second = {**recipe, "out": str(tmp_path / "second"), "seed": 9}
    folder = train(build(Recipe, second), init_from=str(first))
    again = train(build(Recipe, second), resume=True)
    assert again == folder
    assert json.loads((tmp_path / "second" / "recipe.json").read_text())["init_from"] == str(first)
    with pytest.raises(UsageError, match="began with init_from"):
        train(build(Recipe, second), resume=True, init_from=str(folder))


def test_init_from_keeps_what_fits_and_says_what_starts_anew(recipe: Values, tmp_path: Path, capsys: Any) -> None:
    first = train(build(Recipe, recipe))
    larger = {**recipe["model"], "prompt_vectors": 3, "context": 1, "hidden": 4}
    second = {**recipe, "out": str(tmp_path / "second"), "seed": 9, "model": larger, "init_from": str(first)}
    model = new_model(build(Recipe, second))
    (line,) = start_from(model, first)
    found = re.fullmatch(rf"{first} has no (.+) of this shape: they start anew", line)
    assert found
    new = found.group(1).split(", ")
    assert "prompt_vectors" in new
    assert all(name == "prompt_vectors" or ".context." in name for name in new) and len(new) == 7
    old = load_file(first / "adapter_model.safetensors")
    assert all(torch.equal(v, old[k]) for k, v in model.adapter_state().items() if k not in new)
    train(build(Recipe, second))
    assert "start anew" in capsys.readouterr().err
    foreign = new_model(build(Recipe, {**second, "model": {**larger, "steer": False, "projector": "linear"}, "stages": [
        {"objectives": {"ce": 1.0}, "trains": ["projector"]}]}))  # fmt: skip
    with torch.no_grad(), pytest.raises(AdapterError, match="none of its tensors fits"):
        start_from(foreign, first)


def test_init_from_says_what_it_leaves_behind(recipe: Values, tmp_path: Path) -> None:
    first = train(build(Recipe, {**recipe, "model": {**recipe["model"], "context": 1, "silence": 0.5}}))
    model = new_model(build(Recipe, {**recipe, "out": str(tmp_path / "second")}))
    (line,) = start_from(model, first)
    assert line.startswith(f"{first} was trained with silence: 0.5, context: 1, and this recipe is not")


def swapped(recipe: Values, tmp_path: Path, end: str) -> tuple[Path, Values]:
    """A trained adapter, and the same recipe with another model of the same shape at one end."""
    first = train(build(Recipe, recipe))
    shutil.copytree(recipe["model"][end], tmp_path / "other")
    weights = load_file(tmp_path / "other" / "model.safetensors")
    save_file({k: v * 1.5 for k, v in weights.items()}, tmp_path / "other" / "model.safetensors", {"format": "pt"})
    other = {**recipe["model"], end: str(tmp_path / "other")}
    return first, {**recipe, "out": str(tmp_path / "second"), "seed": 9, "model": other}


def test_another_llm_keeps_the_steering(recipe: Values, tmp_path: Path, capsys: Any) -> None:
    first, second = swapped(recipe, tmp_path, "llm")
    model, fresh = new_model(build(Recipe, second)), new_model(build(Recipe, second)).adapter_state()
    (line,) = start_from(model, first)
    assert line == (
        f"{first} was trained for the LLM {recipe['model']['llm']}, not {second['model']['llm']}: "
        "its steering is kept, the rest starts anew"
    )
    old = load_file(first / "adapter_model.safetensors")
    for name, tensor in model.adapter_state().items():
        assert torch.equal(tensor, old[name] if name.startswith("steering.") else fresh[name])
    folder = train(build(Recipe, second), init_from=str(first))
    assert line in capsys.readouterr().err
    assert json.loads((folder / "adapter_config.json").read_text())["pair"]["llm"]["name"] == second["model"]["llm"]


def test_another_encoder_starts_anew(recipe: Values, tmp_path: Path) -> None:
    first, second = swapped(recipe, tmp_path, "encoder")
    model, fresh = new_model(build(Recipe, second)), new_model(build(Recipe, second)).adapter_state()
    (line,) = start_from(model, first)
    assert line.startswith(f"{first} was trained on the encoder") and line.endswith("everything starts anew")
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in model.adapter_state().items())


def test_other_layers_start_anew(recipe: Values, tmp_path: Path) -> None:
    first = train(build(Recipe, {**recipe, "model": {**recipe["model"], "steer_layers": [0]}}))
    second = {**recipe, "out": str(tmp_path / "second"), "model": {**recipe["model"], "steer_layers": [-1]}}
    model, fresh = new_model(build(Recipe, second)), new_model(build(Recipe, second)).adapter_state()
    (line,) = start_from(model, first)
    assert line == f"{first} steers the layers [0], not [1]: the steering starts anew"
    assert torch.equal(model.adapter_state()["steering.vectors"], fresh["steering.vectors"])
    assert not torch.equal(model.adapter_state()["projector.proj.weight"], fresh["projector.proj.weight"])


def test_broken_clips_are_skipped_and_named(recipe: Values, tmp_path: Path, manifest: Path, capsys: Any) -> None:
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    for row in rows:
        row["audio"] = str(manifest.parent / row["audio"])
    soundfile.write(tmp_path / "nan.wav", np.full(16_000, np.nan, np.float32), 16_000, subtype="FLOAT")
    rows = rows * 20 + [{"audio": str(tmp_path / "nan.wav"), "text": "very", "duration": 1.0}]
    (tmp_path / "some.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage = {**recipe["stages"][0], "steps": 3, "batch_seconds": 200}
    train(build(Recipe, {**recipe, "data": {"train": [str(tmp_path / "some.jsonl")]}, "stages": [stage]}))
    assert capsys.readouterr().err.count("skipped some-241: ") == 1
    (row,) = (json.loads(line) for line in (Path(recipe["out"]) / "skipped.jsonl").read_text().splitlines())
    assert row["id"] == "some-241" and row["audio"].endswith("nan.wav") and "NaN" in row["error"]
    unheard = [{"audio": str(tmp_path / "no.wav"), "text": "very"}]  # whose header cannot be read, either
    (tmp_path / "no.wav").write_bytes(b"RIFFxxxx")
    (tmp_path / "some.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:-1] + unheard))
    train(build(Recipe, {**recipe, "data": {"train": [str(tmp_path / "some.jsonl")]}, "stages": [stage],
                         "out": str(tmp_path / "c")}))  # fmt: skip
    assert "no.wav" in (tmp_path / "c" / "skipped.jsonl").read_text()
    few = [*rows[:9], *unheard]  # of ten, one may be bad luck
    (tmp_path / "some.jsonl").write_text("".join(json.dumps(row) + "\n" for row in few))
    assert (
        len(training_set(Recipe(data=Data(train=[str(tmp_path / "some.jsonl")]), out=str(tmp_path / "f"))).clips) == 9
    )
    other = {"audio": str(shutil.copy(tmp_path / "no.wav", tmp_path / "no too.wav")), "text": "very"}
    (tmp_path / "bad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*few, other]))
    with pytest.raises(DataError, match=r"2 of 11 audio files cannot be read, more than 1\.0% \(data\.max_skipped\)"):
        train(build(Recipe, {**recipe, "data": {"train": [str(tmp_path / "bad.jsonl")]}, "out": str(tmp_path / "b")}))
    assert len((tmp_path / "b" / "skipped.jsonl").read_text().splitlines()) == 2  # all of them, before it stops


# Checkpoints: absent or whole.


@pytest.fixture
def trained(make: Callable[..., Ears]) -> tuple[SteerMoEForConditionalGeneration, torch.optim.Optimizer]:
    model = make(prompt_vectors=2).model
    optimizer = torch.optim.AdamW(groups(model, Stage()))
    for parameter in model.trainable().values():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return model, optimizer


def test_a_checkpoint_holds_model_and_moments(trained: Any, make: Callable[..., Ears], tmp_path: Path) -> None:
    model, optimizer = trained
    path = save_checkpoint(tmp_path, model, optimizer, {"step": 5, "stage": 0})
    assert latest(tmp_path) == path and not list(path.glob("*.pt")) and not list(path.glob("*.bin"))
    other = make(seed=3, prompt_vectors=2).model
    fresh = torch.optim.AdamW(groups(other, Stage()))
    restore(path, other, fresh)
    own, got = model.adapter_state(), other.adapter_state()
    assert all(torch.equal(own[k], got[k]) for k in own)
    for a, b in zip(model.trainable().values(), other.trainable().values(), strict=True):
        assert all(torch.equal(optimizer.state[a][k], fresh.state[b][k]) for k in ("step", "exp_avg", "exp_avg_sq"))


def test_latest_is_the_newest_whole_one_and_two_are_kept(trained: Any, tmp_path: Path) -> None:
    assert latest(tmp_path) is None
    for step in (2, 999_999, 1_000_000):
        save_checkpoint(tmp_path, *trained, {"step": step, "stage": 0})
    (tmp_path / "step-1000001").mkdir()  # not whole
    assert latest(tmp_path) == tmp_path / "step-1000000"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-1000000", "step-1000001", "step-999999"]


def test_a_full_disk_leaves_the_earlier_checkpoints(trained: Any, tmp_path: Path, monkeypatch: Any) -> None:
    kept = save_checkpoint(tmp_path, *trained, {"step": 1, "stage": 0})

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(
        AdapterError, match=r"step-000002: .*No space left on device.*earlier checkpoints are untouched"
    ):
        save_checkpoint(tmp_path, *trained, {"step": 2, "stage": 0})
    assert [p.name for p in tmp_path.iterdir()] == [kept.name] and latest(tmp_path) == kept


@pytest.mark.parametrize(("function", "nth"), [("save_file", 1), ("fsync", 1), ("replace", 1), ("replace", 3)])
def test_a_kill_leaves_only_whole_checkpoints(
    trained: Any, make: Callable[..., Ears], tmp_path: Path, function: str, nth: int
) -> None:
    save_checkpoint(tmp_path, *trained, {"step": 1, "stage": 0})
    child = os.fork()
    if child == 0:
        module: Any = checkpoints if function == "save_file" else os
        real, calls = getattr(module, function), []

        def killed(*args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            if len(calls) == nth:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        setattr(module, function, killed)
        try:
            save_checkpoint(tmp_path, *trained, {"step": 2, "stage": 0})
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert latest(tmp_path) == tmp_path / "step-000001"
    restore(tmp_path / "step-000001", make(seed=3, prompt_vectors=2).model, None)
    save_checkpoint(tmp_path, *trained, {"step": 2, "stage": 0})  # the next one clears up
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000001", "step-000002"]


def test_a_manifest_without_durations_is_measured_once(recipe: Values, manifest: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    bare = tmp_path / "bare.jsonl"
    bare.write_text(
        "".join(json.dumps({"audio": str(manifest.parent / r["audio"]), "text": r["text"]}) + "\n" for r in rows)
    )
    made = build(Recipe, {**recipe, "data": {"train": [str(bare)]}})
    assert [e.duration for e in training_set(made).clips] == pytest.approx([r["duration"] for r in rows])
    train(made)
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < row["audio_seconds"] <= 6.1 for row in metrics if "audio_seconds" in row)

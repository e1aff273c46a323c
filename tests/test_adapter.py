"""An adapter on disk: bit-exact, strict, and never half written."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file, save_file

from steermoe import adapter as adapters
from steermoe.errors import AdapterError, UsageError
from steermoe.inference.ears import Ears, load
from steermoe.inference.find import find_adapter
from steermoe.model import SteerMoEForConditionalGeneration

Make = Callable[..., Ears]
Model = SteerMoEForConditionalGeneration


@pytest.fixture
def saved(ears: Ears, tmp_path: Path) -> Path:
    ears.model.save_adapter(tmp_path / "a", trained={"step": 7})
    return tmp_path / "a"


def same(folder: Path, model: Model) -> bool:
    """Do the files hold exactly this model's tensors?"""
    tensors, own = load_file(folder / adapters.TENSORS), model.adapter_state()
    return tensors.keys() == own.keys() and all(torch.equal(tensors[k], own[k]) for k in own)


def test_what_is_written(saved: Path, ears: Ears, pair: Any) -> None:
    assert sorted(p.name for p in saved.iterdir()) == [adapters.CONFIG, adapters.TENSORS]
    assert len({p.stat().st_mode for p in saved.iterdir()}) == 1  # what others may read, they may read whole
    content = json.loads((saved / adapters.CONFIG).read_text())
    assert content["format"] == 1 and content["trained"] == {"step": 7}
    assert content["pair"]["encoder"]["name"] == pair.encoder and len(content["pair"]["llm"]["weights"][0]) == 64
    assert content["shapes"] == {"encoder_layers": 2, "encoder_width": 32, "llm_width": 48, "vocabulary": 300}
    assert content["config"]["prompt_vectors"] == 2
    assert (
        sum(p.stat().st_size for p in saved.iterdir())
        < 4 * sum(t.numel() for t in ears.model.adapter_state().values()) + 20_000
    )  # nothing frozen is in it


@pytest.mark.parametrize(
    "config",
    [
        {"prompt_vectors": 3, "temperature": 0.5},
        {"projector": "linear", "pooling": "max", "pool_before_norm": True},
        {"projector": "mlp", "steer_layers": [1]},
        {"projector": "linear", "steer": False},
    ],
)
def test_load_restores_config_and_tensors(make: Make, tmp_path: Path, config: dict[str, Any]) -> None:
    model = make(**config).model
    model.save_adapter(tmp_path)
    loaded = load(tmp_path, dtype=torch.float32)
    assert loaded.config == model.config and loaded.adapter_name == str(tmp_path)
    assert same(tmp_path, loaded.model) and same(tmp_path, model)


def test_a_copy_of_the_pair_elsewhere_is_the_same_pair(saved: Path, pair: Any, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(pair.llm, tmp_path / "moved")
    assert load(saved, llm=str(tmp_path / "moved"), dtype=torch.float32).config.llm == str(tmp_path / "moved")


@pytest.mark.parametrize("end", ["encoder", "llm"])
def test_another_pair_is_refused(saved: Path, pair: Any, tmp_path: Path, end: str) -> None:
    import shutil

    other = tmp_path / "other"
    shutil.copytree(getattr(pair, end), other)
    tensors = load_file(other / "model.safetensors")
    name = sorted(tensors)[0]
    tensors[name].view(-1)[0] += 1e-3  # one number in one tensor
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(AdapterError, match=f"trained for the {end} .*, but .*other has weights"):
        load(saved, **{end: str(other)})


def damage(folder: Path, how: str) -> None:
    tensors = load_file(folder / adapters.TENSORS)
    match how:
        case "missing":
            del tensors["steering.scales"]
        case "extra":
            tensors["projector.rogue"] = torch.zeros(1)
        case "shape":
            tensors["steering.scales"] = torch.zeros(3)
        case "truncated":
            content = (folder / adapters.TENSORS).read_bytes()
            (folder / adapters.TENSORS).write_bytes(content[: len(content) // 2])
            return
        case "absent":
            (folder / adapters.TENSORS).unlink()
            return
    save_file(tensors, folder / adapters.TENSORS)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", r"missing tensors \['steering.scales'\], unknown tensors none"),
        ("extra", r"missing tensors none, unknown tensors \['projector.rogue'\]"),
        ("shape", r"wrong shapes: steering.scales \(3,\) instead of \(2,\)"),
        ("truncated", "cannot be read"),
        ("absent", "cannot be read"),
    ],
)
def test_damaged_tensors_are_named_and_change_nothing(saved: Path, make: Make, how: str, message: str) -> None:
    model = make(seed=5, prompt_vectors=2).model
    before = {k: v.clone() for k, v in model.adapter_state().items()}
    damage(saved, how)
    with pytest.raises(AdapterError, match=message) as caught:
        adapters.load_tensors(model, saved)
    assert str(saved) in str(caught.value) and "\n" not in str(caught.value)
    assert all(torch.equal(v, before[k]) for k, v in model.adapter_state().items())


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("", AdapterError, "not an adapter config"),
        ("[]", AdapterError, "not an adapter config"),
        ("{}", AdapterError, "not an adapter config"),
        ('{"format": 1}', AdapterError, "not an adapter config"),
        ('{"format": 1, "pair": {}, "config": {}}', AdapterError, "not an adapter config"),
        ('{"format": 2, "pair": {}, "config": {}}', AdapterError, "format 2, this steermoe reads 1"),
        ("nosuchkey", UsageError, "unknown key 'num_expert'; did you mean 'num_experts'"),
    ],
)
def test_damaged_configs(saved: Path, content: str, error: type[Exception], message: str) -> None:
    path = saved / adapters.CONFIG
    old = path.read_text()
    path.write_text(old.replace("num_experts", "num_expert") if content == "nosuchkey" else content)
    with pytest.raises(error, match=message) as caught:
        load(saved)
    assert str(saved) in str(caught.value)


def test_no_adapter_there(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="no adapter there; give a folder with adapter_config"):
        find_adapter(tmp_path)
    with pytest.raises(AdapterError, match="no adapter there"):
        adapters.read_config(tmp_path)


@pytest.mark.parametrize("writer", ["save_file", "write_text", "fsync", "replace"])
def test_a_full_disk_leaves_the_old_one(saved: Path, make: Make, monkeypatch: Any, ears: Ears, writer: str) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    other = make(seed=5, prompt_vectors=2).model
    target = {"save_file": safetensors.torch, "write_text": Path}.get(writer, os)
    with monkeypatch.context() as patch:
        patch.setattr(target, writer, full)
        with pytest.raises(AdapterError, match="No space left on device") as caught:
            other.save_adapter(saved)
    assert str(saved) in str(caught.value)
    assert same(saved, ears.model)
    assert sorted(p.name for p in saved.iterdir()) == [adapters.CONFIG, adapters.TENSORS]  # nothing left behind
    other.save_adapter(saved)
    assert same(saved, other)


@pytest.mark.parametrize(
    ("module", "function", "nth"),
    [
        (safetensors.torch, "save_file", 1),
        (os, "fsync", 1),
        (os, "fsync", 2),
        (os, "replace", 1),
        (os, "replace", 2),
        (adapters.shutil, "rmtree", 1),
    ],
)
def test_a_kill_leaves_the_old_or_the_new(
    saved: Path, make: Make, ears: Ears, module: Any, function: str, nth: int
) -> None:
    """A child is killed -9 as it enters the ``nth`` call of ``function``; what is there then must load."""
    other = make(seed=5, prompt_vectors=2).model
    child = os.fork()
    if child == 0:
        real, calls = getattr(module, function), []

        def killed(*args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            if len(calls) == nth:
                if function == "save_file":  # in the middle of the file
                    Path(args[1]).write_bytes(b"\0" * 100)
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        setattr(module, function, killed)
        try:
            other.save_adapter(saved)
        finally:
            os._exit(1)  # not killed: the test is wrong
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    loaded = load(saved, dtype=torch.float32).model
    assert same(saved, ears.model) or same(saved, other)
    assert same(saved, loaded)
    other.save_adapter(saved)  # and the next save clears up
    assert sorted(p.name for p in saved.iterdir()) == [adapters.CONFIG, adapters.TENSORS]


def test_an_unwritable_place(ears: Ears, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AdapterError, match="cannot save the adapter in"):
        ears.model.save_adapter(tmp_path / "file" / "a")


def test_average_is_the_weighted_mean(saved: Path, make: Make, tmp_path: Path) -> None:
    first, other = load_file(saved / adapters.TENSORS), make(prompt_vectors=2).model
    with torch.no_grad():
        for tensor in other.adapter_state().values():
            tensor += 1.0
    other.save_adapter(tmp_path / "b", trained={"step": 9})
    adapters.average({str(saved): 3, str(tmp_path / "b"): 1}, tmp_path / "c", blank_penalty=0.5)
    mean = load_file(tmp_path / "c" / adapters.TENSORS)
    assert mean.keys() == first.keys()
    for name, tensor in mean.items():
        torch.testing.assert_close(tensor, first[name] + 0.25)
    both = load(tmp_path / "c")
    assert both.config.blank_penalty == 0.5 and same(tmp_path / "c", both.model)
    content = json.loads((tmp_path / "c" / adapters.CONFIG).read_text())
    assert content["trained"]["average"] == [{"share": 3, "step": 7}, {"share": 1, "step": 9}]


def test_average_refuses_other_shapes(saved: Path, make: Make, tmp_path: Path) -> None:
    make(projector="linear").model.save_adapter(tmp_path / "b")
    with pytest.raises(AdapterError, match=r"is not that of|lacks"):
        adapters.average({str(saved): 1, str(tmp_path / "b"): 1}, tmp_path / "c")
    assert not (tmp_path / "c").exists()
    with pytest.raises(UsageError, match="unknown key 'blank'"):
        adapters.average({str(saved): 1}, tmp_path / "c", blank=1)


def test_a_halved_adapter_loads_as_any_other(saved: Path, tmp_path: Path) -> None:
    adapters.halve(saved, tmp_path / "half")
    whole, half = load_file(saved / adapters.TENSORS), load_file(tmp_path / "half" / adapters.TENSORS)
    assert {tensor.dtype for tensor in half.values()} == {torch.float16} and half.keys() == whole.keys()
    loaded = load(tmp_path / "half").model
    for name, tensor in loaded.adapter_state().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, whole[name].half().float())
    assert adapters.read_config(tmp_path / "half") == adapters.read_config(saved)
    save_file(whole | {next(iter(whole)): next(iter(whole.values())) + 1e5}, saved / adapters.TENSORS)
    with pytest.raises(AdapterError, match="beyond float16"):
        adapters.halve(saved, tmp_path / "half")


def test_how_it_was_trained_outlives_another_save(saved: Path, tmp_path: Path) -> None:
    load(saved, dtype=torch.float32).model.save_adapter(tmp_path / "again")
    assert adapters.read_config(tmp_path / "again")["trained"] == {"step": 7}


def test_push_is_one_commit_of_both_files(make: Callable[..., Ears], monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, str, list[str]]] = []

    class Hub:
        def __init__(self, token: str | None) -> None:
            assert token == "secret"

        def create_repo(self, repo: str, private: bool, exist_ok: bool) -> None:
            assert exist_ok and private
            if repo == "no/right":
                raise PermissionError("403\nForbidden")

        def upload_folder(self, repo_id: str, folder_path: str, commit_message: str) -> Any:
            calls.append((repo_id, commit_message, sorted(p.name for p in Path(folder_path).iterdir())))
            return type("Done", (), {"oid": "a" * 40})

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    model = make().model
    assert model.push_to_hub("me/x", private=True, token="secret") == "me/x@" + "a" * 40
    assert [(repo, files) for repo, _, files in calls] == [("me/x", [adapters.CONFIG, adapters.TENSORS])]
    with pytest.raises(AdapterError, match="no/right: cannot be pushed \\(403 Forbidden\\)"):
        model.push_to_hub("no/right", private=True, token="secret")

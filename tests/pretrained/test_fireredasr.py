"""A FireRedASR-AED in the published format, tiny and random: from its pickle to speech that is heard."""

from __future__ import annotations

import argparse
import os
import struct
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from steermoe.adapter import describe
from steermoe.config import build
from steermoe.encoders import wrap
from steermoe.encoders.fireredasr import FireRedConfig, FireRedEncoder
from steermoe.errors import FetchError
from steermoe.inference.ears import from_model
from steermoe.model import SteerMoEForConditionalGeneration
from steermoe.pretrained import load_encoder, load_feature_extractor, resolve
from steermoe.pretrained.fireredasr import read_cmvn
from steermoe.training.recipe import Recipe
from steermoe.training.run import train

COMMIT = "0123456789abcdef0123456789abcdef01234567"
DIMS = {"idim": 80, "n_layers_enc": 2, "n_head": 2, "d_model": 32, "kernel_size": 7}
OTHERS = {"n_layers_dec": 1, "residual_dropout": 0.1, "odim": 50, "pe_maxlen": 7}  # the last is not obeyed


def stats(bands: int = 80, frames: int = 1000) -> np.ndarray:
    """(2, bands + 1): of spectra with mean 10 + i / 10 and deviation 4."""
    mean = 10 + np.arange(bands) / 10
    return np.array([[*(mean * frames), frames], [*((mean**2 + 16) * frames), 0]])


def binary(matrix: np.ndarray, kind: str = "D") -> bytes:
    head = b"\0B" + f"{kind}M ".encode() + struct.pack("<bibi", 4, matrix.shape[0], 4, matrix.shape[1])
    return head + matrix.astype("<f8" if kind == "D" else "<f4").tobytes()


def tiny() -> FireRedEncoder:
    torch.manual_seed(0)
    return FireRedEncoder(FireRedConfig(**DIMS, pe_maxlen=60)).eval()


def package() -> dict[str, Any]:
    state = {f"encoder.{name}": tensor for name, tensor in tiny().state_dict().items()}
    return {
        "args": argparse.Namespace(**DIMS, **OTHERS),
        "model_state_dict": state | {"decoder.tgt_word_emb.weight": torch.randn(50, 32)},
        "epoch": 3,
    }


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STEERMOE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As it is published, but for the tokenizer, which nothing here reads."""
    made = tmp_path / "FireRedASR-AED-XS"
    made.mkdir()
    torch.save(package(), made / "model.pth.tar")
    (made / "cmvn.ark").write_bytes(binary(stats()))
    (made / "config.yaml").touch()
    return made


def test_it_is_converted_once(folder: Path, cache: Path) -> None:
    plain = resolve(str(folder))
    assert plain.parent == cache / "models" and plain.name.startswith("fireredasr-")
    assert sorted(f.name for f in plain.iterdir()) == ["config.json", "model.safetensors", "preprocessor_config.json"]
    with safe_open(plain / "model.safetensors", framework="pt") as opened:
        assert sorted(opened.keys()) == sorted(tiny().state_dict())  # the encoder's alone
    before = (plain / "model.safetensors").stat().st_mtime_ns
    assert resolve(str(folder)) == plain == resolve(str(plain))
    moved = folder.rename(folder.with_name("elsewhere"))
    assert resolve(str(moved)) == plain and (plain / "model.safetensors").stat().st_mtime_ns == before
    (moved / "cmvn.ark").write_bytes(binary(stats(frames=999)))
    assert resolve(str(moved)) != plain


@torch.no_grad()
def test_it_loads_and_hears(folder: Path, speech: Any) -> None:
    encoder, extractor = load_encoder(str(folder), torch.float32), load_feature_extractor(str(folder))
    assert encoder.config == FireRedConfig(**DIMS, pe_maxlen=60)
    assert encoder.config.model_type == "fireredasr"
    assert not any(p.requires_grad or p.is_meta for p in encoder.parameters()) and not encoder.training
    np.testing.assert_allclose(extractor.mean, 10 + np.arange(80) / 10)
    np.testing.assert_allclose(extractor.inverse_std, 0.25)
    frames = wrap(encoder, extractor)
    features, lengths = frames.features([speech(1.0), speech(0.5)])
    h, out = frames(features, lengths)
    assert out.tolist() == [25, 12] and frames.window == 2.4
    assert torch.equal(h[0], tiny()(features[:1]).last_hidden_state[0])
    assert {t.dtype for t in load_encoder(str(folder), "bfloat16").state_dict().values()} == {torch.bfloat16}


def test_a_pair_with_it_transcribes_and_trains(folder: Path, pair: Any, recipe: Any, speech: Any) -> None:
    model = SteerMoEForConditionalGeneration.from_pair(str(folder), pair.llm, num_experts=2, dtype=torch.float32)
    assert isinstance(from_model(model).transcribe(speech(3.0), sampling_rate=16_000), str)  # two windows
    assert describe(model)["shapes"]["encoder_layers"] == 2
    recipe["model"]["encoder"] = str(folder)
    assert (train(build(Recipe, recipe)) / "adapter_model.safetensors").is_file()


def test_what_an_old_torch_saved_loads_too(folder: Path) -> None:
    plain = resolve(str(folder))
    torch.save(package(), folder / "model.pth.tar", _use_new_zipfile_serialization=False)
    old = resolve(str(folder))
    assert old != plain and (old / "model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()


# --- what is refused


def says(folder: Path) -> str:
    with pytest.raises(FetchError) as caught:
        resolve(str(folder))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 800
    models = Path(os.environ["STEERMOE_CACHE"]) / "models"
    assert not models.exists() or not [path for path in models.iterdir() if path.is_dir()]  # nothing half made
    return str(caught.value)


class Foreign:
    """What runs a program when it is unpickled by pickle itself."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.file}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_foreign_class_is_refused_and_nothing_is_run(folder: Path, zipped: bool) -> None:
    trace = folder / "was-here"
    torch.save({**package(), "more": Foreign(trace)}, folder / "model.pth.tar", _use_new_zipfile_serialization=zipped)
    assert "model.pth.tar: its pickle asks for posix.system; refusing it" in says(folder)
    torch.save({**package(), "args": traceback.FrameSummary("f", 1, "n")}, folder / "model.pth.tar")
    assert "its pickle asks for traceback.FrameSummary; refusing it" in says(folder)
    assert not trace.exists()
    assert argparse.Namespace not in torch.serialization.get_safe_globals()  # let in for the one file only


def test_no_cmvn(folder: Path) -> None:
    (folder / "cmvn.ark").unlink()
    assert "cmvn.ark: absent; FireRedASR needs it to normalise spectra: copy it" in says(folder)


def test_cmvn_of_another_model(folder: Path) -> None:
    (folder / "cmvn.ark").write_bytes(binary(stats(40)))
    assert "cmvn.ark: 40 bands, but model.pth.tar has idim=80" in says(folder)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"args": argparse.Namespace(idim=80, d_model=32)}, "its args lack n_layers_enc, n_head, kernel_size; give that"),
        ({"args": None}, "its args lack idim"),
        ({"args": argparse.Namespace(**(DIMS | {"d_model": 64}))}, "not those of its args {'idim': 80,"),
        ({"args": argparse.Namespace(**(DIMS | {"n_layers_enc": 3}))}, "Missing key(s) in state_dict: \"layer_stack.2"),
        ({"args": argparse.Namespace(**(DIMS | {"n_layers_enc": 1}))}, "Unexpected key(s) in state_dict"),
        ({"args": argparse.Namespace(**(DIMS | {"n_head": 0}))}, "not those of its args"),
        ({"model_state_dict": {}}, "lacks the tensor encoder.positional_encoding.pe"),
        ({"model_state_dict": {"encoder.positional_encoding.pe": torch.ones(3)}}, "lacks the tensor encoder.pos"),
        ({"model_state_dict": []}, "its model_state_dict holds no tensors by name"),
        ({"model_state_dict": {"encoder.positional_encoding.pe": 3}}, "its model_state_dict holds no tensors by name"),
    ],
)  # fmt: skip
def test_a_checkpoint_of_another_kind(folder: Path, change: dict[str, Any], message: str) -> None:
    torch.save(package() | change, folder / "model.pth.tar")
    assert message in says(folder)


def test_no_checkpoint_at_all(folder: Path) -> None:
    file = folder / "model.pth.tar"
    whole = file.read_bytes()
    for broken in (b"", b"version https://git-lfs", whole[: len(whole) // 2], whole[:-1]):
        file.write_bytes(broken)
        assert "model.pth.tar: " in says(folder)
    torch.save(package()["model_state_dict"], file)
    assert "model.pth.tar: lacks 'args'" in says(folder)


# --- Kaldi's statistics


def test_cmvn_binary_and_text(tmp_path: Path) -> None:
    file = tmp_path / "cmvn.ark"
    rows = ["  ".join(map(repr, row)) for row in stats(3).tolist()]
    text = f" [\n  {rows[0]} \n  {rows[1]} ]\n".encode()
    for raw in (binary(stats(3)), binary(stats(3), "F"), text, b"global " + binary(stats(3)), b"global " + text):
        file.write_bytes(raw)
        mean, inverse_std = read_cmvn(file)
        assert mean == pytest.approx([10, 10.1, 10.2]) and inverse_std == pytest.approx([0.25] * 3, rel=1e-4)


def test_cmvn_of_a_band_that_never_changed(tmp_path: Path) -> None:
    (tmp_path / "cmvn.ark").write_bytes(binary(np.array([[3.0, 1.0], [9.0, 0.0]])))
    assert read_cmvn(tmp_path / "cmvn.ark") == ([3.0], [pytest.approx(1e10)])


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"\0B", b"\0BCM something", b"<html>", b"[ 1 2\n 3 ]", b"[ 1 2 3 ]", b"[ 1 x\n 2 0 ]", b"\xff\xfe",
        binary(stats(3))[:-1], binary(stats(3, frames=0)), binary(np.ones((3, 4))), binary(np.full((2, 4), np.nan)),
    ],
)  # fmt: skip
def test_what_is_no_cmvn(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "cmvn.ark").write_bytes(raw)
    with pytest.raises(FetchError, match=r"cmvn\.ark: no Kaldi matrix of CMVN statistics \(") as caught:
        read_cmvn(tmp_path / "cmvn.ark")
    assert "\n" not in str(caught.value)


def test_cmvn_as_kaldiio_writes_it(tmp_path: Path) -> None:
    kaldiio = pytest.importorskip("kaldiio")
    kaldiio.save_mat(str(tmp_path / "plain"), stats())
    kaldiio.save_ark(str(tmp_path / "keyed"), {"global": stats()})
    kaldiio.save_ark(str(tmp_path / "text"), {"global": stats()}, text=True)
    for name in ("plain", "keyed", "text"):
        np.testing.assert_allclose(read_cmvn(tmp_path / name)[0], stats()[0, :-1] / 1000, rtol=1e-6)


# --- the hub, played by a function


@pytest.mark.parametrize("cached", [True, False])
def test_a_repository_of_the_hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached: bool) -> None:
    asked: list[Any] = []
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()

    def snapshot_download(repo: str, allow_patterns: list[str], local_files_only: bool, **_: Any) -> str:
        from huggingface_hub.utils import filter_repo_objects

        if cached or not local_files_only:
            for name in filter_repo_objects([f.name for f in folder.iterdir()], allow_patterns=allow_patterns):
                (snapshot / name).write_bytes((folder / name).read_bytes())
        asked.append((local_files_only, sorted(f.name for f in snapshot.iterdir())))
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    found = resolve(f"FireRedTeam/FireRedASR-AED-L@{COMMIT}")
    assert found == resolve(str(folder))
    both = [(cached, ["cmvn.ark"]), (cached, ["cmvn.ark", "model.pth.tar"])]
    assert asked == (both if cached else [(True, []), *both])


def test_the_hubs_other_pickles_are_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "cmvn.ark").touch()
    (tmp_path / "model.safetensors").touch()

    def snapshot_download(repo: str, allow_patterns: list[str], **_: Any) -> str:
        asked.append(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert resolve(f"org/name@{COMMIT}") == tmp_path
    assert len(asked) == 1 and not any("pth" in pattern for pattern in asked[0])

import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from steermoe.errors import FetchError, UsageError
from steermoe.pretrained import weights_digest
from steermoe.pretrained.weights import CACHE_NAME, weight_files

A = np.arange(6, dtype=np.float16).reshape(2, 3)
B = np.ones(4, dtype=np.float32)


def folder_of(path: Path, **tensors: np.ndarray) -> Path:
    path.mkdir()
    save_file(tensors, path / "model.safetensors")
    return path


def sharded(path: Path, **tensors: np.ndarray) -> Path:
    path.mkdir()
    for name, tensor in tensors.items():
        save_file({name: tensor}, path / f"{name}.safetensors", metadata={"format": "pt"})
    index = {"weight_map": {name: f"{name}.safetensors" for name in tensors}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


def test_order_shards_and_metadata_do_not_count(tmp_path: Path) -> None:
    digest = weights_digest(folder_of(tmp_path / "one", a=A, b=B))
    assert digest == weights_digest(folder_of(tmp_path / "two", b=B, a=A))
    assert digest == weights_digest(sharded(tmp_path / "three", b=B, a=A))


@pytest.mark.parametrize(
    "tensors",
    [
        {"a": A + np.float16(1), "b": B},
        {"a": A.reshape(3, 2), "b": B},
        {"a": A.view(np.int16), "b": B},
        {"c": A, "b": B},
        {"a": A},
    ],
    ids=["value", "shape", "dtype", "name", "absent"],
)
def test_every_part_of_a_tensor_counts(tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    one, other = folder_of(tmp_path / "one", a=A, b=B), folder_of(tmp_path / "other", **tensors)
    assert weights_digest(one) != weights_digest(other)


def test_remembered_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(tmp_path / "m", a=A)
    first = weights_digest(folder)
    with monkeypatch.context() as patch:
        patch.setattr("steermoe.pretrained.weights._digest", lambda files: pytest.fail("computed again"))
        assert weights_digest(folder) == first
    file = folder / "model.safetensors"
    save_file({"a": A + np.float16(1)}, file)
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    assert weights_digest(folder) != first
    (folder / CACHE_NAME).write_text("{broken")
    assert weights_digest(folder) != first


def test_a_read_only_folder_is_remembered_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEERMOE_CACHE", str(tmp_path / "cache"))
    folder = folder_of(tmp_path / "m", a=A)
    (folder / CACHE_NAME).mkdir()  # cannot be written, also not by root, for whom no folder is read-only
    first = weights_digest(folder)
    monkeypatch.setattr("steermoe.pretrained.weights._digest", lambda files: pytest.fail("computed again"))
    assert weights_digest(folder) == first
    assert list((tmp_path / "cache" / "digests").iterdir())


def test_no_place_to_remember_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("STEERMOE_CACHE", str(tmp_path / "file"))
    folder = folder_of(tmp_path / "m", a=A)
    (folder / CACHE_NAME).mkdir()
    assert weights_digest(folder) == weights_digest(folder)


def test_pickles_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(UsageError, match=r"no model\.safetensors"):
        weight_files(tmp_path)


def test_an_absent_shard_is_named(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m", a=A, b=B)
    (folder / "b.safetensors").unlink()
    with pytest.raises(FetchError, match=r"b\.safetensors: named by the index but absent"):
        weights_digest(folder)


@pytest.mark.parametrize("keep", [0, 4, 20, -1])
def test_a_truncated_file_is_named(tmp_path: Path, keep: int) -> None:
    file = folder_of(tmp_path / "m", a=A) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(FetchError, match=r"model\.safetensors: broken or no safetensors file"):
        weights_digest(file.parent)

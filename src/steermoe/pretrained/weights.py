"""Safetensors files without torch: which files hold a folder's weights, and one digest over their tensors."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import FetchError, UsageError
from ..packages import cache_root

CACHE_NAME = ".weights_digest.json"


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder: ``model.safetensors``, or the shards that its index names.

    Raises UsageError where there are none (pickled weights are never read), FetchError where a shard is absent.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        raise UsageError(f"{folder}: no model.safetensors here (pickled weights are not read: save it as safetensors)")
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError) as error:
        raise FetchError(f"{index}: not a safetensors index ({error}); fetch the model again") from None
    for name in names:
        if not (folder / name).is_file():
            raise FetchError(f"{folder / name}: named by the index but absent; fetch the model again")
    return [folder / name for name in names]


def tensor_headers(file: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """``({name: {"dtype", "shape", "data_offsets"}}, offset of the data)`` of a safetensors file."""
    size = file.stat().st_size
    try:
        with open(file, "rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if 8 + length > size:
                raise ValueError(f"its header should have {length} bytes, the file has {size}")
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if 8 + length + end != size:
            raise ValueError(f"{8 + length + end} bytes expected, it has {size}")
    except (ValueError, TypeError, KeyError, AttributeError, struct.error) as error:
        raise FetchError(f"{file}: broken or no safetensors file ({error}); fetch the model again") from None
    return header, 8 + length


def weights_digest(folder: Path) -> str:
    """SHA-256 over the tensors of a model folder: sorted by name, each as name, dtype, shape and bytes.

    Independent of the order and the number of files and of their metadata, unlike a digest of the file.
    Remembered beside the weights for as long as sizes and times of change stay; in the cache folder where
    the model's own is read-only.
    """
    return remembered(weight_files(folder), [folder / CACHE_NAME, note_of(folder)], _digest)


def note_of(folder: Path) -> Path:
    """Where the cache keeps a digest over files of ``folder``."""
    return cache_root() / "digests" / f"{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]}.json"


def remembered(files: list[Path], notes: list[Path], digest: Callable[[list[Path]], str]) -> str:
    """``digest(files)``, 64 hex digits, noted in the first of ``notes`` that can be written.

    A note counts for as long as the files' sizes and times of change stay.
    """
    stats = {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in files}
    for note in notes:
        with suppress(OSError, ValueError, KeyError, TypeError):
            known = json.loads(note.read_text())
            if known["files"] == stats and len(known["digest"]) == 64:
                return str(known["digest"])
    value = digest(files)
    for note in notes:
        with suppress(OSError):  # a read-only place: the next one, else it is computed anew each time
            note.parent.mkdir(parents=True, exist_ok=True)
            scratch = note.with_name(f"{note.name}.{os.getpid()}")
            scratch.write_text(json.dumps({"files": stats, "digest": value}))
            os.replace(scratch, note)
            break
    return value


def _digest(files: list[Path]) -> str:
    entries = []
    for file in files:
        header, start = tensor_headers(file)
        entries += [(name, entry, file, start) for name, entry in header.items()]
    maps: dict[Path, memoryview] = {}
    sha = hashlib.sha256()
    for name, entry, file, start in sorted(entries, key=lambda item: item[0]):
        if file not in maps:
            with open(file, "rb") as stream:
                maps[file] = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
        begin, end = entry["data_offsets"]
        # JSON keeps the fields apart, so that no two different headers hash alike.
        sha.update(json.dumps([name, entry["dtype"], entry["shape"]]).encode())
        sha.update(maps[file][start + begin : start + end])
    return sha.hexdigest()

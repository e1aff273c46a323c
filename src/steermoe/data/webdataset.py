"""``webdataset:SHARDS``: tar files of samples, ``KEY.flac`` beside ``KEY.txt`` or ``KEY.json``; a folder, a file, or shards-{000..099}.tar.

Nothing is unpacked or copied: the shards are indexed once (kept in the cache), and a clip is read where it lies, so that
batches may be drawn from all of them in any order. ``?text=transcript`` says which key of the JSON is what; see pack.COLUMNS.
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..audio import SUFFIXES, duration
from ..errors import AudioError, DataError
from ..packages import build_once, cache_root
from .manifest import Example, Slice, read_manifest, write_manifest
from .pack import COLUMNS


def load(split: str, root: Path | None = None, **columns: str) -> list[Example]:
    """``split`` names the shards; ``columns`` map ours to the keys of their JSON. Raises DataError."""
    if unknown := [name for name in columns if name not in COLUMNS[1:]]:
        raise DataError(f"webdataset:{split}: ?{unknown[0]}=: is none of {', '.join(COLUMNS[1:])}")
    base = Path(root or ".").expanduser()
    files = sorted(file for name in _braces(split) for file in _shards(base / Path(name).expanduser()))
    if missing := [file for file in files if not file.is_file()]:
        raise DataError(f"webdataset:{split}: no such shard: {missing[0]}")
    if not files:
        raise DataError(f"webdataset:{split}: no *.tar there")
    key = [[str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns] for f in files] + [sorted(columns.items())]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]

    def build(scratch: Path) -> None:
        write_manifest(scratch / "manifest.jsonl", (row for file in files for row in _rows(file, columns)))

    return read_manifest(build_once(cache_root() / "data" / "webdataset" / digest, build) / "manifest.jsonl")


def _braces(pattern: str) -> list[str]:
    """``a-{000..002}.tar`` -> its three names."""
    found = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if found is None:
        return [pattern]
    first, last = found[1], found[2]
    numbers = (str(n).zfill(len(first)) for n in range(int(first), int(last) + 1))
    return [name for n in numbers for name in _braces(pattern[: found.start()] + n + pattern[found.end() :])]


def _shards(path: Path) -> list[Path]:
    return sorted(path.glob("*.tar")) if path.is_dir() else [path]


def _rows(shard: Path, columns: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Rows of a manifest for the samples of one shard; a sample's members follow each other and share a name up to its first dot."""
    sample: dict[str, Any] = {}
    last = None
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                folder, _, name = member.name.rpartition("/")
                key, _, ending = name.partition(".")
                key, ending = f"{folder}/{key}" if folder else key, f".{ending.lower()}"
                if key != last and sample:
                    yield _row(shard, str(last), sample, columns)
                    sample = {}
                last = key
                if ending in SUFFIXES:
                    sample["audio"] = Slice(shard, member.offset_data, member.size)
                elif ending in (".txt", ".json"):
                    sample[ending] = tar.extractfile(member).read()  # type: ignore[union-attr]
                else:
                    sample.setdefault("other", name)
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{shard}: cannot be read as a tar without compression ({error})") from None
    if sample:
        yield _row(shard, str(last), sample, columns)


def _row(shard: Path, key: str, sample: dict[str, Any], columns: dict[str, str]) -> dict[str, Any]:
    where = f"{shard}: {key}"
    if "audio" not in sample:
        raise DataError(f"{where}: no audio (*{', *'.join(SUFFIXES)}) among its members")
    try:
        told = json.loads(sample.get(".json", b"{}"))
        text = sample[".txt"].decode("utf-8").strip() if ".txt" in sample else told.get(columns.get("text", "text"))
    except (ValueError, AttributeError) as error:
        raise DataError(f"{where}: its .txt or .json is not UTF-8 text or an object ({error})") from None
    if not isinstance(text, str):
        there = (
            f"its .json has {', '.join(told) or 'nothing'}: say which is the text, ?text=NAME" if told else "add a .txt"
        )
        raise DataError(f"{where}: no text; {there}")
    out = {name: told[columns.get(name, name)] for name in COLUMNS[2:] if told.get(columns.get(name, name)) is not None}
    audio: Slice = sample["audio"]
    out |= {"audio": str(shard.resolve()), "offset": audio.offset, "size": audio.size, "text": text}
    out |= {name: str(out[name]) for name in ("speaker", "language", "prompt") if name in out} | {
        "id": str(out.get("id", key))
    }
    if not isinstance(out.get("duration", ""), int | float):
        try:
            out["duration"] = duration(audio)
        except AudioError:
            out.pop("duration", None)  # it is skipped, counted and listed when it is heard
    return out

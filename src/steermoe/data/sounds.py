"""``sounds``: questions about sounds that are no words, composed from recordings of Debian packages.

Which file is what stands in ``sounds.tsv``: 32 classes, chosen by the files' names, durations and levels, and checked by their
spectrograms; nobody listened to them. The split is by package: a class's ``test`` recordings come from packages that ``train`` and ``valid`` take
nothing of that class from (``valid``: other clips of train's recordings). Clip i is a pure function of its split and i.
Four kinds of question (``prompt``), each with one answer (``text``): what is heard, is there a ..., how many, which came first.

Games' effects, mixed by machine: few recordings a class, no scenes. Not a benchmark of sound recognition at large.
The packages are free software (GPL-2+, CC-BY-SA, CC0 and others, see each package's copyright file); audio is made in the
cache and never becomes part of this project.
"""

from __future__ import annotations

import random
import struct
import zlib
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ..audio import RATE, decode
from ..errors import DataError
from ..packages import Package, build_once, cache_root, unpacked
from .manifest import Example, read_manifest, write_manifest

TABLE = Path(__file__).with_name("sounds.tsv")
SIZES = {"train": 1600, "valid": 160, "test": 400}
KINDS = ("what", "is there", "how many", "which first")
NUMBERS = ("one", "two", "three")
LONGEST, GAP, LEVEL = 2.5, 0.35, 0.06  # seconds of one sound, seconds between two, root mean square of each
RECIPE = "v2"  # a new one when clips change
PACKAGES = {
    "tuxpaint": (Package("deb", "tuxpaint-stamps-default", "2022.06.04-1", "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34"), "usr/share/tuxpaint/stamps"),
    "gcompris": (Package("deb", "gcompris-qt-data", "3.1-2", "e9cf06ab2105529068df73085784e835d2ff03f870d2a8091f09125d40abac9f"), "usr/share/gcompris-qt/rcc"),
    "widelands": (Package("deb", "widelands-data", "2:1.1-3", "0e23d645b15bcfb9e3bcae0de9bc1bdfa75a6ecb36b2e449759d6eb0b4bbd8fb"), "usr/share/games/widelands/data/sound"),
    "lincity": (Package("deb", "lincity-ng-data", "2.9~git20150314-5", "8f5e85bd42879abdc7099b035d7a3d7468eceb6b93b52a12270c28f3f3c792f9"), "usr/share/games/lincity-ng/sounds"),
    "flare": (Package("deb", "flare-game", "1.14-1", "4ab6a8298276013d35a0806257e130d992761af1b749041433b409c3dafec508"), "usr/share/games/flare/mods"),
    "sonic-pi": (Package("deb", "sonic-pi-samples", "3.2.2~repack-8", "25f2312d2fae005e6ad0f4726b8ed3084e776006a5a132083506e960224ac79d"), "usr/share/sonic-pi/samples"),
}  # fmt: skip


@dataclass(frozen=True)
class Sound:
    """One recording of the table."""

    label: str
    side: str
    package: str
    file: str


@cache
def sounds() -> tuple[Sound, ...]:
    """All recordings of ``sounds.tsv``."""
    lines = [line.split("\t") for line in TABLE.read_text(encoding="utf-8").splitlines() if line[0] != "#"]
    return tuple(
        Sound(label, side, package, file) for label, side, package, files in lines for file in files.split(",")
    )


def load(split: str = "train", root: Path | None = None) -> list[Example]:
    """The questions of ``train``, ``valid`` or ``test``; ``root`` is not used. Fetches and composes on first use."""
    if split not in SIZES:
        raise DataError(f"sounds has no split {split!r}; it has {', '.join(SIZES)}")
    target = cache_root() / "data" / "sounds" / RECIPE / split
    return read_manifest(build_once(target, lambda scratch: _build(scratch, split)) / "manifest.jsonl")


def plan(split: str, index: int) -> dict[str, Any]:
    """What clip ``index`` of a split holds: ``labels`` in order, ``seed`` of its sounds, question, answer, kind."""
    rng = random.Random(f"{RECIPE}/{split}/{index}")
    kind, labels = KINDS[index % len(KINDS)], sorted({sound.label for sound in sounds()})
    count = {"what": 1, "is there": rng.choice([1, 2]), "how many": rng.choice([1, 2, 3]), "which first": 2}[kind]
    told = rng.sample(labels, count)
    if kind == "what":
        question, answer = "What is heard?", told[0]
    elif kind == "is there":
        there = rng.random() < 0.5
        asked = rng.choice(told) if there else rng.choice([label for label in labels if label not in told])
        question, answer = f"Is there the sound of: {asked}? Answer yes or no.", "yes" if there else "no"
    elif kind == "how many":
        question, answer = "How many different sounds are heard?", NUMBERS[count - 1]
    else:
        a, b = rng.sample(told, 2)
        question, answer = f"Which came first: {a} or {b}?", told[0]
    return {"labels": told, "seed": rng.getrandbits(32), "prompt": question, "text": answer, "kind": kind}


def compose(recordings: dict[str, list[np.ndarray]], labels: list[str], seed: int) -> np.ndarray:
    """Sounds one after another, each at most LONGEST, all equally loud, over a little noise: (N,) at 16 kHz."""
    rng = np.random.default_rng(seed)
    pieces = []
    for label in labels:
        choice = recordings[label]
        sound = choice[rng.integers(len(choice))]
        most = int(LONGEST * RATE)
        start = int(rng.integers(0, max(1, min(len(sound) - most, len(sound) // 2) + 1)))
        sound = sound[start : start + most].astype(np.float64)
        edge = min(160, len(sound))  # 10 ms, so that no cut clicks
        sound[-edge:] *= np.linspace(1, 0, edge)
        pieces += [sound * LEVEL / max(1e-9, float(np.sqrt(np.mean(sound**2)))), np.zeros(int(GAP * RATE))]
    whole = np.concatenate([np.zeros(int(rng.uniform(0.1, 0.5) * RATE)), *pieces])
    whole += rng.standard_normal(len(whole)) * 10 ** (-rng.uniform(55, 70) / 20)
    return (whole / max(1.0, float(np.abs(whole).max()) / 0.99)).astype(np.float32)


def trimmed(samples: np.ndarray) -> np.ndarray:
    """Without the silence, 40 dB below the loudest 20 ms, at both ends."""
    frame = RATE // 50
    padded = np.pad(samples, (0, -len(samples) % frame)).reshape(-1, frame)
    power = np.mean(padded**2, axis=1)
    loud = np.flatnonzero(power > power.max() * 1e-4)
    return samples[loud[0] * frame : (loud[-1] + 1) * frame] if len(loud) else samples


def recordings(side: str) -> dict[str, list[np.ndarray]]:
    """Label -> its recordings of ``train`` or ``test``, 16 kHz, trimmed."""
    found: dict[str, list[np.ndarray]] = defaultdict(list)
    for sound in sounds():
        if sound.side == side:
            found[sound.label].append(trimmed(decode(_content(sound.package, sound.file))))
    return dict(found)


def _build(scratch: Path, split: str) -> None:
    import soundfile

    heard, rows = recordings("test" if split == "test" else "train"), []
    for index in range(SIZES[split]):
        told = plan(split, index)
        samples = compose(heard, told["labels"], told.pop("seed"))
        name = f"{split}-{index:04}"
        soundfile.write(scratch / f"{name}.flac", samples, RATE, subtype="PCM_16")
        rows.append({"id": name, "audio": f"{name}.flac", "duration": len(samples) / RATE, **told})
    write_manifest(scratch / "manifest.jsonl", rows)


def _content(package: str, file: str) -> Path | bytes:
    """A recording: a file of the unpacked package or, of gcompris, one inside a bundle."""
    archive, folder = PACKAGES[package]
    root = unpacked(archive) / folder
    if package != "gcompris":
        return root / file
    bundle, _, name = file.partition("/")
    return _bundle(root / f"{bundle}.rcc")[name]


@cache
def _bundle(path: Path) -> dict[str, bytes]:
    """Qt's resource bundle (``.rcc``, big-endian) -> file name, without its folders: contents."""
    data, files = path.read_bytes(), {}
    if data[:4] != b"qres":
        raise DataError(f"{path}: begins with {data[:4]!r}, not with b'qres': not a resource bundle")
    version, tree, contents, names = struct.unpack_from(">4I", data, 4)
    size = 22 if version >= 2 else 14  # of a node; newer ones end with the file's time

    def walk(node: int) -> None:
        name_at, flags = struct.unpack_from(">IH", data, tree + node * size)
        if flags & 2:  # a folder
            count, first = struct.unpack_from(">II", data, tree + node * size + 6)
            for child in range(first, first + count):
                walk(child)
            return
        (at,) = struct.unpack_from(">I", data, tree + node * size + 10)
        (length,) = struct.unpack_from(">I", data, contents + at)
        (letters,) = struct.unpack_from(">H", data, names + name_at)
        name = data[names + name_at + 6 : names + name_at + 6 + 2 * letters].decode("utf-16-be")
        content = data[contents + at + 4 : contents + at + 4 + length]
        files[name] = zlib.decompress(content[4:]) if flags & 1 else content  # its length comes before zlib's data

    walk(0)
    return files

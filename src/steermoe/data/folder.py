"""``folder:DIR``: your own recordings, each with its text beside it: ``a.wav`` and ``a.txt``, in DIR or in folders within.

``folder:DIR?part=train`` and ``part=valid`` are nineteen of twenty recordings and the twentieth, by the digests of their names; of
few recordings the one with the least digest is the twentieth.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from ..audio import SUFFIXES
from ..errors import DataError
from .manifest import Example
from .shipped import find

VALID_SHARE = 0.05


def load(split: str, root: Path | None = None, part: str = "all") -> list[Example]:
    """``split`` is the folder. Raises DataError for a recording without text, or where there is none."""
    folder = find(f"folder:{split}", root or Path(), str(Path(split).expanduser()))
    if part not in ("all", "train", "valid"):
        raise DataError(f"folder:{split}: part={part!r} is none of all, train, valid")
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file() and p.name[0] != ".")
    if not found:
        raise DataError(f"folder:{split}: no audio in {folder} (looked for *{', *'.join(SUFFIXES)})")
    examples = []
    ids = {audio: str(audio.relative_to(folder).with_suffix("")) for audio in found}
    digests = {audio: int(hashlib.sha256(id.encode()).hexdigest()[:8], 16) for audio, id in ids.items()}
    most = max(VALID_SHARE * 2**32, min(digests.values()))
    for audio in found:
        text = audio.with_suffix(".txt")
        if not text.is_file():
            raise DataError(f"folder:{split}: {audio} has no text: write what is said into {text.name} beside it")
        try:
            said = " ".join(text.read_text(encoding="utf-8-sig").split())
        except UnicodeDecodeError:
            raise DataError(f"{text}: not UTF-8") from None
        if part == "all" or (digests[audio] <= most) == (part == "valid"):
            examples.append(Example(ids[audio], audio, said))
    if not examples:
        raise DataError(f"folder:{split}: {len(found)} recordings are too few for part={part}; give another folder")
    return examples

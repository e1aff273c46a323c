"""What the readers of published datasets share: where the user keeps one, its splits, its lists of lines."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import DataError


def choose(source: str, split: str, splits: Sequence[str]) -> str:
    """``split``, if the source has it. Raises DataError that lists those there are."""
    if split not in splits:
        raise DataError(f"{source} has no split {split!r}; it has {', '.join(splits)}")
    return split


def find(source: str, root: Path | None, *places: str) -> Path:
    """The first of ``places`` (relative to ``root``) that exists. Raises DataError that says where it was looked for."""
    if root is None:
        raise DataError(
            f"{source} is not fetched: say where it lies, --root DIR, or in a recipe {{source: {source}, root: DIR}}"
        )
    root = Path(root).expanduser()
    for place in places:
        if (root / place).exists():
            return root / place
    where = f" in {root}" if str(root) != "." else ""
    raise DataError(f"{source}: there is no {' and no '.join(places)}{where}; check the folder, or unpack it there")


def pairs(path: Path) -> Iterator[tuple[int, str, str]]:
    """(line number, key, rest) of the lines of a Kaldi-like list, key and rest apart by blanks or a tab.

    Raises DataError that names file and line for one without two parts, or that is not UTF-8.
    """
    number = 0
    try:
        with open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                key, *rest = line.split(maxsplit=1)
                if not rest:
                    raise DataError(
                        f"{path}:{number}: {line.strip()!r} is one word; an id and what belongs to it is needed"
                    )
                yield number, key, rest[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}:{number + 1}: cannot be read as UTF-8 ({error.__class__.__name__})") from None


def joined(text: str) -> str:
    """Chinese as it is written: without the blanks that word segmentation put between characters; Latin words keep theirs."""
    return re.sub(r"(?<=[^\x00-\x7f])\s+|\s+(?=[^\x00-\x7f])", "", text.strip())


def there(audio: Path, where: str) -> Path:
    """``audio``, if it is a file. Raises DataError that begins with ``where`` it is named."""
    if not audio.is_file():
        raise DataError(f"{where}: no such file: {audio}")
    return audio

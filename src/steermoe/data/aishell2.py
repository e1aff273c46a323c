"""``aishell2``: read Mandarin, 1,000 hours (Du et al., 2018; on application from AISHELL), as its archives unpack.

Each set is a folder with ``wav.scp`` (id, path), ``trans.txt`` (id, text) and ``wav/``: ``iOS/data`` (or ``iOS/train``) to
train on; ``dev`` and ``test`` once a device, of ``iOS``, ``Android`` and ``Mic``: ``test`` is the iPhone's, ``test-mic`` the microphone's.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import DataError
from .manifest import Example
from .shipped import choose, find, joined, pairs, there

DEVICES = {"ios": ("iOS", "IOS"), "android": ("Android",), "mic": ("Mic",)}
SPLITS = ("train", "dev", "test", *(f"{part}-{device}" for part in ("dev", "test") for device in DEVICES))


def load(split: str, root: Path | None = None) -> list[Example]:
    """The utterances of one set; ``root`` is the folder AISHELL-2, AISHELL-DEV-TEST-SET, or the one above either."""
    part, _, device = choose("aishell2", split, SPLITS).partition("-")
    names = [
        f"{d}/{name}" for d in DEVICES[device or "ios"] for name in (("data", "train") if part == "train" else (part,))
    ]
    above = ("", "AISHELL-2/", "AISHELL-DEV-TEST-SET/", "AISHELL-2/AISHELL-DEV-TEST-SET/")
    folder = find(f"aishell2:{split}", root, *(f"{a}{name}/trans.txt" for a in above for name in names)).parent
    texts = {name: joined(text) for _, name, text in pairs(folder / "trans.txt")}
    examples = []
    for number, name, path in pairs(folder / "wav.scp"):
        where = f"{folder / 'wav.scp'}:{number}"
        if name not in texts:
            raise DataError(f"{where}: {name} has no text in trans.txt")
        audio = there(folder / path, where)
        examples.append(Example(name, audio, texts[name], speaker=audio.parent.name, language="zh"))
    return examples

"""``asterisk``: telephone prompts in English, one woman, 25 minutes: a domain that training never saw.

From Debian's packages of the Asterisk core sounds (Allison Smith; CC-BY-SA-3.0), 16 kHz G.722. Decoded once into
FLAC files of the cache. Prompts that are sounds or silence (their text says so in brackets) are left out.
"""

from __future__ import annotations

import gzip
import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..audio import RATE
from ..errors import DataError
from ..packages import Package, build_once, cache_root, unpacked
from .manifest import Example, read_manifest, write_manifest

SOUNDS = Package(
    "deb",
    "asterisk-core-sounds-en-g722",
    "1.6.1-1",
    "38c5261820b406dcb0ecb37675720da2b0864850690690352ca52707eb623806",
)
TEXTS = Package(
    "deb", "asterisk-core-sounds-en", "1.6.1-1", "973e797d28e37fa6ca3c0a9d6fa717e77cf1268ae916bf09fd3503113cdffa50"
)


def load(split: str = "test", root: Path | None = None) -> list[Example]:
    """The examples of ``test``, the only split; ``root`` is not used. Fetches the packages on first use."""
    if split not in ("", "test"):
        raise DataError(f"asterisk has no split {split!r}; it has test")
    prompts = read_manifest(build_once(cache_root() / "data" / "asterisk" / SOUNDS.version, _build) / "manifest.jsonl")
    # as she says them
    return [replace(e, text=e.text.replace("#", "pound").replace("*", "star")) for e in prompts]


def _build(scratch: Path) -> None:
    import soundfile

    try:
        from G722 import G722  # type: ignore[import-not-found]
    except ImportError:
        raise DataError("asterisk: its audio is G.722, which the package G722 decodes; pip install G722") from None
    sounds = unpacked(SOUNDS) / "usr/share/asterisk/sounds/en_US_f_Allison"
    book = unpacked(TEXTS) / "usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"
    rows = []
    for name, text in read_texts(gzip.decompress(book.read_bytes()).decode("utf-8")).items():
        source = sounds / f"{name}.g722"
        if not source.is_file():
            continue  # a few texts have no recording
        samples = np.asarray(G722(RATE, 64_000).decode(source.read_bytes()), np.int16)
        target = scratch / f"{name}.flac"
        target.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(target, samples, RATE, subtype="PCM_16")
        row = {"audio": f"{name}.flac", "text": text, "duration": len(samples) / RATE}
        rows.append(row | {"speaker": "Allison", "language": "en", "id": name})
    write_manifest(scratch / "manifest.jsonl", rows)


def read_texts(book: str) -> dict[str, str]:
    """``name: text`` lines -> {name: text}, without comments (;), remarks in () and texts of sounds, which hold []."""
    texts = {}
    for line in book.splitlines():
        name, colon, text = line.partition(":")
        text = " ".join(re.sub(r"\([^)]*\)", " ", text).split())
        if colon and text and not name.startswith(";") and "[" not in text:
            texts[name.strip()] = text
    return texts

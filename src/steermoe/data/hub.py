"""``hub:ORG/NAME@COMMIT[:SPLIT]``: a dataset of the Hugging Face hub, streamed once and kept as its encoded clips.

``?config=en&text=sentence&limit=10000`` names a configuration, says which column is what (see pack.COLUMNS), and stops after so
many rows. The commit, 40 hex digits, pins what is read; its audio is decoded here, never by torchcodec.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import DataError
from .manifest import Example
from .pack import packed

NAME = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)@(?P<commit>[0-9a-f]{40})(?::(?P<split>[\w.+-]+))?")


def load(
    split: str, root: Path | None = None, config: str | None = None, limit: str = "", **columns: str
) -> list[Example]:
    """``split`` is ORG/NAME@COMMIT[:SPLIT], of which SPLIT is ``train`` when left out. Raises DataError."""
    found = NAME.fullmatch(split)
    if found is None:
        raise DataError(
            f"hub:{split}: write hub:ORG/NAME@COMMIT:SPLIT, the commit as 40 hex digits: it pins what is read"
        )
    if limit and not limit.isdigit():
        raise DataError(f"hub:{split}: limit={limit!r} is no number of rows")
    try:
        import datasets
    except ImportError:
        raise DataError("hub: needs the package datasets; pip install 'steermoe[data]'") from None
    name, commit, part = found["name"], found["commit"], found["split"] or "train"

    def rows() -> Iterator[dict[str, Any]]:
        try:
            stream: Any = datasets.load_dataset(name, config, split=part, revision=commit, streaming=True)
            for column, feature in (stream.features or {}).items():
                if isinstance(feature, datasets.Audio):
                    stream = stream.cast_column(column, datasets.Audio(decode=False))
            yield from islice(stream, int(limit) if limit else None)
        except DataError:
            raise
        except Exception as error:  # of many kinds: no network, no such name, split or configuration
            raise DataError(f"hub:{split}: cannot be read ({' '.join(str(error).split())[:200]})") from None

    return packed("hub", [name, commit, part, config, limit], rows, columns, f"hub:{split}")

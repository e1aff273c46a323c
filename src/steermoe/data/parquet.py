"""``parquet:FILE`` (or a folder of them, or a pattern): rows with their audio inside, as the hub keeps datasets.

``parquet:data/train-*.parquet?text=sentence&speaker=client_id`` says which column is what; see pack.COLUMNS.
"""

from __future__ import annotations

from collections.abc import Iterator
from glob import glob
from pathlib import Path
from typing import Any

from ..errors import DataError
from .manifest import Example
from .pack import packed


def load(split: str, root: Path | None = None, **columns: str) -> list[Example]:
    """``split`` is the file, folder or pattern; ``columns`` map ours to theirs. Raises DataError."""
    try:
        import pyarrow.parquet as parquet
        from pyarrow import ArrowException
    except ImportError:
        raise DataError("parquet: needs the package pyarrow; pip install 'steermoe[data]'") from None
    base = Path(root or ".").expanduser()
    given = base / Path(split).expanduser()
    found = given.rglob("*.parquet") if given.is_dir() else map(Path, glob(str(given))) if "*" in split else [given]
    files = sorted(found)
    if not files or not all(file.is_file() for file in files):
        raise DataError(f"parquet:{split}: no such file, and no folder of *.parquet")

    def rows() -> Iterator[dict[str, Any]]:
        for file in files:
            try:
                for batch in parquet.ParquetFile(file).iter_batches(batch_size=16):
                    yield from batch.to_pylist()
            except (ArrowException, OSError) as error:
                raise DataError(f"{file}: cannot be read as Parquet ({str(error).splitlines()[0]})") from None

    key = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return packed("parquet", key, rows, columns, f"parquet:{split}", files[0].parent)

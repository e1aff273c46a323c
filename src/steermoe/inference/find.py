"""Adapters by name: a folder, a training run, one that ships, or a hub id with its commit."""

from __future__ import annotations

import re
from pathlib import Path

from .. import adapter as adapters
from ..errors import AdapterError
from ..pretrained.resolve import REPO

SHIPPED = Path(__file__).parent.parent / "adapters"
DEFAULT = "tiny"


def shipped() -> list[str]:
    """Names of the adapters inside the package."""
    return sorted(p.name for p in SHIPPED.glob("*") if (p / adapters.CONFIG).is_file())


def find_adapter(name: str | Path) -> Path:
    """A folder, one of a training run, the name of a shipped adapter, or a hub id with its commit (``org/name@<40 hex>``).

    Raises AdapterError when there is none.
    """
    folder = Path(name).expanduser()
    if (folder / adapters.CONFIG).is_file():
        return folder
    if (folder / "adapter" / adapters.CONFIG).is_file():  # where a training run leaves it
        return folder / "adapter"
    if (SHIPPED / str(name) / adapters.CONFIG).is_file():
        return SHIPPED / str(name)
    if (pinned := re.fullmatch(rf"({REPO})@([0-9a-f]{{40}})", str(name))) and not folder.exists():
        from huggingface_hub import snapshot_download

        repo, revision = pinned.groups()
        try:
            return Path(snapshot_download(repo, revision=revision, allow_patterns=[adapters.CONFIG, adapters.TENSORS]))
        except Exception as error:
            raise AdapterError(
                f"{name}: cannot be fetched from the hub ({' '.join(str(error).split())[:200]})"
            ) from None
    raise AdapterError(
        f"{name}: no adapter there; give a folder with {adapters.CONFIG}, a hub id with its commit "
        f"(org/name@<40 hex digits>), or one of those that ship: {', '.join(shipped()) or 'none'}"
    )


def needed_models(adapter: str | Path) -> list[str]:
    """The names of the frozen pair that an adapter was trained for."""
    content = adapters.read_config(find_adapter(adapter))
    return [content["pair"]["encoder"]["name"], content["pair"]["llm"]["name"]]

"""steermoe: give a frozen LLM ears. ``load`` an adapter, ``transcribe``, ``chat``; see the README."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import SteerMoEConfig
    from .errors import AdapterError, AudioError, DataError, FetchError, SteerMoEError, UsageError
    from .inference.chat import Conversation
    from .inference.ears import Ears, load
    from .inference.toolbox import Toolbox
    from .model import SteerMoEForConditionalGeneration
    from .processing import SteerMoEProcessor

_HOME = {
    "Ears": "inference.ears",
    "load": "inference.ears",
    "Conversation": "inference.chat",
    "Toolbox": "inference.toolbox",
    "SteerMoEConfig": "config",
    "SteerMoEForConditionalGeneration": "model",
    "SteerMoEProcessor": "processing",
    **dict.fromkeys(["SteerMoEError", "UsageError", "AudioError", "FetchError", "AdapterError", "DataError"], "errors"),
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    """Public names are imported when they are first used: torch stays out of ``import steermoe``."""
    if name not in _HOME:
        raise AttributeError(f"module 'steermoe' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(_HOME)

"""What answers: the things an engine does, whichever machine the LLM runs on."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any, Protocol

from ..errors import SteerMoEError
from ..inference.chat import Answer
from ..inference.ears import Piece

PATIENCE = 60  # seconds: the longest Retry-After


class Refusal(SteerMoEError):
    """What a client is told instead of an answer: an HTTP status and what the OpenAI API says beside it."""

    def __init__(
        self,
        message: str,
        status: int = 400,
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.retry_after = status, code, param, retry_after


def not_ready(closed: bool) -> Refusal:
    said = "shutting down" if closed else "the models are being loaded"
    return Refusal(f"{said}; try again in a moment", 503, "not_ready", retry_after=5)


def too_late(seconds: float) -> Refusal:
    return Refusal(
        f"no answer within {seconds:g} s; try again later, or send less", 503, "timeout", retry_after=PATIENCE
    )


class Engine(Protocol):
    """Adapters by name. The calls queue at once, raising Refusal where they cannot, and are waited for by iterating.

    Closing what they give (``aclose``) withdraws the request. UsageError and AudioError are raised before the first item;
    a transcription that breaks off raises AudioError where it does.
    """

    @property
    def models(self) -> Sequence[str]:
        """The names that requests may use."""

    @property
    def waiting(self) -> int:
        """How many requests are in the queue."""

    def start(self) -> None:
        """Begin to load. Returns at once; ``admit`` refuses until all is there."""

    def close(self) -> None:
        """Refuse what waits and let go of everything."""

    def admit(self) -> None:
        """Raises Refusal: 503 while loading or closing, 429 where the queue is full."""

    def transcribe(self, model: str, audio: bytes, seconds: float) -> AsyncGenerator[Piece]:
        """The pieces of an encoded clip that was read once already and is ``seconds`` long, in order."""

    def chat(
        self, model: str, messages: list[dict[str, Any]], tools: list[dict[str, Any]], options: dict[str, Any]
    ) -> AsyncGenerator[str | Answer]:
        """Text as it is written, and at last the Answer. ``messages`` as ``Conversation`` takes them."""

    def inspect(self, model: str, audio: bytes, seconds: float) -> AsyncGenerator[dict[str, Any]]:
        """One item: what ``inspection.seen`` tells of the beginning of such a clip."""

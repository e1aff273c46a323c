"""Who is measured: an adapter in memory, or a server that speaks the OpenAI API. Suites see no difference."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..audio import RATE
from ..errors import UsageError

if TYPE_CHECKING:
    from ..inference.ears import Ears

Clips = list[np.ndarray]  # float32 mono at 16 kHz
MAX_ANSWER = 64  # tokens


class Listener(Protocol):
    """``name`` and ``fingerprint`` say who it is: what another one computed is never taken for its own."""

    name: str
    fingerprint: str

    def transcribe(self, clips: Clips) -> list[str]: ...

    def hear(self, clips: Clips) -> list[str]:
        """Text without the LLM."""
        ...

    def answer(self, questions: Sequence[str], clips: Sequence[np.ndarray | None]) -> list[str]:
        """Greedy answers to questions, each about a clip; a clip alone where the question is "", a text alone for None."""
        ...

    def own_decoder(self, language: str | None = "en") -> Callable[[Clips], list[str]]:
        """The transcriber of a cascade, and the baseline; None: it finds out which language it hears."""
        ...

    def about(self) -> dict[str, Any]:
        """For the provenance."""
        ...


def adapter_digest(ears: Ears) -> str:
    """SHA-256 over the adapter's settings and its tensors, by name."""
    import torch

    settings = {k: v for k, v in vars(ears.config).items() if k not in ("encoder", "llm")}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in sorted(ears.model.adapter_state().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class Adapter:
    """An adapter in memory; ``steering=False`` measures it with the steering disabled."""

    def __init__(self, ears: Ears, batch_size: int = 8, steering: bool = True) -> None:
        self.ears, self.batch_size = ears, batch_size
        self.unsteered = ears.model.steering is not None and not steering
        self.name = ears.adapter_name + (" without steering" if self.unsteered else "")
        self.fingerprint = adapter_digest(ears)

    def transcribe(self, clips: Clips) -> list[str]:
        with self._steered():
            return list(self.ears.transcribe(clips, sampling_rate=RATE, batch_size=self.batch_size))

    def hear(self, clips: Clips) -> list[str]:
        with self._steered():
            return list(self.ears.hear(clips, sampling_rate=RATE, batch_size=self.batch_size))

    def answer(self, questions: Sequence[str], clips: Sequence[np.ndarray | None]) -> list[str]:
        from ..inference.chat import Conversation, together

        ears, answers, replies = self.ears, dict[int, str](), dict[int, Any]()
        raw = ears.config.prompt_mode == "raw" or ears.processor.tokenizer.chat_template is None
        with self._steered():
            for i, (question, clip) in enumerate(zip(questions, clips, strict=True)):
                if raw and clip is not None:  # asked as it was trained
                    answers[i] = str(
                        ears.transcribe(clip, sampling_rate=RATE, instruction=question, max_new_tokens=MAX_ANSWER)
                    )
                    continue
                parts: list[dict[str, Any]] = []
                if clip is not None:
                    parts.append({"type": "audio", "audio": clip, "sampling_rate": RATE})
                if question:
                    parts.append({"type": "text", "text": question})
                talk = Conversation(ears, [{"role": "user", "content": parts}])
                replies[i] = talk.stream(max_new_tokens=MAX_ANSWER)
            for i, answer in zip(replies, together(list(replies.values())), strict=True):
                if isinstance(answer, UsageError):
                    raise answer
                answers[i] = str(answer)
        return [answers[i] for i in range(len(questions))]

    def _steered(self) -> Any:
        from contextlib import nullcontext

        steering = self.ears.model.steering
        return steering.disabled() if self.unsteered and steering is not None else nullcontext()

    def own_decoder(self, language: str | None = "en") -> Callable[[Clips], list[str]]:
        from .baseline import WhisperOwnDecoder

        return WhisperOwnDecoder(self.ears.config.encoder, device=str(self.ears.model.device), language=language)

    def about(self) -> dict[str, Any]:
        from ..adapter import fingerprint

        config = self.ears.config
        pair = getattr(self.ears.model, "pair_fingerprint", None)
        pair = pair or {end: fingerprint(getattr(config, end)) for end in ("encoder", "llm")}
        return {"adapter_sha256": self.fingerprint, "pair": pair, "batch_size": self.batch_size,
                "decoding": "greedy", "dtype": str(self.ears.model.llm.dtype).removeprefix("torch.")}  # fmt: skip


def ears_of(listener: Listener, suite: str) -> Ears:
    """The adapter itself. Raises UsageError for a server, of which ``suite`` cannot see enough."""
    if not isinstance(listener, Adapter):
        raise UsageError(f"--suite {suite} looks inside the model, which a server does not show: leave out --endpoint")
    return listener.ears

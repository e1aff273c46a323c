"""Any server that speaks the OpenAI API, measured by the same code as an adapter in memory.

``/audio/transcriptions`` for asr, ``/chat/completions`` with ``input_audio`` for questions; clips go out as 16-bit WAV. The
key, where the server wants one, is taken from OPENAI_API_KEY. A clip that the server refuses (a 4xx) is listed with what
it said; a server that is not there, or breaks (a 5xx, after three tries), ends the evaluation.
"""

from __future__ import annotations

import base64
import io
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from ..audio import RATE
from ..errors import AudioError, SteerMoEError, UsageError
from .listener import MAX_ANSWER, Clips

TRIES, PATIENCE = 3, 600.0  # seconds for one answer
GREEDY = {"temperature": 0, "seed": 0}


class EndpointError(SteerMoEError):
    """A server that cannot be reached, or does not answer as the OpenAI API does."""


def wav(samples: np.ndarray) -> bytes:
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, samples, RATE, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


class Endpoint:
    """``url`` is what ends in ``/v1``; ``parallel`` requests are in flight at once."""

    def __init__(self, url: str, model: str, parallel: int = 8) -> None:
        self.url, self.model, self.parallel = url.rstrip("/"), model, parallel
        self.name, self.fingerprint = f"{model} at {self.url}", ""
        if not self.url.startswith(("http://", "https://")):
            raise UsageError(f"--endpoint {url}: give its URL up to the version, as http://localhost:8000/v1")
        key = os.environ.get("OPENAI_API_KEY")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    def transcribe(self, clips: Clips) -> list[str]:
        def one(clip: np.ndarray) -> str:
            form = {"model": self.model, "response_format": "json", "temperature": "0"}
            answer = self._post(
                "/audio/transcriptions", data=form, files={"file": ("clip.wav", wav(clip), "audio/wav")}
            )
            return _text(answer, "text")

        return self._each(one, clips)

    def hear(self, clips: Clips) -> list[str]:
        raise UsageError("--heard reads the lexical projector, which a server does not show: leave out --endpoint")

    def answer(self, questions: Sequence[str], clips: Sequence[np.ndarray | None]) -> list[str]:
        def one(asked: tuple[str, np.ndarray | None]) -> str:
            question, clip = asked
            parts: list[dict[str, Any]] = []
            if clip is not None:
                content = base64.b64encode(wav(clip)).decode()
                parts.append({"type": "input_audio", "input_audio": {"data": content, "format": "wav"}})
            if question:
                parts.append({"type": "text", "text": question})
            message = {"role": "user", "content": parts if clip is not None else question}
            body = {"model": self.model, "messages": [message], "max_tokens": MAX_ANSWER, **GREEDY}
            return _text(self._post("/chat/completions", json=body), "choices", 0, "message", "content")

        return self._each(one, list(zip(questions, clips, strict=True)))

    def own_decoder(self, language: str | None = "en") -> Callable[[Clips], list[str]]:
        return self.transcribe

    def about(self) -> dict[str, Any]:
        return {"endpoint": self.url, "model": self.model, "parallel": self.parallel, "decoding": "temperature 0"}

    def _each(self, one: Callable[[Any], str], items: Sequence[Any]) -> list[str]:
        with ThreadPoolExecutor(self.parallel) as pool:
            return list(pool.map(one, items))

    def _post(self, path: str, **content: Any) -> Any:
        import requests

        for attempt in range(TRIES):
            try:
                answer = requests.post(self.url + path, headers=self._headers, timeout=PATIENCE, **content)
            except requests.RequestException as error:
                raise EndpointError(f"{self.url + path}: cannot be reached ({type(error).__name__})") from None
            if answer.status_code < 500 and answer.status_code != 429:
                break
            time.sleep(2**attempt)
        said = f"{self.url + path}: {answer.status_code} {' '.join(answer.text.split())[:200]}"
        if answer.status_code in (400, 413, 415, 422):
            raise AudioError(said)
        if answer.status_code != 200:
            raise EndpointError(said)
        try:
            return answer.json()
        except ValueError:
            raise EndpointError(f"{said}: no JSON") from None


def _text(value: Any, *keys: str | int) -> str:
    found = value
    try:
        for key in keys:
            found = found[key]
    except (LookupError, TypeError):
        raise EndpointError(f"the server's answer has no {'.'.join(map(str, keys))}: {str(value)[:200]}") from None
    return str(found or "").strip()

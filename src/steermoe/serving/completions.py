"""The tokens that an LLM in a vLLM server writes after a prompt, and whether that server is there.

Of its API one call is used, ``/v1/completions`` with a whole prompt: token ids, or embeddings where there is audio. The chat
template was applied and tokenised here, as for an LLM in this process, so nothing is joined or tokenised a second time,
and no text of a user's goes out that could mean something there. Never sent are rows that are not finite, which would spoil
the answers of others, and ``echo`` and ``prompt_logprobs``, which may end the server.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
from collections.abc import AsyncGenerator, Collection
from typing import Any

import httpx2
import torch
from torch import Tensor

from ..errors import AudioError, SteerMoEError, UsageError
from ..inference.ears import Ears
from .engine import Refusal

log = logging.getLogger("steermoe.serving")
PROBE = "The capital of France is"  # what follows shows whether the server's LLM is ours
AGAIN = 5  # seconds: the Retry-After while the server is away, and how often it is looked after
CONNECT = 5.0  # seconds
# Whatever defaults the server took from the LLM's own generation_config.json do not hold.
PLAIN = {
    "temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0,
    "frequency_penalty": 0.0, "stream": True, "return_token_ids": True, "skip_special_tokens": False,
}  # fmt: skip
Written = tuple[int, dict[int, float]]  # a token, and the log-probabilities that were asked for


class Away(Refusal):
    """The server cannot be reached, breaks, or is not one that can be used."""

    def __init__(self, problem: str = "") -> None:
        super().__init__("the LLM's server is away; try again in a moment", 503, "llm_away", retry_after=AGAIN)
        self.problem = problem  # for the log


def encoded(rows: Tensor, width: int) -> str:
    """(S, D_llm) as vLLM takes them: base64 of a saved bfloat16 tensor.

    Raises AudioError for what is not finite in it, or would not be in float16, should the server compute in that.
    """
    if rows.ndim != 2 or rows.shape[1] != width or not len(rows):
        raise ValueError(f"rows of shape {tuple(rows.shape)}, but the LLM is {width} wide")
    sent = rows.detach().to("cpu", torch.bfloat16).clone()  # of a view all of its storage would be saved
    if not sent.half().isfinite().all():
        raise AudioError("nothing finite is heard in this audio; is it broken?")
    buffer = io.BytesIO()
    torch.save(sent, buffer)
    return base64.b64encode(buffer.getvalue()).decode()


class Server:
    """A vLLM server at ``url`` (which ends in ``/v1``) that serves the LLM of ``ears`` as ``model``, or as its first."""

    def __init__(self, url: str, model: str | None = None, key: str | None = None, timeout: float = 900.0) -> None:
        self.url, self._wanted, self.model = url.rstrip("/"), model, model
        if not self.url.startswith(("http://", "https://")):
            raise UsageError(f"--vllm {url}: give its URL up to the version, as http://127.0.0.1:8123/v1")
        self._client = httpx2.AsyncClient(
            headers={"authorization": f"Bearer {key}"} if key else {},
            timeout=httpx2.Timeout(timeout, connect=CONNECT),
            limits=httpx2.Limits(max_connections=None),
            trust_env=False,  # no proxy stands between
        )
        self._width = 0  # of the LLM, known once it was looked for
        self.problem: str | None = "not reached yet"
        self._lost = asyncio.Event()

    async def close(self) -> None:
        await self._client.aclose()

    async def watch(self, ears: Ears) -> None:
        """Keep ``problem`` true, for ever: None while the server answers as it should."""
        said: str | None = "nothing yet"
        while True:
            self.problem = await self._look(ears)
            if self.problem != said:
                said = self.problem
                log.log(
                    logging.WARNING if self.problem else logging.INFO,
                    "vllm", extra={"fields": {"url": self.url, "problem": self.problem}},
                )  # fmt: skip
            self._lost.clear()
            try:
                async with asyncio.timeout(1 if self.problem else AGAIN):
                    await self._lost.wait()
                    await asyncio.sleep(1)
            except TimeoutError:
                pass

    async def _look(self, ears: Ears) -> str | None:
        try:
            if self.problem is None:
                await self._get(f"{self.url.removesuffix('/v1')}/health")
            else:
                await self._check(ears)
        except Away as error:
            return error.problem
        except SteerMoEError as error:
            return str(error)
        except Exception as error:  # whatever answers there is no vLLM
            return f"no vLLM: {type(error).__name__}"
        return None

    async def _check(self, ears: Ears) -> None:
        """Raises Away for a server that is not there, or serves another LLM than the one of ``ears``."""
        listed = {each["id"]: each for each in json.loads(await self._get(f"{self.url}/models"))["data"]}
        self.model = self._wanted or next(iter(listed))
        if self.model not in listed:
            raise Away(f"there is no model {self.model} but {', '.join(listed)}; start with --vllm-model NAME")
        config = ears.model.llm.config.get_text_config()  # shared by all adapters of the pair
        most = listed[self.model].get("max_model_len") or config.max_position_embeddings
        config.max_position_embeddings = min(most, config.max_position_embeddings)
        table = ears.model.llm.get_input_embeddings()
        self._width = table.weight.shape[1]
        ids = ears.processor.tokens(PROBE)
        with torch.inference_mode():
            rows = table(torch.tensor(ids, device=table.weight.device))
        by_ids, by_rows = [[token async for token, _ in self.tokens(p, 1)] for p in (ids, rows)]
        if by_ids != by_rows:
            raise Away(f"its model {self.model} is another LLM than {ears.config.llm}: give it the same weights")

    async def tokens(
        self, prompt: list[int] | Tensor, most: int, chances: Collection[int] = (), **options: Any
    ) -> AsyncGenerator[Written]:
        """At most ``most`` tokens after ``prompt`` (ids, or rows (S, D_llm)), the one that ends it among them.

        Greedy unless ``options`` say otherwise. With each come the log-probabilities of the tokens ``chances`` and its own.
        Closing it ends the request there, too. Raises Away, and UsageError for what the server refuses.
        """
        body = {**PLAIN, "model": self.model, "max_tokens": most, **options}
        if chances:
            wanted = sorted(chances)
            body |= {"logprobs": len(wanted), "logprob_token_ids": wanted, "return_tokens_as_token_ids": True}
        if isinstance(prompt, Tensor):
            body["prompt_embeds"] = await asyncio.to_thread(encoded, prompt, self._width)
        else:
            body["prompt"] = prompt
        finish = None
        try:
            async with self._client.stream("POST", f"{self.url}/completions", json=body) as response:
                await self._accepted(response)
                async for line in response.aiter_lines():
                    if not line.startswith("data: {"):
                        continue
                    event = json.loads(line[6:])
                    if "error" in event:
                        raise self._away("an answer broke off with an error")
                    for choice in event["choices"]:
                        finish = choice.get("finish_reason") or finish
                        for written in _written(choice):
                            yield written
        except (httpx2.HTTPError, ValueError, LookupError, TypeError) as error:
            raise self._away(type(error).__name__) from None
        if finish not in ("stop", "length"):
            raise self._away(f"an answer broke off ({finish})")

    async def _get(self, url: str) -> bytes:
        try:
            response = await self._client.get(url, timeout=2 * AGAIN)
        except httpx2.HTTPError as error:
            raise self._away(type(error).__name__) from None
        await self._accepted(response)
        return response.content

    async def _accepted(self, response: httpx2.Response) -> None:
        if response.status_code == 200:
            return
        if response.status_code in (400, 422):
            said = " ".join((await response.aread()).decode(errors="replace").split())[:300]
            raise UsageError(f"the LLM's server refuses this: {said}")
        raise self._away(f"it answers {response.status_code}")

    def _away(self, problem: str) -> Away:
        """For the log, too, which holds nothing of a request: what the server says of one is not in it."""
        if self.problem is None:
            self._lost.set()
        self.problem = problem
        return Away(problem)


def _written(choice: dict[str, Any]) -> list[Written]:
    """The tokens of one event of a stream. vLLM names them ``token_id:7`` where asked for log-probabilities."""
    ids = choice.get("token_ids") or []
    told = (choice.get("logprobs") or {}).get("top_logprobs") or [{}] * len(ids)
    return [
        (token, {int(name.rpartition(":")[2]): chance for name, chance in top.items()})
        for token, top in zip(ids, told, strict=True)
    ]

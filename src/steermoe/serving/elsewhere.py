"""What a writer and a draft ask of an LLM that is elsewhere.

What decides over a text is the code of the LLM in this process: stops, calls and grammars are the ``Writer``'s, a draft stands
by the rule of ``decoding.greedy``. Only the next token comes from a server.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..inference.decoding import realign
from ..inference.transcriber import Asked
from ..inference.writer import Writer
from .completions import Server, Written

AHEAD = 96  # drafted tokens whose log-probabilities are asked for: vLLM takes 128, ends among them
NEVER = float("-inf")
DIALECT = "%llguidance {}\n"  # at the head of a grammar: vLLM's others read the rest, too, and mean something else


@dataclass(frozen=True, eq=False)
class Heard:
    """All that the LLM is given of a window that it is ``asked`` about, ``rows`` (S, D_llm), and the margin a draft is checked with."""

    asked: Asked
    rows: Tensor
    margin: float


class Tokens:
    """What a writer asks for, out of streams that go on for as long as it takes what they give."""

    def __init__(self, server: Server, writer: Writer) -> None:
        self.server, self.writer = server, writer
        options, (self._end, *_) = writer.options, sorted(writer.ears.ends)
        self._how: dict[str, Any] = {"temperature": options.temperature, "top_p": options.top_p}
        self._how |= {"stop_token_ids": sorted(writer.ears.ends)}
        if options.seed is not None:
            self._how["seed"] = options.seed
        if suppressed := getattr(writer.held.llm.generation_config, "suppress_tokens", None):
            self._how["logit_bias"] = {str(token): -100.0 for token in suppressed}
        self._stream: AsyncGenerator[Written] | None = None
        self._next: tuple[list[int], Any] = [], None  # what must be written for the stream to go on from there

    async def next(self, closing: bool) -> int:
        """The token that follows what is written; while ``closing`` one of those that the constraint leaves."""
        writer, bound = self.writer, self.writer.binding
        if closing:
            await self.aclose()
            allowed = writer.allowed(closing).nonzero().flatten().tolist()
            self._stream = self._begin(1, allowed_token_ids=allowed)
        elif self._stream is None or self._next != (writer.tokens, bound):
            await self.aclose()
            grammar = {"structured_outputs": {"grammar": DIALECT + bound.grammar}} if bound is not None else {}
            self._stream = self._begin(max(1, writer.room - len(writer.tokens)), **grammar)
        token, _ = await anext(self._stream, (self._end, {}))
        self._next = [*writer.tokens, token], bound
        return token

    def _begin(self, most: int, **options: Any) -> AsyncGenerator[Written]:
        writer = self.writer
        with torch.inference_mode():
            ((kind, fed),) = writer.held.inputs([*writer.slots, *writer.tokens], writer.heard).items()
        prompt = fed[0].tolist() if kind == "input_ids" else fed[0]
        return self.server.tokens(prompt, most, **self._how, **options)

    async def aclose(self) -> None:
        if self._stream is not None:
            await self._stream.aclose()


async def checked(server: Server, heard: Heard, embedding: Any, ends: Collection[int]) -> list[int]:
    """``decoding.greedy`` of one window by an LLM that is elsewhere: its greedy tokens, a draft standing within the margin.

    Where a drafted token stands against what the LLM would have written, it is asked anew from there.
    """
    left, text, limit = list(heard.asked.draft or []) if heard.margin else [], list[int](), heard.asked.limit
    while len(text) < limit:
        with torch.inference_mode():
            prompt = torch.cat([heard.rows, embedding(torch.tensor(text, dtype=torch.long, device=heard.rows.device))])
        most = limit - len(text) if len(left) <= AHEAD else AHEAD // 4  # a token realigns by four at most
        chances = {*left[:AHEAD], *ends} if heard.margin else ()
        async with aclosing(server.tokens(prompt, most, chances, stop_token_ids=sorted(ends))) as stream:
            before = len(text)
            async for best, known in stream:
                least = known.get(best, 0.0) - heard.margin
                if left and known.get(left[0], NEVER) >= least:
                    token = left.pop(0)
                elif best in ends or (heard.margin and not left and max(known.get(e, NEVER) for e in ends) >= least):
                    return text
                else:
                    token, left = best, realign(left, 0, best)
                text.append(token)
                if token != best:
                    break
            else:
                if len(text) - before < most:
                    return text
    return text

"""As much of vLLM's API as is used, a tiny LLM behind it: to be killed, slowed down and broken in tests."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import socket
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from transformers import DynamicCache

from steermoe.inference.ears import Ears
from steermoe.inference.grammar import Constraint


class FakeVllm:
    """``seen`` are the bodies of all requests; ``broken``, where set, is the status of every answer."""

    def __init__(self, ears: Ears, name: str = "llm", pause: float = 0.0) -> None:
        self.ears, self.name, self.pause = ears, name, pause
        self.seen: list[dict[str, Any]] = []
        self.broken, self.cut, self.under_way = 0, 0, 0
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> FakeVllm:
        config = uvicorn.Config(self._app(), "127.0.0.1", self.port, log_config=None, timeout_graceful_shutdown=0)
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.005)
        return self

    def kill(self) -> None:
        self.server.should_exit = self.server.force_exit = True
        self.thread.join(timeout=10)
        assert not self.thread.is_alive()

    __enter__ = start

    def __exit__(self, *_: Any) -> None:
        self.kill()

    def _app(self) -> FastAPI:
        app = FastAPI()

        @app.get("/health")
        async def health() -> Any:
            return JSONResponse({}, self.broken or 200)

        @app.get("/v1/models")
        async def models() -> Any:
            return JSONResponse({"data": [{"id": self.name, "max_model_len": 1024}]}, self.broken or 200)

        @app.post("/v1/completions")
        async def completions(request: Request) -> Any:
            body = await request.json()
            self.seen.append(body)
            if self.broken:
                return JSONResponse({"error": {"message": "no"}}, self.broken)
            assert body["model"] == self.name and body["stream"] and body["return_token_ids"]
            assert not body.keys() & {"echo", "prompt_logprobs"}
            return StreamingResponse(self._events(body), media_type="text/event-stream")

        return app

    async def _events(self, body: dict[str, Any]) -> AsyncIterator[str]:
        self.under_way += 1
        finish, count = "length", 0
        try:
            for token, top in self._tokens(body):
                await asyncio.sleep(self.pause)
                count += 1
                if self.cut and count > self.cut:
                    yield 'data: {"error": {"message": "EngineCore died", "code": 500}}\n\n'
                    return
                finish = "stop" if token in body.get("stop_token_ids", []) else "length"
                choice: dict[str, Any] = {"index": 0, "text": "", "token_ids": [token], "finish_reason": None}
                if top:
                    choice["logprobs"] = {"top_logprobs": [{f"token_id:{i}": p for i, p in top.items()}]}
                yield f"data: {json.dumps({'choices': [choice]})}\n\n"
                if finish == "stop":
                    break
            yield f"data: {json.dumps({'choices': [{'index': 0, 'text': '', 'finish_reason': finish}]})}\n\n"
            yield "data: [DONE]\n\n"
        finally:
            self.under_way -= 1

    @torch.inference_mode()
    def _tokens(self, body: dict[str, Any]) -> Any:
        llm = self.ears.model.llm
        table = llm.get_input_embeddings()
        if "prompt_embeds" in body:
            rows = torch.load(io.BytesIO(base64.b64decode(body["prompt_embeds"])), weights_only=True)
            assert rows.dtype == torch.bfloat16 and rows.isfinite().all() and rows.shape[1] == table.weight.shape[1]
            assert rows.untyped_storage().nbytes() == rows.nbytes  # no view of something larger
            rows = rows.to(table.weight)
        else:
            rows = table(torch.tensor(body["prompt"]))
        grammar = (body.get("structured_outputs") or {}).get("grammar")
        bound = Constraint(self.ears.vocabulary, grammar) if grammar else None
        cache = DynamicCache()
        for _ in range(body["max_tokens"]):
            logits = llm(inputs_embeds=rows[None], past_key_values=cache, logits_to_keep=1).logits[0, -1].float()
            chances = logits.log_softmax(dim=-1)
            if bound is not None:
                logits = logits.masked_fill(~bound.allowed(), float("-inf"))
            if (only := body.get("allowed_token_ids")) is not None:
                logits = logits.index_fill(0, torch.tensor([i for i in range(len(logits)) if i not in only]), -1e9)
            token = int(logits.argmax())
            if bound is not None and token not in self.ears.ends:
                bound.take([token])
            yield (
                token,
                {i: float(chances[i]) for i in [token, *body.get("logprob_token_ids", [])] if "logprobs" in body},
            )
            rows = table(torch.tensor([token]))

"""The pair that ships before a real vLLM: ``VLLM_PYTHON=.../bin/python pytest -m vllm -s``."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import requests
import soundfile
import torch

from steermoe.data import load_source
from steermoe.inference.ears import Ears, load
from steermoe.inference.find import SHIPPED
from steermoe.pretrained import resolve
from steermoe.serving.local import Local
from steermoe.serving.vllm import Vllm
from tests.serving.conftest import client, running, wav
from tests.serving.test_local import until

PYTHON = os.environ.get("VLLM_PYTHON")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.vllm,
    pytest.mark.skipif(not PYTHON, reason="VLLM_PYTHON names no python that has vLLM (see docs/serving.md)"),
]
PATIENCE = 900  # seconds for vLLM to start on a busy machine
ULPS = 4  # of bfloat16: as far as a logit of this LLM was seen to move from its float32 value


class Process:
    def __init__(self, folder: Path, log: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.folder, self.log, self.url = folder, log, f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        flags = ["--model", str(self.folder), "--served-model-name", "llm", "--host", "127.0.0.1", "--port", self.port]
        flags += ["--enable-prompt-embeds", "--enforce-eager", "--dtype", "bfloat16", "--max-model-len", "2048"]
        quiet = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", *map(str, flags)],
                env={**{k: v for k, v in os.environ.items() if k != "PYTHONPATH"}, **quiet},
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    process = Process(resolve("HuggingFaceTB/SmolLM2-135M-Instruct"), tmp_path_factory.mktemp("vllm") / "log")
    process.start()
    try:
        yield process
    finally:
        process.kill()


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """``tiny`` as both engines can use it, with the arg-max reading: plain greedy, and drafts that are checked."""
    found = {}
    for name, margin in (("greedy", 0.0), ("checked", 8.0)):
        folder = found[name] = tmp_path_factory.mktemp("adapter") / name
        shutil.copytree(SHIPPED / "tiny", folder)
        content = json.loads((folder / "adapter_config.json").read_text())
        content["config"] |= {"readings": 1, "llm_margin": margin}
        (folder / "adapter_config.json").write_text(json.dumps(content))
    return found


@pytest.fixture(scope="module")
def ears(adapters: dict[str, Path]) -> Ears:
    return load(adapters["greedy"])


@pytest.fixture(scope="module")
def clips() -> list[np.ndarray]:
    examples = [*load_source("librivox"), *load_source("fotaq:valid")[:25], *load_source("asterisk:test")[:60]]
    heard = [samples for samples in (example.load() for example in examples) if 16_000 < len(samples) < 12 * 16_000]
    assert len(heard) >= 50
    return heard[:50]


@pytest.fixture(scope="module")
def url(vllm: Process, adapters: dict[str, Path]) -> Iterator[str]:
    with running(Vllm(adapters, vllm.url)) as url:
        until(lambda: requests.get(f"{url}/ready").status_code == 200, PATIENCE)
        yield url


def write_all(url: str, clips: list[np.ndarray], at_once: int = 4, model: str = "greedy") -> list[str]:
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(lambda c: client(url, timeout=600).audio.transcriptions.create(model=model, file=wav(c)).text, clips))  # fmt: skip


# One at a time: what is heard in a batch may round differently, and then it is another prompt.
alone = partial(write_all, at_once=1)


def test_fifty_clips_as_the_local_engine(
    url: str, adapters: dict[str, Path], ears: Ears, clips: list[np.ndarray]
) -> None:
    engine = Local(adapters)  # type: ignore[arg-type]
    with running(engine) as here:
        engine.loaded.result(timeout=60)
        mine, checked = alone(here, clips), alone(here, clips[:24], model="checked")
    theirs = alone(url, clips)
    same = sum(a == b for a, b in zip(checked, alone(url, clips[:24], model="checked"), strict=True))
    print(f"\n{same} of {len(checked)} checked drafts are equal")
    assert same >= len(checked) - 3 and checked != mine[: len(checked)]
    differ = [i for i in range(len(clips)) if mine[i] != theirs[i]]
    print(f"{len(clips) - len(differ)} of {len(clips)} transcripts are equal")
    for i in differ:
        assert told_apart(ears, clips[i], mine[i], theirs[i]) <= ULPS
    assert len(differ) <= len(clips) // 8


@torch.inference_mode()
def told_apart(ears: Ears, clip: np.ndarray, mine: str, theirs: str) -> float:
    """How far the LLM finds the two texts apart where first they differ: ulps of bfloat16 from the likeliest token down to
    the less likely of the two."""
    (asked,), llm, processor = ears.asked([clip]), ears.model.llm, ears.processor
    assert asked is not None
    a, b = ([*processor.tokens(text), processor.tokenizer.eos_token_id] for text in (mine, theirs))
    at = next(k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    rows = ears.embedded(asked)
    said = llm.get_input_embeddings()(torch.tensor(a[:at], dtype=torch.long))
    logits = llm(inputs_embeds=torch.cat([rows, said.to(rows)])[None]).logits[0, -1].float()
    best = float(logits.max())
    ulps = (best - min(float(logits[a[at]]), float(logits[b[at]]))) / 2.0 ** (np.floor(np.log2(abs(best))) - 7)
    words = [processor.tokenizer.decode(tokens[at]) for tokens in (a, b)]
    print(f"token {at}: {words[0]!r} here, {words[1]!r} there, {ulps:.1f} ulp apart:\n    {mine!r}\n    {theirs!r}")
    return ulps


def test_chat_calls_and_json(url: str, ears: Ears, clips: list[np.ndarray]) -> None:
    ask = client(url, timeout=600).chat.completions.create
    message: Any = {"role": "user", "content": "What is the capital of France? Say <prompt_embeds>."}
    told = ask(model="greedy", messages=[message], max_tokens=24).choices[0].message.content
    print(f"\n{told!r}\n{ears.chat([message], max_new_tokens=24)!r}")
    assert "Paris" in told
    schema = {"type": "object", "properties": {"country": {"type": "string"}}, "required": ["country"]}
    tool: Any = {"type": "function", "function": {"name": "capital_of", "parameters": schema}}
    call = (
        ask(model="greedy", messages=[message], tools=[tool], tool_choice="required").choices[0].message.tool_calls[0]
    )
    print(call.function.name, call.function.arguments)
    assert call.function.name == "capital_of" and list(json.loads(call.function.arguments)) == ["country"]
    shaped: Any = {"type": "json_schema", "json_schema": {"name": "c", "schema": schema}}
    for most in (8, 64):
        content = ask(model="greedy", messages=[message], response_format=shaped, max_tokens=most).choices[0].message
        print(content.content)
        assert list(json.loads(content.content)) == ["country"]


def test_nan_audio_changes_no_answer(url: str, clips: list[np.ndarray]) -> None:
    expected = alone(url, clips[:8])
    buffer = io.BytesIO()
    soundfile.write(buffer, np.where(np.arange(32_000) % 7 == 0, np.nan, 0.1), 16_000, format="WAV", subtype="FLOAT")

    def broken(_: int) -> None:
        with pytest.raises(openai.BadRequestError):
            client(url).audio.transcriptions.create(model="greedy", file=buffer.getvalue())

    with ThreadPoolExecutor(4) as pool:
        nan = [pool.submit(broken, i) for i in range(8)]
        among = write_all(url, clips[:8])
        for each in nan:
            each.result()
    same = sum(a == b for a, b in zip(expected, among, strict=True))
    print(f"\n{same} of 8 the same in a batch")
    assert all(among) and alone(url, clips[:8]) == expected


def test_killed_and_started_again(url: str, vllm: Process, clips: list[np.ndarray]) -> None:
    before = write_all(url, clips[:1])
    messages: Any = [{"role": "user", "content": "Count from one to a thousand in words."}]

    def long(_: int) -> str:
        return client(url, timeout=600).chat.completions.create(model="greedy", messages=messages, max_tokens=1800).id

    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(long, i) for i in range(4)]
        time.sleep(0.7)  # under way, and far from an end
        vllm.kill()
        for job in jobs:
            with pytest.raises(openai.InternalServerError) as refused:
                job.result()
            assert (refused.value.status_code, refused.value.code) == (503, "llm_away")
    assert requests.get(f"{url}/health").status_code == 200
    away = requests.get(f"{url}/ready")
    assert away.status_code == 503 and int(away.headers["retry-after"]) >= 1
    vllm.start()
    until(lambda: requests.get(f"{url}/ready").status_code == 200, PATIENCE)
    assert write_all(url, clips[:1]) == before

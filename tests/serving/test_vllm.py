"""The vLLM engine before a fake server: the same text as the local engine, and a server that may go and come."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import openai
import pytest
import requests
import soundfile
import torch

from steermoe.errors import AudioError, UsageError
from steermoe.inference.chat import Conversation
from steermoe.inference.ears import Ears, load
from steermoe.model import SteerMoEForConditionalGeneration
from steermoe.serving import completions
from steermoe.serving.completions import encoded
from steermoe.serving.run import serve
from steermoe.serving.vllm import Vllm
from tests.conftest import Pair, livened
from tests.serving.conftest import client, running
from tests.serving.fake_vllm import FakeVllm
from tests.serving.test_local import until

Clip = Callable[..., bytes]
NUMBER = {"type": "object", "properties": {"number": {"type": "integer", "maximum": 99}}, "required": ["number"]}
TOOLS: Any = [{"type": "function", "function": {"name": "count", "parameters": NUMBER}}]
whole = partial(load, dtype=torch.float32)


@pytest.fixture(scope="module")
def folders(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two adapters whose embeddings, and the LLM's, are bfloat16 numbers in float32: nothing is lost on the way."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    root = tmp_path_factory.mktemp("elsewhere")
    llm = AutoModelForCausalLM.from_pretrained(pair.llm)
    with torch.no_grad():
        llm.get_input_embeddings().weight.copy_(llm.get_input_embeddings().weight.bfloat16())
    llm.save_pretrained(root / "llm")
    AutoTokenizer.from_pretrained(pair.llm).save_pretrained(root / "llm")
    found = {}
    torch.manual_seed(0)
    for name, margin in (("plain", 0.0), ("checked", 8.0)):
        model = SteerMoEForConditionalGeneration.from_pair(
            pair.encoder, str(root / "llm"), dtype=torch.float32, prompt_vectors=2, readings=1, llm_margin=margin,
            piece_seconds=2.0,
        )  # fmt: skip
        livened(model)
        with torch.no_grad():
            for tensor in model.adapter_state().values():
                tensor.copy_(tensor.bfloat16())
        found[name] = root / name
        model.save_adapter(found[name])
    return found


@pytest.fixture(scope="module")
def here(folders: dict[str, Path]) -> dict[str, Ears]:
    return {name: whole(folder) for name, folder in folders.items()}


@pytest.fixture
def fake(here: dict[str, Ears], monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeVllm]:
    monkeypatch.setattr(completions, "AGAIN", 1)
    with FakeVllm(here["plain"]) as server:
        yield server


def engine(folders: dict[str, Path], fake: FakeVllm, **options: Any) -> Vllm:
    return Vllm(folders, fake.url, load=whole, **options)


@pytest.fixture
def url(folders: dict[str, Path], fake: FakeVllm) -> Iterator[str]:
    with running(engine(folders, fake)) as url:
        until(lambda: requests.get(f"{url}/ready").status_code == 200)
        yield url


def write(url: str, model: str, content: bytes, **options: Any) -> str:
    return client(url).audio.transcriptions.create(model=model, file=content, **options).text


def test_only_embeddings_are_here_and_are_the_same(folders: dict[str, Path], here: dict[str, Ears], clip: Clip) -> None:
    ears = whole(folders["plain"], llm_elsewhere=True)
    assert not ears.model.llm.model.layers and len(here["plain"].model.llm.model.layers) == 2
    samples = soundfile.read(io.BytesIO(clip(1.5)), dtype="float32")[0]
    mine, theirs = ears.asked([samples])[0], here["plain"].asked([samples])[0]
    assert mine and theirs and mine.draft == theirs.draft
    assert torch.equal(ears.embedded(mine), here["plain"].embedded(theirs))
    assert ears.ends == here["plain"].ends and ears.vocabulary.size == here["plain"].vocabulary.size


def test_transcripts_are_those_of_the_local_engine(url: str, fake: FakeVllm, here: dict[str, Ears], clip: Clip) -> None:
    clips = [*(clip(0.5 + 0.3 * i, i) for i in range(3)), clip(5.0, 9)]
    asked = [(name, content) for content in clips for name in here]
    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(lambda each: write(url, *each), asked))
    assert told == [here[name].transcribe(content) for name, content in asked]
    assert told[0::2] != told[1::2]  # a draft that stands is not what the LLM would have written
    events = client(url).audio.transcriptions.create(model="checked", file=clips[-1], stream=True)
    deltas = [event.delta for event in events if event.type == "transcript.text.delta"]
    assert len(deltas) > 1 and "".join(deltas) == told[-1]


def test_chat_is_that_of_the_local_engine(url: str, fake: FakeVllm, here: dict[str, Ears], clip: Clip) -> None:
    data = base64.b64encode(clip(1.2)).decode()
    heard = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
    parts = [{"type": "text", "text": "say <prompt_embeds> twice:"}, heard, {"type": "text", "text": "very well"}]
    talks: list[Any] = [
        [{"role": "user", "content": "what is <prompt_embeds>?"}],
        [{"role": "system", "content": "be brief"}, {"role": "user", "content": parts}],
    ]
    for messages in talks:
        fake.seen.clear()
        told = client(url).chat.completions.create(model="plain", messages=messages, max_tokens=24)
        expected = Conversation(here["plain"], messages).answer(max_new_tokens=24)
        assert told.choices[0].message.content == expected.text and len(expected.text) > 3
        assert told.choices[0].finish_reason == expected.finish_reason
        assert told.usage.prompt_tokens == expected.usage.prompt_tokens
        assert told.usage.completion_tokens == expected.usage.completion_tokens
        (body,) = fake.seen
        assert ("prompt" in body) != ("prompt_embeds" in body) and ("prompt" in body) == (messages is talks[0])
    stop = expected.text[4:6]
    stream = client(url).chat.completions.create(
        model="plain", messages=talks[1], max_tokens=24, stop=stop, stream=True, seed=3
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == expected.text[: expected.text.index(stop)].rstrip() and fake.seen[-1]["seed"] == 3


def test_calls_and_json_are_valid_and_complete(url: str, fake: FakeVllm, here: dict[str, Ears]) -> None:
    messages: Any = [{"role": "user", "content": "very well"}]
    create: Any = partial(client(url).chat.completions.create, model="plain", messages=messages)
    told = create(tools=TOOLS, tool_choice="required")
    (call,) = told.choices[0].message.tool_calls
    jsonschema.validate(json.loads(call.function.arguments), NUMBER)
    assert call.function.name == "count" and told.choices[0].finish_reason == "tool_calls"
    grammar = fake.seen[-1]["structured_outputs"]["grammar"]
    assert "count" in grammar and grammar.startswith("%llguidance {}")  # which no other engine of vLLM's takes
    schema = {"type": "json_schema", "json_schema": {"name": "n", "schema": {**NUMBER, "additionalProperties": False}}}
    for most in (4, 60):  # with four tokens it is closed, token by token
        fake.seen.clear()
        content = create(response_format=schema, max_tokens=most).choices[0].message.content
        jsonschema.validate(json.loads(content), NUMBER)
        assert any("allowed_token_ids" in body for body in fake.seen) == (most == 4)
    free = create(tools=TOOLS, max_tokens=12).choices[0].message.content
    assert free == Conversation(here["plain"], messages, TOOLS).answer(max_new_tokens=12).text


def test_what_is_not_finite_is_never_sent(
    url: str, fake: FakeVllm, clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = io.BytesIO()
    samples = np.full(16_000, np.nan, dtype=np.float32)
    soundfile.write(buffer, samples, 16_000, format="WAV", subtype="FLOAT")
    with ThreadPoolExecutor(4) as pool:
        fake.seen.clear()
        good = [pool.submit(write, url, "plain", clip(1.0)) for _ in range(2)]
        bad = [pool.submit(write, url, "plain", buffer.getvalue()) for _ in range(2)]
        assert good[0].result() == good[1].result() != ""
        for each in bad:
            with pytest.raises(openai.BadRequestError):
                each.result()
    assert len(fake.seen) == 2
    real = Ears.embedded
    monkeypatch.setattr(Ears, "embedded", lambda self, asked: real(self, asked) * 1e38)
    with pytest.raises(openai.BadRequestError, match="nothing finite"):
        write(url, "plain", clip(1.0))
    assert len(fake.seen) == 2 and requests.get(f"{url}/ready").status_code == 200
    for value in (float("nan"), float("inf"), -1e39, 7e4):
        with pytest.raises(AudioError):
            encoded(torch.full((2, 3), value, dtype=torch.float64), 3)
    with pytest.raises(ValueError, match="3 wide"):
        encoded(torch.zeros(2, 4), 3)


def test_a_server_that_goes_and_comes_back(
    folders: dict[str, Path], fake: FakeVllm, here: dict[str, Ears], clip: Clip
) -> None:
    fake.kill()
    fake.pause = 0.05
    content, expected = clip(1.5), here["plain"].transcribe(clip(1.5))
    with running(engine(folders, fake)) as url, ThreadPoolExecutor(4) as pool:
        ready: Any = lambda: requests.get(f"{url}/ready")  # noqa: E731
        until(lambda: "LLM's server is away" in ready().text)
        for _ in range(2):
            fake.start()
            until(lambda: ready().status_code == 200)
            jobs = [pool.submit(write, url, "plain", content) for _ in range(3)]
            until(lambda: fake.under_way == 3)
            fake.kill()
            for job in jobs:
                with pytest.raises(openai.InternalServerError) as refused:
                    job.result()
                assert (refused.value.status_code, refused.value.code) == (503, "llm_away")
                assert int(refused.value.response.headers["retry-after"]) >= 1
            assert ready().status_code == 503 and requests.get(f"{url}/health").status_code == 200
        fake.pause = 0
        fake.start()
        obedient = client(url, max_retries=5).audio.transcriptions.create(model="plain", file=content)
        assert obedient.text == expected
        for status, refusal in ((500, 503), (401, 503), (400, 400)):
            fake.broken = status
            with pytest.raises(openai.APIStatusError) as told:
                write(url, "plain", content)
            assert told.value.status_code == refusal
            fake.broken = 0
            until(lambda: ready().status_code == 200)
        fake.cut = 2  # the engine dies within an answer
        with pytest.raises(openai.InternalServerError, match="away"):
            write(url, "plain", content)
        fake.cut = 0
        until(lambda: ready().status_code == 200)
        assert write(url, "plain", content) == expected


def test_another_llm_is_not_taken(
    folders: dict[str, Path], here: dict[str, Ears], make: Callable[..., Ears], caplog: pytest.LogCaptureFixture
) -> None:
    theirs = make(fresh=True)
    with torch.no_grad():
        table = theirs.model.llm.get_input_embeddings().weight
        table.copy_(table.flip(0))
    with FakeVllm(theirs) as other, caplog.at_level("INFO", "steermoe.serving"):
        for name, problem in ((None, "another LLM"), ("big", "no model big")):
            caplog.clear()
            with running(engine(folders, other, model=name)) as url:
                until(lambda: any(record.message == "vllm" for record in caplog.records))
                assert requests.get(f"{url}/ready").status_code == 503
            assert problem in next(r for r in caplog.records if r.message == "vllm").fields["problem"]  # type: ignore[attr-defined]


def test_who_leaves_is_written_for_no_longer_and_there_is_a_limit(
    folders: dict[str, Path], fake: FakeVllm, clip: Clip
) -> None:
    with running(engine(folders, fake, max_queue=2)) as url, ThreadPoolExecutor(2) as pool:
        until(lambda: requests.get(f"{url}/ready").status_code == 200)
        fake.pause = 0.1
        messages: Any = [{"role": "user", "content": "very well"}]
        with client(url).chat.completions.create(model="plain", messages=messages, stream=True) as answer:
            next(chunk for chunk in answer if chunk.choices[0].delta.content)
            impatient = pool.submit(client(url, timeout=1).audio.transcriptions.create, model="plain", file=clip(9.0))
            until(lambda: fake.under_way == 2)
            with pytest.raises(openai.RateLimitError):
                write(url, "plain", clip(1.0))
            with pytest.raises(openai.APITimeoutError):
                impatient.result()
        until(lambda: fake.under_way == 0, 3.0)
        began = time.monotonic()
        write(url, "plain", clip(0.5))
        assert time.monotonic() - began < 20


def test_wrong_flags() -> None:
    limits: Any = {"max_queue": 1, "max_seconds": 1.0, "max_mib": 1, "timeout": 1.0, "rate": None}
    with pytest.raises(UsageError, match=r"--vllm 127\.0\.0\.1:1: give its URL"):
        serve(["tiny"], "127.0.0.1", 0, **limits, vllm="127.0.0.1:1")
    with pytest.raises(UsageError, match="give the server, too"):
        serve(["tiny"], "127.0.0.1", 0, **limits, vllm_model="x")

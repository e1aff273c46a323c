"""The engine: batches, turns, a bounded queue, clients that leave, requests that never touch each other."""

from __future__ import annotations

import asyncio
import base64
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import torch

from steermoe import Conversation
from steermoe.errors import AdapterError, UsageError
from steermoe.inference import held
from steermoe.inference.chat import Reply
from steermoe.inference.ears import Ears, load
from steermoe.inference.transcripts import Piece
from steermoe.serving import local as local_module
from steermoe.serving.local import Job, Lane, Local, named
from tests.serving.conftest import client, local, running

Clip = Callable[..., bytes]


class Watched:
    """Ears that wait for ``gate`` before they work, and remember how many sources came at once."""

    def __init__(self, ears: Ears) -> None:
        self.ears, self.gate, self.entered = ears, threading.Event(), threading.Event()
        self.batches: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ears, name)

    def transcripts(self, sources: list[bytes]) -> Iterator[Any]:
        self.batches.append(len(sources))
        self.entered.set()
        assert self.gate.wait(30)
        if any(source.endswith(b"POISON") for source in sources):
            raise RuntimeError("an engine that breaks")
        return self.ears.transcripts(sources)


@pytest.fixture
def watched(ears: Ears) -> Watched:
    return Watched(ears)


def until(true: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)


def test_what_waits_is_heard_at_once_and_a_broken_clip_costs_no_other(watched: Watched, ears: Ears, clip: Clip) -> None:
    clips = [clip(1.0 + 0.2 * i, i) for i in range(6)]
    expected = ears.transcribe(clips)
    engine = local(watched)  # type: ignore[arg-type]
    with running(engine) as url, ThreadPoolExecutor(8) as pool:
        engine.loaded.result(timeout=30)
        ask = client(url)

        def send(content: bytes) -> str:
            return ask.audio.transcriptions.create(model="tiny", file=content).text

        first = pool.submit(send, clips[0])
        assert watched.entered.wait(10)  # the others come while it is busy
        others = [pool.submit(send, content) for content in [*clips[1:], clips[0] + b"POISON"]]
        until(lambda: engine.waiting == 6)
        watched.gate.set()
        assert [f.result() for f in [first, *others[:5]]] == expected
        with pytest.raises(openai.InternalServerError, match="something broke here"):
            others[5].result()
    assert watched.batches[:2] == [1, 6] and watched.batches[2:] == [1] * 6


def test_those_who_were_heard_together_are_so_again(
    watched: Watched, ears: Ears, clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They come back one after the other, the first no sooner heard than the last; who comes alone later does not wait."""
    monkeypatch.setattr(local_module, "GATHER", 5.0)
    engine = local(watched)  # type: ignore[arg-type]
    with running(engine) as url, ThreadPoolExecutor(8) as pool:
        engine.loaded.result(timeout=30)
        ask, content, expected = client(url), clip(1.0), ears.transcribe(clip(1.0))

        def send(after: float = 0.0) -> str:
            time.sleep(after)
            return ask.audio.transcriptions.create(model="tiny", file=content).text

        told = [pool.submit(send)]
        assert watched.entered.wait(10)
        told += [pool.submit(send) for _ in range(3)]
        until(lambda: engine.waiting == 3)
        watched.gate.set()
        assert [each.result() for each in told] == [expected] * 4
        assert [*pool.map(send, (0.0, 0.1, 0.2))] == [expected] * 3
        monkeypatch.setattr(local_module, "GATHER", 0.0)
        assert send() == expected
    assert watched.batches == [1, 3, 3, 1]


def test_a_full_queue_a_client_that_leaves_and_one_that_obeys(watched: Watched, ears: Ears, clip: Clip) -> None:
    content = clip(1.0)
    engine = local(watched, max_queue=2)  # type: ignore[arg-type]
    with running(engine) as url, ThreadPoolExecutor(8) as pool:
        engine.loaded.result(timeout=30)
        send: Any = lambda **how: client(url, **how).audio.transcriptions.create(model="tiny", file=content).text  # noqa: E731
        first = pool.submit(send)
        assert watched.entered.wait(10)
        impatient = [pool.submit(send, timeout=0.5) for _ in range(2)]
        until(lambda: engine.waiting == 2)
        with pytest.raises(openai.RateLimitError) as refused:
            send()
        assert refused.value.code == "queue_full" and int(refused.value.response.headers["retry-after"]) >= 1
        obedient = pool.submit(send, max_retries=3)
        for left in impatient:
            with pytest.raises(openai.APITimeoutError):
                left.result()
        time.sleep(0.2)  # the server hears of it
        watched.gate.set()
        assert first.result() == obedient.result() == ears.transcribe(content)
    assert watched.batches == [1, 1]  # nobody worked for those who left


def test_a_stream_whose_reader_leaves_is_not_written_on(ears: Ears, monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless:
        def __init__(self, *_: Any) -> None: ...

        def beginning(self, *_: Any, **__: Any) -> Any:
            yield

        def reply(self, _: Any) -> Reply:
            def writing() -> Any:
                while True:
                    time.sleep(0.01)
                    yield "on and "

            return Reply(writing())

    monkeypatch.setattr(local_module, "Conversation", Endless)
    engine = local(ears)
    with running(engine) as url:
        engine.loaded.result(timeout=30)
        messages: Any = [{"role": "user", "content": "very well"}]
        with client(url).chat.completions.create(model="tiny", messages=messages, stream=True) as answer:
            next(iter(answer))
            until(lambda: bool(engine._chat.current))
        until(lambda: not engine._chat.current)


def test_chats_that_wait_are_written_together_and_one_that_breaks_costs_no_other(
    ears: Ears, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What they say is what they say alone; of those under way each pass of the LLM feeds all."""
    sizes: list[int] = []

    def feed(wanted: Any) -> Any:
        sizes.append(len(wanted))
        if any(len(each.slots) > 150 for each in wanted):
            raise RuntimeError("an LLM that breaks")
        return held.feed(wanted)

    said = ["very well", "quick brown fox", "said the fox", "over", "well"]
    asked: list[Any] = [[{"role": "user", "content": text}] for text in said]
    expected = [Conversation(ears, messages).answer(max_new_tokens=40).text for messages in asked]
    broken: Any = [{"role": "user", "content": "quick brown fox " * 60}]
    monkeypatch.setattr(local_module, "feed", feed)
    engine = local(ears)
    with running(engine) as url, ThreadPoolExecutor(8) as pool:
        engine.loaded.result(timeout=30)

        def send(messages: Any) -> Any:
            return client(url).chat.completions.create(model="tiny", messages=messages, max_tokens=40)

        jobs = [pool.submit(send, messages) for messages in [*asked[:3], broken, *asked[3:]]]
        with pytest.raises(openai.InternalServerError, match="something broke here"):
            jobs.pop(3).result()
        assert [job.result().choices[0].message.content for job in jobs] == expected
    assert max(sizes) >= 3


def test_long_audio_and_chat_take_turns(ears: Ears, clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short clip and a chat that come after a long one are answered before it is done."""
    order: list[str] = []

    def endless(*_: Any, **__: Any) -> Iterator[Piece]:
        while len(order) < 2 and time.monotonic() < begun + 60:  # it ends once the others did
            time.sleep(0.01)
            yield Piece(0.0, 1.0, "on and on")

    begun = time.monotonic()
    monkeypatch.setattr(ears, "stream", endless)
    engine = local(ears)
    with running(engine) as url, ThreadPoolExecutor(8) as pool:
        engine.loaded.result(timeout=30)
        ask = client(url)

        def say(name: str, content: Any) -> None:
            if isinstance(content, bytes):
                ask.audio.transcriptions.create(model="tiny", file=content)
            else:
                ask.chat.completions.create(model="tiny", messages=content, max_tokens=4)
            order.append(name)

        jobs = [pool.submit(say, "long", clip(31.0))]
        until(lambda: bool(engine._long.current))
        jobs.append(pool.submit(say, "short", clip(1.0)))
        jobs.append(pool.submit(say, "chat", [{"role": "user", "content": "well"}]))
        for job in jobs:
            job.result()
    assert order[-1] == "long" and time.monotonic() < begun + 60


def test_longer_recordings_take_turns(ears: Ears) -> None:
    said: list[str] = []

    def begin(name: str, steps: int) -> Any:
        return lambda _: (said.append(f"{name}{i}") or i for i in range(steps))

    async def read() -> None:
        engine = local(ears)
        lane = Lane(engine._read_on)
        engine._ears = {"tiny": ears}
        lane.waiting += [Job("tiny", begin("a", 4)), Job("tiny", begin("b", 2))]
        while lane:
            engine._read_on(lane)

    asyncio.run(read())
    assert said == ["a0", "a1", "b0", "a2", "b1", "a3"]


def test_what_takes_too_long_is_given_up(watched: Watched, clip: Clip) -> None:
    engine = local(watched, timeout=0.2)  # type: ignore[arg-type]
    with running(engine) as url:
        engine.loaded.result(timeout=30)
        with pytest.raises(openai.InternalServerError) as refused:
            client(url).audio.transcriptions.create(model="tiny", file=clip(1.0))
        assert (refused.value.status_code, refused.value.code) == (503, "timeout")
        watched.gate.set()


def test_before_it_is_ready_and_when_it_closes(ears: Ears, clip: Clip) -> None:
    gate = threading.Event()

    def slowly(_: Any) -> Ears:
        assert gate.wait(30)
        return ears

    engine = Local({"tiny": None}, load=slowly)
    with running(engine) as url:
        import requests

        assert requests.get(f"{url}/health").status_code == 200
        assert requests.get(f"{url}/ready").status_code == 503
        with pytest.raises(openai.InternalServerError) as refused:
            client(url).audio.transcriptions.create(model="tiny", file=clip(1.0))
        assert refused.value.status_code == 503 and refused.value.code == "not_ready"
        gate.set()
        engine.loaded.result(timeout=30)
        assert requests.get(f"{url}/ready").status_code == 200
    assert not engine._thread.is_alive()


def test_what_is_made_once_is_made_before_it_is_ready(make: Callable[..., Ears]) -> None:
    ears = make(seed=3)
    engine = local(ears)
    with running(engine):
        engine.loaded.result(timeout=30)
        assert {"dialect", "vocabulary"} <= vars(ears).keys()


def test_adapters_side_by_side_in_one_server(make: Callable[..., Ears], clip: Clip, tmp_path: Path) -> None:
    for i in (1, 2):
        make(seed=i, prompt_vectors=2).model.save_adapter(tmp_path / f"a{i}" / "adapter")
    content = clip(1.5, 4)

    def in_full(folder: Any) -> Ears:
        return load(folder, dtype=torch.float32)

    found = named([str(tmp_path / "a1"), str(tmp_path / "a2" / "adapter")])
    assert list(found) == ["a1", "a2"]
    alone = {name: in_full(folder).transcribe(content) for name, folder in found.items()}
    assert alone["a1"] != alone["a2"]
    engine = Local(found, load=in_full)
    with running(engine) as url, ThreadPoolExecutor(6) as pool:
        engine.loaded.result(timeout=30)
        ask = client(url)
        names = ["a1", "a2"] * 3
        told = pool.map(lambda name: ask.audio.transcriptions.create(model=name, file=content).text, names)
        assert list(told) == [alone[name] for name in names]
    with pytest.raises(UsageError, match="another named a1"):
        named([str(tmp_path / "a1"), str(tmp_path / "a1" / "adapter")])
    with pytest.raises(AdapterError, match="no adapter there"):
        named(["nowhere"])


def test_a_clip_is_heard_while_a_conversation_full_of_audio_is(
    ears: Ears, clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, gate = ears.audio_tokens, threading.Event()

    def slowly(audios: Any) -> Any:
        while not gate.wait(0.02):
            yield 0
        return (yield from real(audios))

    engine = local(ears)
    with running(engine) as url, ThreadPoolExecutor() as pool:
        engine.loaded.result(timeout=30)
        monkeypatch.setattr(ears, "audio_tokens", slowly)
        data = {"data": base64.b64encode(clip(1.0)).decode(), "format": "wav"}
        messages: Any = [{"role": "user", "content": [{"type": "input_audio", "input_audio": data}]}]
        chat = pool.submit(client(url).chat.completions.create, model="tiny", messages=messages, max_tokens=4)
        until(lambda: bool(engine._chat.current))
        client(url).audio.transcriptions.create(model="tiny", file=clip(0.5))
        assert not chat.done() and engine._chat.current[0].hears
        gate.set()
        assert chat.result().usage.completion_tokens


def test_a_conversation_that_is_too_long_is_refused_before_all_of_it_is_heard(
    ears: Ears, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[int] = []

    def endless(audios: Any) -> Any:
        while True:
            heard.append(1)
            yield 200

    monkeypatch.setattr(ears, "audio_tokens", endless)
    audio = {"type": "audio", "audio": np.zeros(16_000, np.float32), "sampling_rate": 16_000}
    most = ears.model.llm.config.max_position_embeddings
    with pytest.raises(
        UsageError, match=rf"more than \d+ tokens with its audio is longer than the LLM takes \({most}\)"
    ):
        Conversation(ears, [{"role": "user", "content": [audio]}]).answer()
    assert len(heard) <= most / 200 + 1

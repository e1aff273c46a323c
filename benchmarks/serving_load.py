"""The server under load: many clients, requests of every kind, each answer checked against the one given when alone.

    python benchmarks/serving_load.py [--adapter tiny] [--clients 64] [--requests 10] [--out serving_load.json]

A real ``steermoe serve`` is started, and asked through the official OpenAI client, which obeys 429 and Retry-After. Measured are the
latency of each kind from the first try to the last byte, requests a second, the server's peak memory; requests a second with eight
that wait against one at a time; and the first words of five seconds of speech. The clients run on the same machine and take their
share of it. An answer that is not the one given alone is counted: in bfloat16 a batch rounds otherwise than one by itself.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import platform
import random
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import openai
import requests
import soundfile

from steermoe.audio import RATE
from steermoe.data import load_source

WAITING = 8  # requests at once, where batching is measured
TOOL = {
    "type": "function",
    "function": {
        "name": "remember",
        "description": "Keep a person's name.",
        "parameters": {"type": "object", "properties": {"name": {"enum": ["John", "Mary"]}}, "required": ["name"]},
    },
}
SCHEMA = {"type": "object", "properties": {"men": {"enum": [1, 2, 3]}}, "required": ["men"]}
Ask = Callable[[openai.OpenAI], Any]  # what is compared


@contextmanager
def served(adapter: str, *options: str) -> Iterator[tuple[str, int]]:
    """A server that is ready: its URL and process id."""
    command = [sys.executable, "-m", "steermoe", "serve", "--adapter", adapter, "--port", "0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        begun = json.loads(process.stderr.readline())
        assert json.loads(process.stderr.readline())["event"] == "ready"
        with ThreadPoolExecutor(1) as reader:
            reader.submit(lambda: [None for _ in process.stderr or ()])  # its log: a full pipe would stop it
            try:
                yield begun["url"], process.pid
            finally:
                process.terminate()
                process.wait(timeout=60)


def clips() -> list[bytes]:
    """The shipped human recordings as WAV, and all of them in a row, longer than a window."""
    recordings = [example.load() for example in load_source("librivox")]
    return [wav(samples) for samples in [*recordings, np.concatenate([*recordings, *recordings])]]


def wav(samples: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, RATE, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def transcribed(model: str, clip: bytes, **more: Any) -> Ask:
    def ask(client: openai.OpenAI) -> Any:
        told = client.audio.transcriptions.create(model=model, file=("clip.wav", clip), **more)
        if more.get("stream"):
            return [event.text for event in told if event.type == "transcript.text.done"]
        return told if isinstance(told, str) else told.model_dump()

    return ask


def answered(model: str, said: str, clip: bytes | None = None, **more: Any) -> Ask:
    content: list[dict[str, Any]] = [{"type": "text", "text": said}]
    if clip is not None:
        heard = {"data": base64.b64encode(clip).decode(), "format": "wav"}
        content.insert(0, {"type": "input_audio", "input_audio": heard})
    asked: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": content}], **more}

    def ask(client: openai.OpenAI) -> Any:
        told = client.chat.completions.create(**asked)
        if more.get("stream"):
            return "".join(chunk.choices[0].delta.content or "" for chunk in told if chunk.choices)
        message, why = told.choices[0].message, told.choices[0].finish_reason
        return message.content, [call.function.arguments for call in message.tool_calls or ()], why

    return ask


def refused(ask: Ask, status: int) -> Ask:
    def asked(client: openai.OpenAI) -> Any:
        try:
            ask(client)
        except openai.APIStatusError as error:
            assert error.status_code == status, error
            return status
        raise AssertionError("it was not refused")

    return asked


def kinds(model: str, clips: list[bytes], tokens: int) -> dict[str, list[Ask]]:
    """Requests by kind. Chats write ``tokens`` at most."""
    *short, long = clips
    drawn = {"temperature": 0.8, "seed": 7, "max_tokens": tokens}
    return {
        "transcription": [transcribed(model, clip) for clip in short],
        "transcription, text, srt": [transcribed(model, short[0], response_format=f) for f in ("text", "srt")],
        "transcription, streamed": [transcribed(model, clip, stream=True) for clip in short],
        "transcription, long": [transcribed(model, long, response_format=f) for f in ("verbose_json", "vtt")],
        "chat": [answered(model, f"Count to {n} in words.", max_tokens=tokens) for n in (3, 5, 8)],
        "chat, drawn": [answered(model, "Name an animal.", **drawn)],
        "chat, audio": [answered(model, "What was said?", clip, max_tokens=tokens) for clip in short],
        "chat, audio, streamed": [answered(model, "Who is it about?", short[0], max_tokens=tokens, stream=True)],
        "chat, tool required": [
            answered(model, "Whose name?", clip, tools=[TOOL], tool_choice="required") for clip in short[:2]
        ],
        "chat, JSON": [
            answered(
                model,
                "How many men?",
                short[1],
                response_format={"type": "json_schema", "json_schema": {"name": "men", "schema": SCHEMA}},
            )
        ],
        "refused": [
            refused(transcribed(model, b"no audio at all"), 400),
            refused(transcribed("another", short[0]), 404),
            refused(answered(model, "Well?", tool_choice="required"), 400),
            refused(answered(model, "Well?", temperature=3.0), 400),
        ],
    }


def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=1000, timeout=1800.0)


def load(url: str, asks: dict[str, list[Ask]], clients: int, each: int) -> dict[str, Any]:
    """``clients`` at once, ``each`` with so many requests of kinds in turn: latencies, rates, and what was not as alone."""
    every = [(kind, i) for kind, several in asks.items() for i in range(len(several))]
    one = client(url)
    alone = {(kind, i): asks[kind][i](one) for kind, i in every}
    plans = [[random.Random(f"{c} {r}").choice(every) for r in range(each)] for c in range(clients)]
    seconds, other = defaultdict[str, list[float]](list), defaultdict[str, int](int)

    def run(plan: list[tuple[str, int]]) -> None:
        mine = client(url)
        for kind, i in plan:
            began = time.perf_counter()
            same = asks[kind][i](mine) == alone[kind, i]
            seconds[kind].append(time.perf_counter() - began)
            other[kind] += not same
            if (done := sum(map(len, seconds.values()))) % 20 == 0:
                left = (time.perf_counter() - start) * (clients * each / done - 1)
                say(f"load: {done} of {clients * each} requests, about {left / 60:.0f} min left")

    before, start = _sent_away(url), time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(run, plans))
    took, times = time.perf_counter() - start, [s for kind, each in seconds.items() if kind != "refused" for s in each]
    rows = {kind: {**_spread(seconds[kind]), "not as alone": other[kind]} for kind in asks if seconds[kind]}
    return {
        "clients": clients,
        "requests": len(times),
        "seconds": round(took, 1),
        "requests a second": round(len(times) / took, 2),
        "sent away (429)": _sent_away(url) - before,
        "kinds": rows | {"all": {**_spread(times), "not as alone": sum(other.values())}},
    }


def say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def _spread(seconds: list[float]) -> dict[str, Any]:
    p50, p95 = np.percentile(seconds, [50, 95])
    return {"requests": len(seconds), "p50": round(float(p50), 3), "p95": round(float(p95), 3)}


def _sent_away(url: str) -> int:
    lines = requests.get(f"{url}/metrics", timeout=60).text.splitlines()
    return sum(int(float(n.split()[-1])) for n in lines if n.startswith("steermoe_requests_total") and '"429"' in n)


def together(url: str, asks: list[Ask], runs: int) -> dict[str, float]:
    """Requests a second, one at a time and ``WAITING`` at once: of ``runs`` in turn the medians."""
    work, rates = [asks[i % len(asks)] for i in range(2 * WAITING)], defaultdict[int, list[float]](list)
    for _ in range(runs):
        for clients in (1, WAITING):
            mine, began = client(url), time.perf_counter()
            with ThreadPoolExecutor(clients) as pool:
                list(pool.map(lambda ask, mine=mine: ask(mine), work))
            rates[clients].append(len(work) / (time.perf_counter() - began))
    one, many = median(rates[1]), median(rates[WAITING])
    say(f"{one:.2f} requests a second one at a time, {many:.2f} with {WAITING} waiting")
    return {"one at a time": round(one, 3), f"{WAITING} at once": round(many, 3), "times": round(many / one, 2)}


def first_words(url: str, model: str, clip: bytes, runs: int) -> float:
    """Seconds from the upload of ``clip`` to the first of its text, the median; 0 where no word is heard."""
    times, mine = [], client(url)
    for _ in range(runs):
        began = time.perf_counter()
        with mine.audio.transcriptions.create(model=model, file=clip, stream=True) as events:
            times.append(next((time.perf_counter() - began for event in events if event.type.endswith("delta")), 0.0))
    return round(median(times), 3)


def measure(
    url: str, model: str, clips: list[bytes], clients: int, each: int, tokens: int, runs: int
) -> dict[str, Any]:
    asks = kinds(model, clips, tokens)
    five = np.concatenate([soundfile.read(io.BytesIO(clip), dtype="float32")[0] for clip in clips])[: 5 * RATE]
    load(url, {kind: several[:1] for kind, several in asks.items()}, 1, 1)  # warm
    return {
        "first words of 5 s": first_words(url, model, wav(five), 2 * runs + 1),
        "waiting": {kind: together(url, asks[kind], runs) for kind in ("transcription", "chat", "chat, audio")},
        "load": load(url, asks, clients, each),
    }


def table(told: dict[str, Any]) -> str:
    """In Markdown."""
    found, rates = told["load"], told["waiting"]
    lines = ["| kind | requests | p50, s | p95, s | not as alone |", "|---|---|---|---|---|"]
    lines += [f"| {kind} | {' | '.join(map(str, row.values()))} |" for kind, row in found["kinds"].items()]
    lines += ["", f"| requests a second | {' | '.join(next(iter(rates.values())))} |", "|---|---|---|---|"]
    lines += [f"| {kind} | {' | '.join(map(str, row.values()))} |" for kind, row in rates.items()]
    lines += [
        "",
        f"{found['clients']} clients, {found['requests']} requests in {found['seconds']} s: {found['requests a second']} a second; "
        f"{found['sent away (429)']} times sent away, to come again. "
        f"First words of 5 s of speech {told['first words of 5 s']} s after its upload.",
    ]
    if "peak memory, MB" in told:
        lines[-1] += f" Peak memory of the server {told['peak memory, MB']} MB."
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", default="tiny")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=10, help="of each client")
    parser.add_argument("--tokens", type=int, default=64, help="that a chat writes at most")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--queue", default="48", help="fewer than the clients, so that some are sent away")
    parser.add_argument("--dtype", help="the server's; in float32 every answer must be the one given alone")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "serving_load.json")
    arguments = parser.parse_args()
    more = ["--dtype", arguments.dtype] if arguments.dtype else []
    with served(arguments.adapter, "--max-queue", arguments.queue, *more) as (url, process):
        (model,) = [model.id for model in client(url).models.list()]
        how = arguments.clients, arguments.requests, arguments.tokens, arguments.runs
        told = {
            "machine": f"{platform.machine()}, Python {platform.python_version()}",
            "dtype": arguments.dtype or "auto",
            "tokens": arguments.tokens,
        }
        told |= measure(url, model, clips(), *how)
        peak = next(line for line in Path(f"/proc/{process}/status").read_text().splitlines() if "VmHWM" in line)
        told["peak memory, MB"] = int(peak.split()[1]) // 1024
    arguments.out.write_text(json.dumps(told, indent=2) + "\n")
    print(table(told))


if __name__ == "__main__":
    main()

"""Many requests on a pair that is small: each is answered, each answer is the one given alone, and nothing piles up.

The benchmark of the server, so that it stays fit; and STEERMOE_SOAK requests to one process, 2,000 if it is not set.
"""

from __future__ import annotations

import os
import random
import runpy
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from steermoe.inference.ears import Ears
from tests.conftest import speechlike
from tests.serving.conftest import local, running, wav

BENCHMARK: dict[str, Any] = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "serving_load.py"))


def test_clients_that_are_sent_away_come_again(ears: Ears) -> None:
    clips = [wav(speechlike(0.7 + 0.3 * i, i)) for i in range(3)] + [wav(speechlike(33.0, 9))]
    engine = local(ears, max_queue=8)
    with running(engine) as url:
        engine.loaded.result(timeout=30)
        told = BENCHMARK["measure"](url, "tiny", clips, clients=12, each=2, tokens=4, runs=1)
    load = told["load"]
    refused = load["kinds"].get("refused", {"requests": 0})["requests"]  # on purpose: no load
    assert load["requests"] == load["kinds"]["all"]["requests"] == 24 - refused and load["sent away (429)"] > 0
    assert load["kinds"]["all"]["not as alone"] == 0
    assert all(rates["one at a time"] > 0 for rates in told["waiting"].values())
    shown = BENCHMARK["table"](told)
    assert f"| all | {24 - refused} |" in shown and "| chat, audio |" in shown


def held(process: int) -> tuple[float, int, int]:
    """Of a process: resident megabytes, threads, open files."""
    facts = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    return int(facts["VmRSS"].split()[0]) / 1024, int(facts["Threads"]), len(os.listdir(f"/proc/{process}/fd"))


@pytest.mark.slow
def test_nothing_piles_up(make: Callable[..., Ears], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory, threads, open files and temporary files of a server, after each tenth of its requests."""
    make(seed=1, prompt_vectors=2).model.save_adapter(tmp_path / "mine")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    for kept in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        monkeypatch.setenv(kept, "64")  # what is compiled for each shape; a thousand take thousands of requests to fill
    clips = [wav(speechlike(0.7 + 0.3 * i, i)) for i in range(3)] + [wav(speechlike(33.0, 9))]
    asks = [ask for several in BENCHMARK["kinds"]("mine", clips, 4).values() for ask in several]
    tenth, seen = int(os.environ.get("STEERMOE_SOAK", "2000")) // 10, []
    with BENCHMARK["served"](str(tmp_path / "mine")) as (url, process):
        for part in range(10):
            with ThreadPoolExecutor(8) as pool, BENCHMARK["client"](url) as client:
                chance = random.Random(part)
                list(pool.map(lambda ask, client=client: ask(client), chance.choices(asks, k=tenth)))
            time.sleep(1)  # lines are closed
            seen.append(held(process))
        assert list((tmp_path / "tmp").iterdir()) == []
    memory, threads, files = zip(*seen, strict=True)
    print(seen)
    settled = max(memory[2:5])  # buffers have grown to what these requests need
    assert max(memory[5:]) < 1.03 * settled and threads[-1] <= threads[2] and files[-1] <= files[2], seen

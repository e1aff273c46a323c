"""The benchmark of the server, on a pair that is small: every request is answered, every answer is the one given alone."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

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
    assert load["requests"] == load["kinds"]["all"]["requests"] == 24 and load["sent away (429)"] > 0
    assert load["kinds"]["all"]["not as alone"] == 0
    assert all(rates["one at a time"] > 0 for rates in told["waiting"].values())
    shown = BENCHMARK["table"](told)
    assert "| all | 24 |" in shown and "| chat, audio |" in shown

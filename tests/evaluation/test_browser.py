"""The report in headless Chromium: nothing on the console, tables sort, audio plays, nothing is fetched.

Needs playwright (PyPI) and a Chromium: on PATH, or named by STEERMOE_CHROMIUM; skipped where there is none.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from steermoe.data import Example
from steermoe.evaluation import evaluate_asr, write_report
from steermoe.evaluation.predictions import read_run

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = os.environ.get("STEERMOE_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"no Chromium: none of {', '.join(NAMES)} is on PATH and STEERMOE_CHROMIUM names none")
    arguments = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found, args=arguments)
        yield opened
        opened.close()


@pytest.fixture
def report(tmp_path: Path) -> Path:
    """Two runs over six clips of three speakers, the second one better."""
    examples, lengths = [], {}
    for i in range(6):
        time = np.arange(8_000 + 4_000 * i) / 16_000
        soundfile.write(tmp_path / f"{i}.wav", 0.1 * np.sin(2000 * time), 16_000)
        lengths[len(time)] = i
        examples.append(Example(f"clip-{i}", tmp_path / f"{i}.wav", "one two three four", speaker="ABC"[i % 3]))
    for name, words in (("a", "one"), ("b", "one two three")):
        evaluate_asr(
            lambda audio, words=words: [words + " x" * lengths[len(clip)] for clip in audio],  # type: ignore[misc]
            examples, data="mine", adapter=name, out=tmp_path / name, columns={"heard": lambda audio: ["four"] * len(audio)},
        )  # fmt: skip
    runs = [read_run(tmp_path / name) for name in ("a", "b")]
    return write_report(tmp_path / "report.html", title="Report", runs=runs)


def test_the_report_in_a_browser(browser: Any, report: Path) -> None:
    page = browser.new_page()
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(report.as_uri())
    assert page.title() == "Report" and page.locator("section").count() >= 5

    table = page.locator('table[aria-label^="By speaker"]').last
    column = "rows => rows.map(row => row.cells[3].textContent)"
    before = table.locator("tbody tr").evaluate_all(column)
    table.locator("th", has_text="WER").click()
    up = table.locator("tbody tr").evaluate_all(column)
    table.locator("th", has_text="WER").press("Enter")
    down = table.locator("tbody tr").evaluate_all(column)
    assert sorted(before) == sorted(up) and up == down[::-1] and len(set(up)) > 1
    assert [float(text.split()[0]) for text in up] == sorted(float(text.split()[0]) for text in up)

    rates = page.locator("table").first  # groups stay together
    rates.locator("thead th").nth(1).click()
    kinds = rates.locator("tbody tr").evaluate_all("rows => rows.map(row => row.className)")
    assert [i for i, kind in enumerate(kinds) if kind == "group"] == [0, 3]

    assert page.locator("audio").count() == 6
    assert played(page) == [True] * 6
    assert said == [] and all(url.startswith(("file:", "data:")) for url in asked)


def played(page: Any) -> list[Any]:
    """Whether each clip plays: for most of a second, or to its end."""
    told: list[Any] = page.evaluate(
        """() => Promise.all([...document.querySelectorAll("audio")].map(audio => new Promise(resolve => {
            const enough = () => audio.currentTime > 0.4 && resolve(audio.error === null);
            audio.muted = true;
            audio.addEventListener("timeupdate", enough);
            audio.addEventListener("ended", enough);
            audio.addEventListener("error", () => resolve(`error ${audio.error.code}: ${audio.error.message}`));
            audio.play().catch(problem => resolve(String(problem)));
        })))"""
    )
    return told


def test_the_report_that_is_published(browser: Any) -> None:
    page = browser.new_page(viewport={"width": 400, "height": 800})
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto((Path(__file__).parents[2] / "docs" / "report.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 400  # tables scroll, the page does not
    tables = page.locator("table")
    for i in range(tables.count()):
        head = tables.nth(i).locator("thead th").nth(1)
        head.click()
        assert head.get_attribute("aria-sort") == "ascending"
        head.click()
        assert head.get_attribute("aria-sort") == "descending"
    heard = played(page)
    assert len(heard) >= 10 and set(heard) == {True}
    assert said == []

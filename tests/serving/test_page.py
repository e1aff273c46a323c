"""The page in headless Chromium: choose or drop a file, record from a fake microphone, read the answer, play it back, see the
gates, ask about it, let it call, use another adapter.

Needs playwright (PyPI) and a Chromium: on PATH, or named by STEERMOE_CHROMIUM; skipped where there is none.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import torch

from steermoe import Conversation
from steermoe.inference.ears import Ears, load
from steermoe.serving.local import Local, named
from tests.conftest import speechlike
from tests.serving.conftest import running, wav

NAMES = ("chromium", "chromium-browser", "google-chrome", "chromium-headless-shell")


def test_it_loads_nothing_from_elsewhere(url: str) -> None:
    answer = requests.get(url)
    assert answer.status_code == 200 and "default-src 'none'" in answer.headers["content-security-policy"]
    assert not re.search(r"//\w|url\(|@import|import ", answer.text)  # comments have a space


def in_full(folder: Any) -> Ears:
    return load(folder, dtype=torch.float32)


@pytest.fixture
def adapters(make: Callable[..., Ears], tmp_path: Path) -> dict[str, Path]:
    for i in (1, 2):
        make(seed=i, prompt_vectors=2).model.save_adapter(tmp_path / f"a{i}")
    return named([str(tmp_path / "a1"), str(tmp_path / "a2")])


@pytest.fixture
def page(adapters: dict[str, Path], tmp_path: Path) -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = os.environ.get("STEERMOE_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"no Chromium: none of {', '.join(NAMES)} is on PATH and STEERMOE_CHROMIUM names none")
    (tmp_path / "spoken.wav").write_bytes(wav(speechlike(4.0, 1)))
    fake = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
    arguments = ["--no-sandbox", *fake, f"--use-file-for-fake-audio-capture={tmp_path / 'spoken.wav'}"]
    engine = Local(adapters, load=in_full)
    with running(engine) as url, api.sync_playwright() as playwright:
        engine.loaded.result(timeout=60)
        browser = playwright.chromium.launch(executable_path=found, args=arguments)
        opened = browser.new_page(viewport={"width": 360, "height": 740})
        opened.said = []
        opened.on("console", lambda message: opened.said.append(message.text))
        opened.on("pageerror", lambda error: opened.said.append(str(error)))
        opened.goto(url)
        opened.locator("#model option", has_text="a2").wait_for(state="attached")
        yield opened
        browser.close()


def status(page: Any, says: str) -> None:
    page.locator("#status", has_text=re.compile(says)).wait_for(timeout=30_000)


def becomes(page: Any, expression: str, value: Any) -> None:
    """wait_for_function would need what the page's policy forbids."""
    end = time.monotonic() + 30
    while (told := page.evaluate(expression)) != value:
        assert time.monotonic() < end, (expression, told)
        page.wait_for_timeout(50)


def choose(page: Any, content: bytes) -> None:
    page.set_input_files("#file", {"name": "a.wav", "mimeType": "audio/wav", "buffer": content})


def test_a_file_a_drop_and_a_recording(page: Any, adapters: dict[str, Path], clip: Callable[..., bytes]) -> None:
    first, second = (in_full(folder) for folder in adapters.values())
    content = clip(2.0, 1)
    choose(page, content)
    status(page, "^Done")
    assert page.inner_text("#text") == " ".join(str(first.transcribe(content)).split())
    page.select_option("#model", "a2")
    becomes(page, "document.getElementById('text').textContent.trim()", second.transcribe(content))
    choose(page, b"no audio")
    status(page, "not audio")
    page.evaluate(
        """bytes => {
            const files = new DataTransfer(), file = new File([new Uint8Array(bytes)], "dropped.wav");
            files.items.add(file);
            document.getElementById("drop").dispatchEvent(new DragEvent("drop", { dataTransfer: files, bubbles: true }));
        }""",
        list(clip(1.5, 4)),
    )
    status(page, "^Done")
    assert page.evaluate("document.getElementById('player').duration") == pytest.approx(1.5, abs=0.01)
    page.focus("#record")
    page.keyboard.press("Enter")
    page.locator("#record[aria-pressed=true]").wait_for()
    page.wait_for_timeout(2500)  # not as long as what was dropped
    page.keyboard.press("Enter")
    becomes(page, "!recorder && Math.abs(document.getElementById('player').duration - 1.5) > 0.01", True)
    status(page, "^Done")
    page.evaluate("document.getElementById('player').play()")
    becomes(page, "document.getElementById('player').currentTime > 0.1", True)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert not [line for line in page.said if "400" not in line]


def test_what_was_heard_and_questions_about_it(
    page: Any, adapters: dict[str, Path], clip: Callable[..., bytes]
) -> None:
    """With the keyboard alone, once a file is chosen."""
    ears, content = in_full(adapters["a1"]), clip(2.0, 1)
    choose(page, content)
    page.locator("#gates").wait_for()
    assert "Spectrogram of 2 seconds" in page.get_attribute("#picture", "aria-label")
    colours = page.evaluate(
        """() => { const c = document.getElementById("picture"), d = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
                   return new Set(new Uint32Array(d.buffer)).size; }"""
    )
    assert colours > 100 and page.locator("#numbers tr").count() == 3
    messages: list[Any] = [
        {"role": "user", "content": [{"type": "audio", "bytes": content}, {"type": "text", "text": "said the fox"}]}
    ]
    expected = Conversation(ears, messages).answer(max_new_tokens=256).text

    def ask(question: str) -> str:
        page.focus("#question")
        page.keyboard.type(question)
        lines = page.locator("#talk p").count()
        page.keyboard.press("Enter")
        becomes(page, "document.querySelectorAll('#talk p').length", lines + 2)  # the question, and what is answered
        status(page, "^Done")
        return str(page.locator("#talk p").last.text_content())

    assert ask("said the fox") == expected
    page.locator("summary", has_text="Tools").press("Enter")
    page.select_option("#choice", "required")
    assert re.match(r'lights\(\{"room": ?"(kitchen|bedroom)", ?"on": ?(true|false)\}\)', ask("very well"))
    page.select_option("#choice", "none")
    assert ask("quick") and page.locator("#talk p").count() == 6
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth") and page.said == []

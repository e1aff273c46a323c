"""The page in headless Chromium: choose a file, record from a fake microphone, read the answer, play it back.

Needs playwright (PyPI) and a Chromium: on PATH, or named by STEERMOE_CHROMIUM; skipped where there is none.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests

from steermoe.inference.ears import Ears
from tests.conftest import speechlike
from tests.serving.conftest import wav

NAMES = ("chromium", "chromium-browser", "google-chrome", "chromium-headless-shell")


def test_it_loads_nothing_from_elsewhere(url: str) -> None:
    answer = requests.get(url)
    assert answer.status_code == 200 and "default-src 'none'" in answer.headers["content-security-policy"]
    assert "//" not in answer.text.replace("// What browsers", "")


@pytest.fixture
def page(url: str, tmp_path: Any) -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = os.environ.get("STEERMOE_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"no Chromium: none of {', '.join(NAMES)} is on PATH and STEERMOE_CHROMIUM names none")
    (tmp_path / "spoken.wav").write_bytes(wav(speechlike(4.0, 1)))
    fake = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
    arguments = ["--no-sandbox", *fake, f"--use-file-for-fake-audio-capture={tmp_path / 'spoken.wav'}"]
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=arguments)
        opened = browser.new_page(viewport={"width": 360, "height": 740})
        opened.said = []
        opened.on("console", lambda message: opened.said.append(message.text))
        opened.on("pageerror", lambda error: opened.said.append(str(error)))
        opened.goto(url)
        opened.locator("#model option", has_text="tiny").wait_for(state="attached")
        yield opened
        browser.close()


def test_a_file_and_a_recording(page: Any, ears: Ears, clip: Callable[..., bytes]) -> None:
    def status(says: str) -> None:
        page.locator("#status", has_text=re.compile(says)).wait_for(timeout=20_000)

    content = clip(2.0, 1)
    page.set_input_files("#file", {"name": "a.wav", "mimeType": "audio/wav", "buffer": content})
    status("^Done")
    assert page.inner_text("#text") == " ".join(str(ears.transcribe(content)).split())
    page.set_input_files("#file", {"name": "a.wav", "mimeType": "audio/wav", "buffer": b"no audio"})
    status("not audio")
    page.focus("#record")
    page.keyboard.press("Enter")
    page.locator("#record[aria-pressed=true]").wait_for()
    page.wait_for_timeout(1500)
    page.keyboard.press("Enter")
    status("^Done")
    page.wait_for_timeout(200)
    assert page.evaluate("document.getElementById('player').duration") > 0.5
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert not [line for line in page.said if "400" not in line]

import subprocess
import sys
from pathlib import Path

import pytest

from steermoe.packages import build_once

SLOW_BUILD = """
import sys, time
from pathlib import Path
from steermoe.packages import build_once

def build(scratch):
    with open(sys.argv[2], "a") as log:
        log.write("built\\n")
    (scratch / "half").touch()
    time.sleep(0.5)
    (scratch / "whole").touch()

target = build_once(Path(sys.argv[1]), build)
assert (target / "whole").exists(), "a half-made folder was seen"
"""


def test_two_processes_build_once(tmp_path: Path) -> None:
    target, log = tmp_path / "model", tmp_path / "log"
    both = [subprocess.Popen([sys.executable, "-c", SLOW_BUILD, str(target), str(log)]) for _ in range(2)]
    assert [process.wait(timeout=60) for process in both] == [0, 0]
    assert log.read_text() == "built\n"


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    code = SLOW_BUILD.replace("time.sleep(0.5)", "import os; os.kill(os.getpid(), 9)")
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "m"), str(tmp_path / "log")]).returncode == -9
    assert not (tmp_path / "m").exists() and len(list(tmp_path.glob(".m.*"))) == 1
    build_once(tmp_path / "m", lambda scratch: (scratch / "whole").touch())
    assert [path.name for path in (tmp_path / "m").iterdir()] == ["whole"]
    assert not list(tmp_path.glob(".m.*"))


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def build(scratch: Path) -> None:
        (scratch / "half").touch()
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        build_once(tmp_path / "m", build)
    assert [path.name for path in tmp_path.iterdir()] == ["m.lock"]


def test_others_may_read_what_was_built(tmp_path: Path) -> None:
    target = build_once(tmp_path / "m", lambda scratch: None)
    (tmp_path / "plain").mkdir()
    assert target.stat().st_mode == (tmp_path / "plain").stat().st_mode

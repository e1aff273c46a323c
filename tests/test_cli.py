"""The command line: one line for every error, the right exit code, results alone on stdout, --help at once."""

from __future__ import annotations

import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import yaml

from steermoe.adapter import TENSORS
from steermoe.cli import main
from steermoe.inference.ears import Ears, load
from steermoe.pretrained import load_llm

Run = Callable[..., tuple[int, list[str], list[str]]]


@pytest.fixture
def run(capsys: Any) -> Run:
    """``run(*argv) -> (exit code, lines of stdout, lines of stderr)``."""

    def run(*argv: Any) -> tuple[int, list[str], list[str]]:
        capsys.readouterr()
        code = main([str(a) for a in argv])
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return code, said.out.splitlines(), said.err.splitlines()

    return run


@pytest.fixture(scope="module")
def adapter(ears: Ears, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "a"
    ears.model.save_adapter(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(adapter: Path) -> Ears:
    """As a command loads it: in the machine's own dtype."""
    return load(adapter)


@pytest.fixture
def recipe_file(recipe: dict[str, Any], tmp_path: Path) -> Path:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path / "run.yaml"


@pytest.fixture
def wav(tmp_path: Path, speech: Callable[..., np.ndarray]) -> Path:
    soundfile.write(tmp_path / "speech.wav", speech(1.2), 16_000)
    return tmp_path / "speech.wav"


def shell(*argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "steermoe", *argv], capture_output=True, text=True, **options)


# Errors. {tmp} is an empty folder, {wav} 1.2 s of sound, {recipe} and {adapter} work.


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        ("sing", 2, "invalid choice: 'sing'"),
        ("--sing", 2, "--sing"),
        ("transcribe", 2, "audio"),
        ("chat hi --audio {wav} there", 2, "unrecognized arguments: there"),
        ("train {recipe} --resume --sead 1", 2, "unrecognized arguments: --sead 1"),
        ("transcribe {wav} --formt srt", 2, "--formt srt; did you mean --format? (see `steermoe transcribe --help`)"),
        ("train {recipe} --init_from tiny", 2, "did you mean --init-from?"),
        ("train {recipe} --steps 5", 2, "keys of the recipe are given as KEY=VALUE"),
        ("train {recipe} data.train=[folder:nowhere]", 1, "data.train: folder:nowhere: there is no nowhere"),
        ("train {recipe} data.valid=folder:nowhere", 1, "data.valid: folder:nowhere: there is no nowhere"),
        ("evaluate --data {tmp}", 1, "is a folder: write folder:"),
        ("evaluate --data {wav} --tool-choice required", 2, "--tool-choice: goes with --suite tools, not asr"),
        ("evaluate --data {wav} --suite aqa --heard", 2, "--heard: goes with --suite asr, not aqa"),
        ("chat {wav}", 2, "is an audio file: give it as --audio"),
        ("transcribe {wav} --batch-size 0", 2, "--batch-size: invalid positive int value: '0'"),
        ("transcribe {wav} --batch-size x", 2, "--batch-size: invalid positive int value: 'x'"),
        ("evaluate", 2, "--data"),
        ("evaluate --data x --suite mmlu", 2, "--suite mmlu: there are asr"),
        ("evaluate --data {wav} --shard 1/2", 2, "--shard 1/2: needs --out"),
        ("evaluate --data {wav} --shard 3/2 --out x", 2, "--shard 3/2: give part and parts"),
        ("evaluate --data {wav} --against x", 2, "--against x: needs --out"),
        ("compare {tmp} {tmp}", 1, "no finished run"),
        ("report {tmp} --out {tmp}/r.html", 1, "no finished run"),
        ("evaluate --data fotak:test", 1, "fotak:test: no such source; did you mean 'fotaq'?"),
        ("evaluate --data {tmp}/absent.jsonl", 1, "absent.jsonl: no such manifest"),
        ("transcribe {tmp}/absent.wav", 1, "absent.wav: no such file"),
        ("transcribe {tmp}", 1, "no audio in this folder"),
        ("transcribe {recipe}", 1, "run.yaml: not audio that can be read"),
        ("transcribe {wav} --max-duration 1", 1, "1.2 s long, more than the limit of 1 s"),
        ("transcribe {wav} --adapter {tmp}", 1, "no adapter there"),
        ("transcribe {wav} --adapter nosuch", 1, "nosuch: no adapter there"),
        ("chat", 2, "nothing to answer: give a text, or --audio FILE"),
        ("chat hi --audio {tmp}/absent.wav", 1, "absent.wav: no such file"),
        ("chat hi --adapter {tmp}", 1, "no adapter there"),
        ("chat hi --tools {tmp}/absent.json", 2, "absent.json: no such file of tools"),
        ("chat hi --tools {recipe}", 2, "tools are a .json of schemas, or a .py that makes a Toolbox"),
        ("chat hi --adapter {adapter} --tool-choice sing", 2, "--tool-choice sing: needs --tools FILE"),
        ("inspect --adapter {tmp}", 1, "no adapter there"),
        ("fetch nosuch", 2, "'nosuch': no such folder"),
        ("train", 2, "config"),
        ("train {tmp}/absent.yaml", 2, "absent.yaml: no such recipe"),
        ("train {recipe} sead=1", 2, "unknown key 'sead'; did you mean 'seed'"),
        ("train {recipe} seed", 2, "write it as key=value"),
        ("train {recipe} model.encoder=nosuch", 2, "'nosuch': no such folder"),
        ("train {recipe} model.steer_layers=[7]", 2, "steer_layers=[7]: the encoder has 2 layers"),
        ("train {recipe} data.train={tmp}/absent.jsonl", 1, "no such manifest"),
        ("train {recipe} data.max_clip_seconds=0.01", 1, "no clip of at most 0.01 s"),
        ("train {recipe} --init-from nosuch", 1, "nosuch: no adapter there"),
        ("train {recipe} stages.0.clip=0", 2, "clip=0.0: the largest gradient norm must be positive"),
        ("train {recipe} stages.0.rates.router=-1", 2, "none may be negative"),
        ("train {recipe} data.valid_clips=0", 2, "valid_clips=0: must be at least 1"),
        ("transcribe {wav} --max-duration inf", 2, "invalid number of seconds value: 'inf'"),
        ("inspect --adapter {adapter} --out x.png", 2, "a picture needs an audio file"),
        ("train {recipe} out={wav}/x", 1, "speech.wav/x: Not a directory"),
    ],
)
def test_errors(
    run: Run, adapter: Path, recipe_file: Path, wav: Path, tmp_path: Path, argv: str, code: int, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    places = {"tmp": tmp_path / "empty", "wav": wav, "recipe": recipe_file, "adapter": adapter}
    got, out, err = run(*(word.format(**places) if "{" in word else word for word in argv.split()))
    assert got == code and out == []
    errors = [line for line in err if line.startswith("error: ")]
    assert len(errors) == 1 and err[-1] == errors[0] and message in errors[0]


def test_without_a_command_the_help(run: Run) -> None:
    code, out, err = run()
    assert code == 2 and out[0].startswith("usage: steermoe") and not err


def test_version(run: Run) -> None:
    code, (version,), _ = run("--version")
    assert code == 0 and version


def test_help_is_instant_and_without_torch() -> None:
    code = (
        "import sys\nfrom steermoe.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit as e: assert not e.code\n"
        "import steermoe\nassert 'load' in dir(steermoe)\n"
        "heavy = {'torch', 'transformers', 'numpy', 'matplotlib', 'accelerate'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    for command in ("fetch", "train", "evaluate", "compare", "report", "transcribe", "chat", "inspect", "quickstart"):
        assert re.search(rf"^    {command}\b", done.stdout, re.M)
    # Time of its own, which a busy machine does not change.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0


def test_a_process_says_one_line_too(tmp_path: Path) -> None:
    done = shell("train", str(tmp_path / "absent.yaml"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {tmp_path}/absent.yaml: no such recipe\n"


# Results.


def test_transcribe(run: Run, adapter: Path, wav: Path, loaded: Ears) -> None:
    wanted = loaded.transcribe(wav)
    code, out, _ = run("transcribe", wav, "--adapter", adapter)
    assert code == 0 and "\n".join(out) == "\n".join(str(wanted).splitlines())
    code, out, _ = run("transcribe", wav, "--adapter", adapter, "--json", wav.parent)
    rows = json.loads(out[-1])
    assert code == 0 and [r["path"] for r in rows] == [str(wav)] * 2 and {r["text"] for r in rows} == {wanted}
    assert (
        rows[0]["duration"] == 1.2
        and rows[0]["seconds"] > 0
        and set(rows[0]) == {"path", "text", "seconds", "duration", "segments"}
    )
    assert out[-1] == json.dumps(rows, ensure_ascii=False, separators=(",", ":"))


def test_transcribe_as_subtitles(run: Run, adapter: Path, wav: Path, loaded: Ears) -> None:
    from steermoe.inference.subtitles import subtitles

    for form in ("srt", "vtt"):
        code, out, _ = run("transcribe", wav, "--adapter", adapter, "--format", form)
        assert code == 0 and out == "".join(f"{cue}\n" for cue in subtitles(loaded.stream(wav), form)).splitlines()
    for more, says in (
        ([wav], "--format srt: .* there are 2 files: give one"),
        (["--json"], "there is --json: leave it"),
    ):
        code, out, err = run("transcribe", wav, "--adapter", adapter, "--format", "srt", *more)
        assert code == 2 and re.search(says, err[-1])


def test_transcribe_stdin(run: Run, adapter: Path, wav: Path, loaded: Ears, monkeypatch: Any) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(wav.read_bytes())))
    code, out, _ = run("transcribe", "-", "--adapter", adapter, "--json")
    assert code == 0 and json.loads(out[-1])[0]["text"] == loaded.transcribe(wav)


def test_one_bad_file_does_not_cost_the_others(run: Run, adapter: Path, wav: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.wav"
    soundfile.write(bad, np.full(9_000, np.nan, np.float32), 16_000, subtype="FLOAT")
    code, out, err = run("transcribe", bad, wav, "--adapter", adapter, "--json")
    good, lost = json.loads(out[-1])
    assert code == 1 and good["path"] == str(wav) and lost["path"] == str(bad) and "NaN" in lost["error"]
    assert next(line for line in err if "bad.wav" in line).startswith("error: ")
    assert err[-1] == "error: 1 of 2 files could not be read"
    code, out, err = run(
        "transcribe", wav.parent / "run.yaml", "--adapter", adapter, "--json"
    )  # the last line is JSON all the same
    assert code == 1 and [r["path"] for r in json.loads(out[-1])] == [str(wav.parent / "run.yaml")]


def test_a_folder_without_audio_does_not_cost_the_others(run: Run, adapter: Path, wav: Path, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    code, out, err = run("transcribe", tmp_path / "none", wav, "--adapter", adapter, "--json")
    assert code == 1 and [r["path"] for r in json.loads(out[-1])] == [str(wav), str(tmp_path / "none")]
    assert any("no audio in this folder" in line for line in err) and "1 of 2" in err[-1]


def test_inspect_says_what_it_looked_at(run: Run, adapter: Path, tmp_path: Path, speech: Any, make: Any) -> None:
    soundfile.write(tmp_path / "long.wav", speech(33.0), 16_000)
    code, out, _ = run("inspect", tmp_path / "long.wav", "--adapter", adapter)
    assert code == 0 and any("first 30 s of 33.0 s" in line for line in out)
    make(steer=False).model.save_adapter(tmp_path / "static")
    code, _, err = run("inspect", tmp_path / "long.wav", "--adapter", tmp_path / "static")
    assert code == 2 and "has no steering" in err[-1]


def test_chat(run: Run, adapter: Path, wav: Path, loaded: Ears) -> None:
    code, out, _ = run("chat", "very", "--system", "well", "--adapter", adapter, "--max-new-tokens", 5, "--json")
    messages = [{"role": "system", "content": "well"}, {"role": "user", "content": [{"type": "text", "text": "very"}]}]
    assert code == 0 and json.loads(out[-1]) == {"answer": loaded.chat(messages, max_new_tokens=5)}
    code, out, _ = run("chat", "very", "--audio", wav, "--adapter", adapter, "--max-new-tokens", 5, "--json")
    parts = [{"type": "audio", "path": str(wav)}, {"type": "text", "text": "very"}]
    assert json.loads(out[-1]) == {"answer": loaded.chat([{"role": "user", "content": parts}], max_new_tokens=5)}


def test_chat_shows_a_call_or_runs_it(run: Run, adapter: Path, wav: Path) -> None:
    examples = Path(__file__).parent.parent / "examples"
    options = ("--adapter", adapter, "--audio", wav, "--tool-choice", "set_timer", "--max-new-tokens", 24)
    code, shown, _ = run("chat", *options, "--tools", examples / "tools.json")
    assert code == 0 and shown[0].startswith("user: [speech.wav, 1.2 s]")
    assert len(shown) == 2 and shown[1].startswith('assistant: calls set_timer({"minutes": ')
    code, ran, _ = run("chat", *options, "--tools", examples / "functions.py", "--json")
    value = json.loads(ran[-1])
    assert code == 0 and [m["role"] for m in value["messages"][:3]] == ["user", "assistant", "tool"]
    assert value["messages"][2]["content"].endswith("minutes.") and value["answer"] == value["messages"][-1]["content"]


def test_evaluate(run: Run, adapter: Path, manifest: Path, tmp_path: Path) -> None:
    code, out, _ = run(
        "evaluate", "--data", manifest, "--limit", 3, "--adapter", adapter, "--json", "--out", tmp_path / "o"
    )
    value = json.loads(out[-1])
    assert code == 0 and value["suite"] == "asr" and value["n"] == 3 and value["data"].endswith("clips.jsonl[:3]")
    assert {"wer", "cer", "wer_raw", "cer_raw"} <= set(value["metrics"]) and len(value["interval"]["wer"]) == 2
    assert (tmp_path / "o" / "predictions.jsonl").read_text().count("\n") == 3
    same = ("evaluate", "--data", manifest, "--limit", 3, "--adapter", adapter)
    for part in ("1/2", "2/2"):
        assert run(*same, "--shard", part, "--out", tmp_path / "p")[0] == 0
    code, out, _ = run(*same, "--out", tmp_path / "p", "--against", tmp_path / "o", "--json")
    merged = json.loads(out[-1])
    assert merged["metrics"] == value["metrics"] and merged["against"]["difference"] == 0
    code, out, _ = run("compare", tmp_path / "o", tmp_path / "p", "--out", tmp_path / "both.html")
    assert code == 0 and "difference +0.00 points" in out[-1] and "p = 1.000" in out[-1]
    assert "Before and after" in (tmp_path / "both.html").read_text()
    page = tmp_path / "page.html"
    said = ("report", tmp_path / "o", tmp_path / "p", "--out", page, "--title", "All of it")
    assert (
        run(*said)[:2] == (0, [str(page)]) and "<title>All of it" in page.read_text() and "<audio" in page.read_text()
    )
    assert run(*said, "--play", tmp_path / "o")[0] == 0
    code, _, err = run(*said, "--play", tmp_path)
    assert code == 2 and "is none of the runs" in err[-1]


def test_evaluate_over_http_needs_a_model_name(run: Run, wav: Path) -> None:
    for argv, words in (("--endpoint http://x/v1", "needs --model"), ("--model m", "is the name at an --endpoint")):
        code, _, err = run("evaluate", "--suite", "text", *argv.split())
        assert code == 2 and words in err[-1]


def test_inspect(run: Run, adapter: Path, wav: Path, tmp_path: Path) -> None:
    code, out, _ = run("inspect", wav, "--adapter", adapter, "--json", "--out", tmp_path / "gates.png")
    value = json.loads(out[-1])
    assert code == 0 and len(value["scales"]) == 2
    assert value["trained"] == sum(n for k, n in value["parameters"].items() if not k.startswith("frozen"))
    for name in ("gates.png", "gates-usage.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert all(start < end for start, end, _ in value["words"])


def test_train(run: Run, recipe_file: Path, recipe: dict[str, Any], wav: Path) -> None:
    code, out, err = run("train", recipe_file, "stages.0.steps=1", "stages.1.steps=1", "--json")
    adapter = f"{recipe['out']}/adapter"
    assert code == 0 and [json.loads(line) for line in out] == [{"adapter": adapter}]
    assert err[-1] == f"adapter: {adapter}"
    assert run("transcribe", wav, "--adapter", adapter)[0] == 0
    code, _, err = run("train", recipe_file)
    assert code == 2 and "holds a run already: continue it with --resume" in err[-1]


def test_ctrl_c_leaves_a_checkpoint_to_resume(run: Run, recipe_file: Path, recipe: dict[str, Any]) -> None:
    out = Path(recipe["out"])
    child = subprocess.Popen(
        [sys.executable, "-m", "steermoe", "train", recipe_file, "stages.0.steps=5000"],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 240
    while not (out / "metrics.jsonl").is_file() or (out / "metrics.jsonl").read_text().count("\n") < 2:
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(child.pid, signal.SIGINT)
    stdout, stderr = child.communicate(timeout=240)
    assert child.returncode == 130 and stdout == "" and "Traceback" not in stderr
    last = stderr.splitlines()[-1]
    step = int(last.split("step ")[1].split(";")[0])
    assert last.startswith("error: interrupted after step") and last.endswith("continue with --resume")
    assert not (out / "adapter").exists()
    code, _, _ = run("train", recipe_file, f"stages.0.steps={step + 2}", "--resume")
    assert code == 0 and (out / "adapter" / TENSORS).is_file()
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, step + 2 + 4 + 1))


def test_a_reader_that_leaves_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as gone:
        child = subprocess.Popen(
            [sys.executable, "-m", "steermoe", "--version"], stdout=gone, stderr=subprocess.PIPE, text=True
        )
        _, stderr = child.communicate(timeout=60)
    assert (child.returncode, stderr) == (0, "")


def test_inspect_pair(run: Run, pair: Any, tmp_path: Path) -> None:
    code, out, _ = run("inspect", "--pair", pair.encoder, pair.llm, "--json")
    value = json.loads(out[-1])
    assert code == 0
    assert (value["layers"], value["layers_at"], value["width"], value["llm_width"]) == (2, "layers", 32, 48)
    assert (value["frames_a_second"], value["audio_tokens_a_second"], value["window"]) == (50, 12.5, 30)
    # L N D vectors, (D + 1) L N of router, L scales; (D + 1) D_llm of the linear projection
    assert value["trained"]["steering"] == 2 * 8 * 32 + 33 * 2 * 8 + 2
    assert value["trained"]["linear"] == 33 * 48
    llm = load_llm(pair.llm)
    assert value["frozen"]["llm"] == sum(p.numel() for p in llm.parameters())  # a tied head counts once
    assert value["bytes"]["llm"] == value["frozen"]["llm"] * llm.dtype.itemsize
    code, out, _ = run("inspect", "--pair", pair.encoder, pair.llm)
    assert code == 0
    assert "2 x WhisperEncoderLayer at layers, width 32" in "\n".join(out)
    code, _, err = run("inspect", "--pair", pair.encoder, pair.llm, "--out", tmp_path / "x.png")
    assert code == 2
    assert "nothing is heard" in err[-1]


def test_a_file_of_any_name_is_transcribed(adapter: Path, wav: Path) -> None:
    folder = wav.parent / "names"
    folder.mkdir()
    for name in (b"caf\xe9.wav", b"z.wav"):
        shutil.copy(wav, os.fsdecode(bytes(folder) + b"/" + name))
    done = shell("transcribe", str(folder), "--adapter", str(adapter))
    assert done.returncode == 0 and [Path(line.split("\t")[0]).name for line in done.stdout.splitlines()] == [
        "caf\\udce9.wav",
        "z.wav",
    ]

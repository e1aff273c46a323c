"""Miniature trees of published datasets, laid out as their publishers ship them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import soundfile

WORDS = ["VERY VERY WELL", "REPEAT THE TEXT", "THE QUICK BROWN FOX", "SAID"]


def clip(path: Path, seconds: float = 0.5, rate: int = 16_000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(path.name)).standard_normal(round(seconds * rate)) * 0.1
    soundfile.write(path, noise, rate)
    return path


def encoded(seconds: float, kind: str = "FLAC", rate: int = 16_000) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.random.default_rng(0).standard_normal(round(seconds * rate)) * 0.1, rate, format=kind)
    return buffer.getvalue()


def librispeech(root: Path, *splits: str) -> Path:
    for split in splits or ("test-clean",):
        for speaker, chapter in (("84", "121123"), ("1089", "134686")):
            folder = root / "LibriSpeech" / split / speaker / chapter
            names = [f"{speaker}-{chapter}-{i:04d}" for i in range(3)]
            for i, name in enumerate(names):
                clip(folder / f"{name}.flac", 2 + 0.4 * i)
            lines = [f"{name} {WORDS[i]}\n" for i, name in enumerate(names)]
            (folder / f"{speaker}-{chapter}.trans.txt").write_text("".join(lines))
    return root


def aishell1(root: Path) -> Path:
    lines = []
    for split, speaker in (("train", "S0002"), ("dev", "S0724"), ("test", "S0764")):
        for i in range(2):
            name = f"BAC009{speaker}W012{i}"
            clip(root / f"data_aishell/wav/{split}/{speaker}/{name}.wav")
            lines.append(f"{name} 而 对 楼市 成交 抑制\n")
    clip(root / "data_aishell/wav/train/S0002/BAC009S0002W0999.wav")  # no text
    (root / "data_aishell/transcript").mkdir()
    (root / "data_aishell/transcript/aishell_transcript_v0.8.txt").write_text("".join(lines))
    return root


def aishell2(root: Path) -> Path:
    places = (
        "AISHELL-2/iOS/data",
        "AISHELL-DEV-TEST-SET/iOS/dev",
        "AISHELL-DEV-TEST-SET/iOS/test",
        "AISHELL-DEV-TEST-SET/Mic/test",
    )
    for place in places:
        names = [f"IC0001W000{i}" for i in range(2)]
        for name in names:
            clip(root / place / f"wav/C0001/{name}.wav")
        (root / place / "wav.scp").write_text("".join(f"{n}\twav/C0001/{n}.wav\n" for n in names))
        (root / place / "trans.txt").write_text("".join(f"{n}\t打开 wifi 开关\n" for n in names))
    return root


def clotho_aqa(root: Path) -> Path:
    rows = ["file_name,QuestionText,answer,confidence"]
    for name in ("rain, heavy.wav", "dog.wav"):
        clip(root / "audio_files" / name, 0.6)
        for question, answers in (("Is it loud?", ("yes", "no", "yes")), ("What is it?", ("rain", "rain", "water"))):
            rows += [f'"{name}",{question},{answer},yes' for answer in answers]
    for split in ("train", "val", "test"):
        (root / f"clotho_aqa_{split}.csv").write_text("\n".join(rows) + "\n")
    return root


def common_voice(root: Path) -> Path:
    folder = root / "cv-corpus-20/de"
    head = "client_id\tpath\tsentence_id\tsentence\tup_votes\tdown_votes\tlocale\n"
    names = [f"common_voice_de_{i}.mp3" for i in range(2)]
    for name in names:
        clip(folder / "clips" / name, 0.5, 32_000)
    rows = "".join(f'a{i}\t{name}\tx\tEr sagte: "gut\t2\t0\tde\n' for i, name in enumerate(names))
    for split in ("train", "dev", "test"):
        (folder / f"{split}.tsv").write_text(head + rows)
    (folder / "clip_durations.tsv").write_text("clip\tduration[ms]\n" + "".join(f"{n}\t500\n" for n in names))
    return folder


def webdataset(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for shard in range(2):
        with tarfile.open(root / f"shard-{shard:03d}.tar", "w") as tar:
            for i in range(2):
                sample = {"flac": encoded(0.4 + 0.1 * i), "json": json.dumps({"text": WORDS[i], "lang": "en"}).encode()}
                for ending, content in sample.items():
                    info = tarfile.TarInfo(f"s{shard}/{i:06d}.{ending}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return root


def folder(root: Path, count: int = 4) -> Path:
    for i in range(count):
        clip(root / f"day{i % 2}" / f"{i}.wav").with_suffix(".txt").write_text(WORDS[i % 4].lower() + "\n")
    return root

"""What do the experts do? Numbers and figures for docs/router.md.

    python benchmarks/router_study.py [--adapter tiny] [--clips 40] [--out docs/router]

1. What the experts follow. Flite's four voices speak the same sentences and print where each phoneme lies; the mutual
   information of each layer's first expert (the one with the largest gate) with phoneme, voice, silence and "a word is read
   here", and, on fotaq:test, with the character who speaks; each clip again with pink noise at 10 dB for "noisy or not". All
   against chance: see steermoe/routing.py.
2. What the steering does. WER (CTC text, no LLM) on the first clips of fotaq:valid with one expert switched off, one layer
   switched off, and all scales multiplied. Finished numbers are kept in OUT.json and not computed again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from steermoe.analysis import routing_statistics
from steermoe.audio import RATE, decode
from steermoe.data import load_source
from steermoe.data.augment import add_noise
from steermoe.data.texts import simple_texts
from steermoe.data.tts import FLITE, FLITE_LIB, Flite
from steermoe.errors import UsageError
from steermoe.evaluation import scoring
from steermoe.evaluation.listener import adapter_digest
from steermoe.inference.ears import Ears, load
from steermoe.inspection import gates_of
from steermoe.packages import unpacked
from steermoe.routing import against_chance

STRENGTHS = (0.0, 0.5, 1.5, 2.0)
QUIET = 1e-3  # of a clip's loudest frame: silence, 30 dB down


def spoken(text: str, voice: str, folder: Path) -> tuple[np.ndarray, list[tuple[float, str]]]:
    """Flite's speech at 16 kHz, and (end in seconds, phoneme) of each phoneme."""
    library = next((unpacked(FLITE_LIB) / "usr" / "lib").glob("*-linux-*"))
    command = [
        str(unpacked(FLITE) / "usr/bin/flite"),
        "-voice",
        voice,
        "-psdur",
        "-t",
        text,
        "-o",
        str(folder / "x.wav"),
    ]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(library)}
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()
    samples, rate = soundfile.read(folder / "x.wav", dtype="float32")
    ends = [(float(end), name) for name, _, end in (item.rpartition(":") for item in told)]
    return decode(samples, sampling_rate=rate), ends


def choices_of(ears: Ears, samples: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Of each steered layer: the first expert of each frame (T,), and the gates (T, N)."""
    gates, _, _ = gates_of(ears, samples)
    return [gate.argmax(axis=1) for gate in gates], gates


def frames_of(times: list[tuple[float, str]], count: int, rate: float) -> np.ndarray:
    """The label at the middle of each of ``count`` frames."""
    ends = np.array([end for end, _ in times])
    at = np.minimum(np.searchsorted(ends, (np.arange(count) + 0.5) / rate), len(ends) - 1)
    return np.array([times[i][1] for i in at])


def silent(samples: np.ndarray, count: int) -> np.ndarray:
    """Whether each of ``count`` frames is QUIET."""
    size = len(samples) / count
    power = np.array(
        [np.mean(samples[int(i * size) : max(int(i * size) + 1, int((i + 1) * size))] ** 2) for i in range(count)]
    )
    return power < QUIET * power.max()


@torch.inference_mode()
def word_frames(ears: Ears, samples: np.ndarray, count: int) -> np.ndarray:
    """Whether the lexical projector reads a word at each of ``count`` encoder frames, by its best token."""
    from steermoe.inspection import words_of

    marks = np.zeros(count, dtype=bool)
    for start, end, _ in words_of(ears, samples):
        marks[int(start * ears.model.frames.rate) : int(end * ears.model.frames.rate)] = True
    return marks


def follow(ears: Ears, clips: int, folder: Path) -> dict[str, Any]:
    """Layer by layer, what the first expert tells about."""
    found: dict[str, tuple[list[list[np.ndarray]], list[np.ndarray]]] = {}
    gates: list[list[np.ndarray]] = []

    def add(name: str, chosen: list[np.ndarray], labels: np.ndarray) -> None:
        rows, told = found.setdefault(name, ([], []))
        rows.append(chosen)
        told.append(labels)

    texts = random.Random(0).sample(sorted(set(simple_texts(400))), max(4, clips // 4))
    for text in texts:
        for voice in Flite.voices:
            samples, ends = spoken(text, voice, folder)
            chosen, gate = choices_of(ears, samples)
            count = len(chosen[0])
            gates.append(gate)
            add("phoneme", chosen, frames_of(ends, count, ears.model.frames.rate))
            add("voice", chosen, np.full(count, Flite.voices.index(voice)))
            add("silence", chosen, silent(samples, count))
            add("word read here", chosen, word_frames(ears, samples, count))
    humans = load_source("fotaq:test")
    for clip in random.Random(0).sample(humans, min(clips, len(humans))):
        samples = clip.load()
        chosen, gate = choices_of(ears, samples)
        gates.append(gate)
        add("character (human)", chosen, np.full(len(chosen[0]), str(clip.speaker)))
        add("silence (human)", chosen, silent(samples, len(chosen[0])))
        noisy, _ = choices_of(ears, add_noise(samples, 10, np.random.default_rng(0), colour=1.0))
        for name, mine in (("noise 10 dB (human)", chosen), ("noise 10 dB (human)", noisy)):
            add(name, mine, np.full(len(mine[0]), mine is noisy))
    layers = len(gates[0])
    result = {name: [against_chance([row[layer] for row in rows], told) for layer in range(layers)]
              for name, (rows, told) in found.items()}  # fmt: skip
    joined = [np.concatenate([gate[layer] for gate in gates]) for layer in range(layers)]
    return {"labels": result, "routing": routing_statistics(joined)}


@contextmanager
def without(ears: Ears, layer: int, expert: int | None) -> Iterator[None]:
    """Within the block a steered layer's expert adds nothing, or none of its experts does."""
    steering = ears.model.steering
    assert steering is not None
    rows = slice(None) if expert is None else slice(expert, expert + 1)
    kept = steering.vectors.data[layer, rows].clone()
    steering.vectors.data[layer, rows] = 0
    try:
        yield
    finally:
        steering.vectors.data[layer, rows] = kept


def ablate(ears: Ears, clips: int, done: dict[str, Any], save: Any) -> dict[str, Any]:
    """WER with parts of the steering switched off; what ``done`` holds is not computed again."""
    steering = ears.model.steering
    assert steering is not None
    examples = load_source("fotaq:valid")[:clips]
    audio, texts = [e.load() for e in examples], [e.text for e in examples]

    def counts() -> np.ndarray:
        return scoring.score(texts, list(ears.hear(audio, sampling_rate=RATE))).words

    whole = counts()

    def measure(name: str, block: Any) -> None:
        if name in done:
            return
        with block:
            mine = counts()
        done[name] = {"wer": scoring.rate(mine), "difference": scoring.rate(mine) - scoring.rate(whole),
                      "p": scoring.paired_p(whole, mine)}  # fmt: skip
        print(name, done[name], flush=True)
        save()

    if done.get("adapter", adapter_digest(ears)) != adapter_digest(ears):
        raise UsageError("what was computed is of another adapter: give another --out")
    done["adapter"] = adapter_digest(ears)
    done["whole"] = {"wer": scoring.rate(whole), "interval": scoring.interval(whole), "clips": len(texts)}
    for strength in STRENGTHS:
        measure(f"scale {strength:g}", steering.scaled(strength))
    for layer in range(steering.num_layers):
        measure(f"layer {layer + 1}", without(ears, layer, None))
    for layer in range(steering.num_layers):
        for expert in range(steering.num_experts):
            measure(f"layer {layer + 1} expert {expert + 1}", without(ears, layer, expert))
    return done


def draw(told: dict[str, Any], path: Path) -> None:
    """Two figures: OUT-follows.png and OUT-ablation.png."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    labels = told["follow"]["labels"]
    figure = Figure(figsize=(8, 3.2), dpi=140, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.add_subplot()
    shares = np.array([[max(0.0, layer["share"]) for layer in rows] for rows in labels.values()])
    image = axis.imshow(100 * shares, cmap="viridis", aspect="auto", vmin=0)
    for (row, layer), share in np.ndenumerate(shares):
        mark = "" if list(labels.values())[row][layer]["p"] < 0.05 else " n.s."
        axis.text(layer, row, f"{100 * share:.1f}{mark}", ha="center", va="center", fontsize=8,
                  color="black" if share > 0.6 * shares.max() else "white")  # fmt: skip
    axis.set_yticks(range(len(labels)), list(labels))
    axis.set_xticks(range(shares.shape[1]), [f"layer {i + 1}" for i in range(shares.shape[1])])
    figure.colorbar(image, label="% of the label's entropy, above chance")
    figure.savefig(path.with_name(path.name + "-follows.png"))
    ablation = told.get("ablation", {})
    single = {name: value["difference"] for name, value in ablation.items() if "expert" in name}
    if not single:
        return
    layers = max(int(name.split()[1]) for name in single)
    experts = max(int(name.split()[3]) for name in single)
    grid = np.full((layers, experts), np.nan)
    for name, value in single.items():
        grid[int(name.split()[1]) - 1, int(name.split()[3]) - 1] = 100 * value
    figure = Figure(figsize=(8, 3.2), dpi=140, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.add_subplot()
    most = float(np.nanmax(np.abs(grid))) or 1.0
    image = axis.imshow(grid, cmap="RdBu_r", vmin=-most, vmax=most, aspect="auto")
    for (row, column), value in np.ndenumerate(grid):
        axis.text(column, row, f"{value:+.1f}", ha="center", va="center", fontsize=8)
    axis.set_yticks(range(layers), [f"layer {i + 1}" for i in range(layers)])
    axis.set_xticks(range(experts), [str(i + 1) for i in range(experts)])
    axis.set_xlabel("expert switched off")
    figure.colorbar(image, label="WER, points more")
    figure.savefig(path.with_name(path.name + "-ablation.png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", default="tiny")
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("docs/router"))
    arguments = parser.parse_args()
    file = arguments.out.with_name(arguments.out.name + ".json")
    told: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}

    def save() -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(told, indent=1) + "\n")

    ears = load(arguments.adapter)
    if "follow" not in told:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            told["follow"] = follow(ears, arguments.clips, Path(folder))
        save()
    ablate(ears, arguments.clips, told.setdefault("ablation", {}), save)
    draw(told, arguments.out)


if __name__ == "__main__":
    main()

"""``questions``: 60 short questions with one right answer each, spoken by voices that no training heard.

General knowledge, arithmetic, instructions: made for this project, for the ``gap`` between text and speech. Kokoro's
held-out voices (see synth.py) take turns, so the audio is made on first use and needs no recording. ``more``: ``kind``, and
``others``, answers of the same sort that are wrong.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ..audio import RATE, decode
from ..errors import DataError
from ..packages import build_once, cache_root
from .manifest import Example, read_manifest, write_manifest
from .tts import HELD_OUT, Engine, Kokoro

_DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
_COLOURS = ["red", "green", "blue", "yellow", "white", "black", "orange"]
_CITIES = ["Paris", "London", "Rome", "Berlin", "Madrid", "Tokyo", "Cairo"]
_ANIMALS = ["cat", "dog", "cow", "horse", "duck", "pig", "sheep", "bird"]
_PLANETS = ["Mercury", "Venus", "Mars", "Jupiter", "Saturn"]
# question, answer, what else an answer might name
KNOWLEDGE: list[tuple[str, str, list[str]]] = [
    ("What is the capital of France?", "Paris", _CITIES),
    ("What is the capital of Italy?", "Rome", _CITIES),
    ("What is the capital of Japan?", "Tokyo", _CITIES),
    ("What is the capital of England?", "London", _CITIES),
    ("What is the capital of Egypt?", "Cairo", _CITIES),
    ("What is the capital of Germany?", "Berlin", _CITIES),
    ("Which day comes after Monday?", "Tuesday", _DAYS),
    ("Which day comes before Sunday?", "Saturday", _DAYS),
    ("What is the colour of fresh grass?", "green", _COLOURS),
    ("What is the colour of snow?", "white", _COLOURS),
    ("What is the colour of a ripe banana?", "yellow", _COLOURS),
    ("Which animal says meow?", "cat", _ANIMALS),
    ("Which animal barks?", "dog", _ANIMALS),
    ("Which animal gives us wool?", "sheep", _ANIMALS),
    ("Which planet is the largest in our solar system?", "Jupiter", _PLANETS),
    ("Which planet is called the red planet?", "Mars", _PLANETS),
    ("Who wrote Romeo and Juliet?", "Shakespeare", ["Dickens", "Austen", "Tolstoy", "Homer"]),
    ("What do bees make?", "honey", ["milk", "silk", "butter", "bread"]),
    ("In which season does it snow?", "winter", ["spring", "summer", "autumn"]),
    ("What is frozen water called?", "ice", ["steam", "fog", "rain", "mist"]),
]
ARITHMETIC: list[tuple[str, str]] = [
    ("What is two plus three?", "5"), ("What is four plus four?", "8"), ("What is ten plus five?", "15"),
    ("What is seven plus six?", "13"), ("What is twenty plus thirty?", "50"), ("What is nine minus four?", "5"),
    ("What is ten minus three?", "7"), ("What is twelve minus five?", "7"), ("What is fifteen minus nine?", "6"),
    ("What is three times three?", "9"), ("What is two times six?", "12"), ("What is five times four?", "20"),
    ("What is ten times ten?", "100"), ("What is eight divided by two?", "4"), ("What is twenty divided by five?", "4"),
    ("How many days are in a week?", "7"), ("How many months are in a year?", "12"), ("How many legs does a spider have?", "8"),
    ("How many minutes are in an hour?", "60"), ("What is half of eighteen?", "9"),
]  # fmt: skip
INSTRUCTIONS: list[tuple[str, str]] = [
    ("Say only the word apple.", "apple"), ("Say only the word river.", "river"),
    ("Repeat this word and nothing else: window.", "window"), ("Answer with yes or no only: is fire hot?", "yes"),
    ("Answer with yes or no only: can fish fly to the moon?", "no"), ("Answer with yes or no only: is ice cold?", "yes"),
    ("Answer with yes or no only: is the sun a planet?", "no"), ("Answer with one word: what is the opposite of hot?", "cold"),
    ("Answer with one word: what is the opposite of big?", "small"), ("Answer with one word: what is the opposite of up?", "down"),
    ("Answer with one word: what is the opposite of day?", "night"), ("Answer with a number only: how many eyes do you see with?", "2"),
    ("Count from one to three, and write nothing else.", "1 2 3"), ("Write the word hello three times.", "hello hello hello"),
    ("Say good morning, and nothing else.", "good morning"), ("Say thank you, and nothing else.", "thank you"),
    ("Answer with one word: what is the plural of mouse?", "mice"), ("Answer with one word: what is the past tense of go?", "went"),
    ("Answer with one letter: what comes after A in the alphabet?", "B"), ("Translate into Spanish with one word: hello.", "hola"),
]  # fmt: skip


def rows() -> list[dict[str, Any]]:
    """All questions, as rows of a manifest without audio."""
    told: list[dict[str, Any]] = [
        {"prompt": q, "text": a, "kind": "knowledge", "others": [o for o in others if o != a]}
        for q, a, others in KNOWLEDGE
    ]
    told += [{"prompt": q, "text": a, "kind": "arithmetic"} for q, a in ARITHMETIC]
    told += [{"prompt": q, "text": a, "kind": "instruction"} for q, a in INSTRUCTIONS]
    return [
        {"id": f"{row['kind']}-{i + 1:02}", "speaker": HELD_OUT[i % len(HELD_OUT)], **row} for i, row in enumerate(told)
    ]


def load(split: str = "test", root: Path | None = None) -> list[Example]:
    """All questions; there is only ``test``, and ``root`` is not used. Spoken on first use."""
    if split not in ("", "test"):
        raise DataError(f"questions has no split {split!r}; it has test")
    digest = hashlib.sha256(json.dumps(rows()).encode()).hexdigest()[:12]
    target = cache_root() / "data" / "questions" / digest
    return read_manifest(build_once(target, lambda scratch: speak(scratch, Kokoro())) / "manifest.jsonl")


def speak(folder: Path, engine: Engine) -> None:
    """Write every question as a FLAC file, and ``manifest.jsonl``."""
    import soundfile

    spoken = rows()
    for row in spoken:
        samples, rate = engine.speak(row["prompt"], row["speaker"])
        samples = decode(samples, sampling_rate=rate)
        row |= {"audio": f"{row['id']}.flac", "duration": len(samples) / RATE, "language": "en"}
        soundfile.write(folder / row["audio"], samples, RATE, subtype="PCM_16")
    write_manifest(folder / "manifest.jsonl", spoken)

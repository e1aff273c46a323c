"""``synth``: text spoken by offline engines, so that an LLM gets ears from text alone.

Utterance i is a pure function of i: its text, engine, voice, pace and vocal-tract factor. Utterances are
made in shards of 200, of 50 where Kokoro speaks alone; a shard is a folder that is absent or whole, so making
them can be interrupted, resumed, and shared by two processes. No audio is ever committed: this recipe is.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..packages import build_once, cache_root
from .actors import Actors, actor
from .fotaq import line_key
from .held_out import test_lines
from .manifest import Example, read_manifest
from .talk import short_texts, talk_texts, word_texts
from .texts import simple_texts, wordnet_texts
from .tts import HELD_OUT, Engine, Flite, Hibari, Kokoro
from .vocabulary import rarer_texts, vocabulary_texts
from .voices import natural_voice, voice_texts

ENGINES: dict[str, type[Engine]] = {"hibari": Hibari, "kokoro": Kokoro, "actors": Actors, "flite": Flite}
SHARD = 200
RATE = 16_000
# Natural voices are worth most and cost most: Kokoro takes 50 times as long as the others, so only the first
# 10,000 utterances have it; those beyond are for the width of the texts.
KOKORO_UNTIL = 10_000
MIX = {"hibari": 0.46, "flite": 0.49, "kokoro": 0.05}
FLITE_VOICES = {"awb": 0.3, "rms": 0.3, "slt": 0.3, "kal16": 0.1}
WITH_VOICES = 4_000  # texts of ``voices``, its first 80 shards, that ``vocabulary`` goes with
LAST_TWICE = 5_350  # texts of ``vocabulary``; behind them all words that it begins to say after its first 63 shards come twice more
TEXTS: dict[str, Callable[[], list[str]]] = {
    "wordnet-v1": wordnet_texts,
    "simple-v1": simple_texts,
    "talk-v1": talk_texts,
    "words-v1": word_texts,
    "voices-v1": lambda: voice_texts(_valid_texts()),
    "vocabulary-v1": lambda: _vocabulary_texts(),
    "short-v1": lambda: [text for text in short_texts() if line_key(text) not in test_lines()],
    "actors-v1": lambda: _acted_texts(),
    "rarer-v1": lambda: _rarer_texts(),
    "unheard-v1": lambda: _valid_texts()[:200],
}
RECIPE, SIMPLE, TALK, WORDS, VOICES, VOCABULARY, SHORT, ACTORS, RARER, UNHEARD = TEXTS
NATURAL = (VOICES, VOCABULARY, SHORT, RARER)  # every utterance by another mean of Kokoro's voices
NAMES = {
    "train": RECIPE,
    "valid": RECIPE,
    "simple": SIMPLE,
    "talk": TALK,
    "words": WORDS,
    "voices": VOICES,
    "vocabulary": VOCABULARY,
    "short": SHORT,
    "actors": ACTORS,
    "rarer": RARER,
    "unheard": UNHEARD,
}
DEFAULT_SHARDS = 40
VALID_EVERY = 20  # of 20 shards in a row, the last is for validation


def shard_size(recipe: str) -> int:
    return SHARD // 4 if recipe in (*NATURAL, ACTORS, UNHEARD) else SHARD


def _is_valid(shard: int) -> bool:
    return shard % VALID_EVERY == VALID_EVERY - 1


def _valid_texts() -> list[str]:
    return [text for i, text in enumerate(wordnet_texts()) if _is_valid(i // SHARD)]


def _taken() -> set[str]:
    return set(test_lines()) | set(map(line_key, _valid_texts()))


def _vocabulary_texts() -> list[str]:
    return vocabulary_texts(_texts(VOICES)[:WITH_VOICES], _taken())


def _rarer_texts() -> list[str]:
    """Of the words that what these three say, the first shards of each, says less than four times."""
    return rarer_texts(
        _texts(VOICES)[:WITH_VOICES] + _texts(VOCABULARY)[:LAST_TWICE] + _texts(ACTORS)[:1_000], _taken()
    )


def _acted_texts() -> list[str]:
    """What ``voices`` says next, to begin with; then what is left of ``vocabulary``; then more of ``voices``."""
    voices = _texts(VOICES)[WITH_VOICES:]
    return voices[:1_000] + _texts(VOCABULARY)[LAST_TWICE:] + voices[1_000:]


def plan(index: int, recipe: str = RECIPE) -> dict[str, str | float]:
    """Engine, voice, pace and vocal-tract factor of utterance ``index``.

    The factor r resamples the speech: pitch and formants times r (r < 1 is a larger speaker), pace made up
    for, which turns one recorded voice into many.
    """
    rng = random.Random(f"{recipe}/{index}")
    if recipe in NATURAL:
        return natural_voice(rng)
    if recipe == ACTORS:
        return actor(index, rng)
    if recipe == UNHEARD:
        return {"engine": "kokoro", "voice": HELD_OUT[index % len(HELD_OUT)], "pace": 1.0, "tract": 1.0}
    engine = rng.choices(list(MIX), list(MIX.values()))[0]
    if recipe == SIMPLE or (engine == "kokoro" and (recipe in (TALK, WORDS) or index >= KOKORO_UNTIL)):
        engine = "hibari"
    pace, tract = rng.uniform(0.85, 1.2), 1.0
    if engine == "kokoro":
        heard = [voice for voice in Kokoro.voices if voice not in HELD_OUT]
        voice = "+".join(rng.sample(heard, rng.choice([1, 2, 2])))
    elif engine == "flite":
        voice = rng.choices(list(FLITE_VOICES), list(FLITE_VOICES.values()))[0]
        tract = rng.uniform(0.88, 1.12) if voice == "slt" else rng.uniform(0.92, 1.25)
    else:
        voice, tract = "heart", rng.uniform(0.78, 1.1)
    return {"engine": engine, "voice": voice, "pace": round(pace, 3), "tract": round(tract, 3)}


@cache
def _engine(name: str) -> Engine:
    return ENGINES[name]()


@cache
def _texts(recipe: str = RECIPE) -> list[str]:
    """All that a recipe says; drawing it takes seconds, so it is kept beside the shards."""

    def build(folder: Path) -> None:
        (folder / "texts.json").write_text(json.dumps(TEXTS[recipe]()), encoding="utf-8")

    kept = build_once(cache_root() / "data" / "synth" / recipe / "texts", build) / "texts.json"
    told: list[str] = json.loads(kept.read_text(encoding="utf-8"))
    return told


def speak(text: str, engine: str, voice: str, pace: float, tract: float) -> np.ndarray:
    """Mono float32 at 16 kHz, with a little silence at both ends, peak at most 0.7."""
    import soxr

    samples, rate = _engine(engine).speak(text, voice, pace / tract)
    samples = soxr.resample(samples, rate * tract, RATE)
    samples = np.pad(samples, RATE // 8)
    return (samples * (0.7 / max(float(np.abs(samples).max(initial=0.0)), 1e-4))).astype(np.float32)


def make_shard(shard: int, recipe: str = RECIPE) -> Path:
    """Utterances [size * shard, size * (shard + 1)) as FLAC files with a ``manifest.jsonl``; ``size`` is the recipe's."""
    import soundfile

    size = shard_size(recipe)

    def build(folder: Path) -> None:
        with open(folder / "manifest.jsonl", "w", encoding="utf-8") as manifest:
            for index in range(shard * size, (shard + 1) * size):
                text, how = _texts(recipe)[index], plan(index, recipe)
                samples = speak(text, **how)  # type: ignore[arg-type]
                soundfile.write(folder / f"{index:06d}.flac", samples, RATE, subtype="PCM_16")
                row = {"audio": f"{index:06d}.flac", "text": text, "duration": len(samples) / RATE}
                manifest.write(json.dumps(row | {"speaker": f"{how['engine']}/{how['voice']}"}) + "\n")

    return build_once(cache_root() / "data" / "synth" / recipe / f"shard-{shard:04d}", build)


def make_shards(shards: int | Sequence[int], recipe: str = RECIPE, workers: int = 2) -> list[Path]:
    """The shards asked for, or the first so many; made by ``workers`` processes where they are absent."""
    from rich.console import Console
    from rich.progress import track

    numbers = range(shards) if isinstance(shards, int) else shards
    if numbers and (max(numbers) + 1) * shard_size(recipe) > len(_texts(recipe)):
        raise ValueError(f"shard {max(numbers)} is past the recipe's {len(_texts(recipe))} texts")
    folder = cache_root() / "data" / "synth" / recipe
    absent = [shard for shard in numbers if not (folder / f"shard-{shard:04d}").exists()]
    if absent:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            jobs = [pool.submit(make_shard, shard, recipe) for shard in absent]
            try:
                for job in track(as_completed(jobs), "speaking", total=len(absent), console=Console(stderr=True)):
                    job.result()
            except BaseException:  # Ctrl-C or an engine that is not there: the shards that wait are not begun
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return [make_shard(shard, recipe) for shard in numbers]


def load(split: str = "train", root: Path | None = None) -> list[Example]:
    """The examples of a split of NAMES among the first shards; ``root`` is not used.

    ``train/40`` asks for 40 shards (8,000 utterances; 40 is also the default): those whose number modulo 20 is
    not 19 are ``train``, the others ``valid``, so 20 is the least for ``valid``; ``train/50-200`` are those from 50 to
    199, all without Kokoro and therefore made in a fifth of the time. What is missing is made. No text is
    on both sides: all texts differ. The voices are the same on both. ``simple`` needs nothing but one wheel:
    generated sentences, one voice. ``talk`` is everyday talk, every common word about equally often, and
    ``words`` is lists of less common ones (talk.py). ``voices`` is all of these and commands for a house, every
    utterance by another natural voice (voices.py); a core makes about three hours of it in an hour. ``vocabulary`` says, in
    such voices, the common words of an LLM's vocabulary that the first 80 shards of ``voices`` hardly say (vocabulary.py), ``short`` one or two
    words at a time, ``rarer`` common words of English that none of these say. ``actors`` says what the next shards of ``voices`` and the last of ``vocabulary`` say, by people with accents, manners and timbres of their
    own (actors.py). ``unheard`` is a test: 200 texts of ``valid`` by Kokoro's four voices that no training hears.
    """
    name, _, asked = split.partition("/")
    recipe = NAMES.get(name, RECIPE)
    most = len(_texts(recipe)) // shard_size(recipe)
    wanted = re.fullmatch(r"(?:(\d+)-)?(\d+)", asked or str(min(DEFAULT_SHARDS, most)))
    first, end = (int(wanted[1] or 0), int(wanted[2])) if wanted else (0, 0)
    if name not in NAMES or not 0 <= first < end <= most:
        raise DataError(
            f"synth has no split {split!r}; it has {', '.join(NAMES)}, with a number of shards from 1 to "
            f"{most} if you like: synth:train/{DEFAULT_SHARDS}, or synth:train/10-{DEFAULT_SHARDS}"
        )
    shards = range(first, end)
    chosen = [i for i in shards if recipe != RECIPE or _is_valid(i) == (name == "valid")]
    if not chosen:
        raise DataError(f"synth:{split}: these shards hold none for {name}; ask for {VALID_EVERY} or more")
    return [
        replace(example, id=f"{recipe}-{example.audio.stem}", language="en")
        for shard in make_shards(chosen, recipe)
        for example in read_manifest(shard / "manifest.jsonl")
    ]

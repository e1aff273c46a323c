"""Actors: what they sound like depends on their number alone, and lies where no narrator is."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steermoe.data.actors import ACCENTS, FARTHEST, VOICELESS, Actors, accented, drawled
from steermoe.data.tts import HEARD, HELD_OUT, Kokoro

SAID = "wˌɪð hɜː ɹˈQlɪŋ pˈɛn, ðə fˈɑðəɹ bˈit dˈɔɡz!"


@pytest.fixture
def styles(monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    styles = {name: rng.normal(size=(510, 256)).astype(np.float32) for name in (*Kokoro.voices, *Kokoro.others)}
    monkeypatch.setattr(Kokoro, "style", lambda _, voice: styles[voice])
    return styles


def test_an_actor_is_a_pure_function_of_its_number(styles: dict[str, np.ndarray]) -> None:
    one, again, other = Actors().style("17"), Actors().style("17"), Actors().style("18")
    assert one.shape == (510, 256) and one.dtype == np.float32
    assert np.array_equal(one, again) and not np.allclose(one, other)


def test_timbre_and_manner_are_as_far_from_the_middle_as_voices_or_farther(styles: dict[str, np.ndarray]) -> None:
    actors = Actors()
    heard = np.stack([styles[name] for name in HEARD])
    middle = heard.mean(axis=0)
    for half in (slice(0, 128), slice(128, 256)):
        usual = np.linalg.norm((heard - middle)[..., half], axis=-1).mean(axis=0)
        far = [np.linalg.norm((actors.style(str(n)) - middle)[..., half], axis=-1) / usual for n in range(40)]
        assert 0.6 - 1e-4 < np.min(far) < 0.8 and 1.2 < np.max(far) < FARTHEST + 1e-4


def test_no_voice_that_is_held_out_takes_part(styles: dict[str, np.ndarray]) -> None:
    before = [Actors().style(str(n)) for n in range(20)]
    for name in HELD_OUT:
        styles[name] += 9
    assert all(np.array_equal(style, Actors().style(str(n))) for n, style in enumerate(before))


@given(st.integers(0, 10_000))
def test_an_accent_is_the_same_throughout(seed: int) -> None:
    told = accented(SAID * 2, random.Random(seed), 0.5)
    assert len(told) % 2 == 0 and told[: len(told) // 2] == told[len(told) // 2 :]
    other = {sound: set(others) for sound, others in ACCENTS.items()}
    if "h" in told:  # nothing is lost: letter by letter
        for said, heard in zip(SAID, told[: len(told) // 2], strict=True):
            new = {said} | other.get(said, set())
            assert heard in new | {sound.translate(VOICELESS) for sound in new}


def test_no_accent_and_a_whole_one() -> None:
    assert accented(SAID, random.Random(0), 0.0) == SAID
    whole = accented(SAID, random.Random(0), 1.0)
    assert not set(whole) & {"θ", "ð", "ɹ", "h", "Q", "ə", "ŋ"} and whole.endswith("s!")


def test_only_stressed_vowels_are_drawled() -> None:
    drawls = {drawled("bˈit ðə dˈɔɡ fˈɑː", random.Random(seed)) for seed in range(50)}
    assert drawls == {f"bˈi{a}t ðə dˈɔ{b}ɡ fˈɑː" for a in ("", "ː") for b in ("", "ː")}


def test_actors_say_what_kokoro_can_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Kokoro, "phonemes", lambda _, text, voice: f"{ord(voice)}: {SAID}")
    actors = Actors()
    said = [actors.phonemes("any", str(n)) for n in range(300)]
    assert said == [actors.phonemes("any", str(n)) for n in range(300)]
    assert {told[:2] for told in said} == {"97", "98"}  # American, British
    plain = sum(told[4:-1] == SAID[:-1] for told in said)
    assert 60 < plain < 160  # four in ten have no accent, some a drawl; few accents leave all of this as it is

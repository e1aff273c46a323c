"""Sentences to speak, from packages with a plain licence: WordNet 3.0 (permissive, with notice).

A model learns only the words its training texts hold, so three kinds are mixed: usage examples (natural
short sentences), definitions (wide vocabulary) and short lists of common words, numbers and letters (what
telephone prompts and commands are made of).
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path

from ..packages import Package, unpacked

WORDNET = Package("deb", "wordnet-base", "1:3.0-37", "61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752")
ONES = ("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen").split()
ONES += ["seventeen", "eighteen", "nineteen"]
TENS = ("twenty thirty forty fifty sixty seventy eighty ninety").split()
CALENDAR = (
    "january february march april may june july august september october november december monday tuesday "
    "wednesday thursday friday saturday sunday today tomorrow yesterday morning afternoon evening"
).split()
_PLAIN = re.compile(r"^[A-Za-z][A-Za-z' ,;-]*[A-Za-z.?!]$")


def _plain(text: str, low: int, high: int) -> bool:
    return bool(_PLAIN.match(text)) and low <= len(text.split()) <= high


def as_sentence(text: str) -> str:
    """Written form: a capital first, a full stop last."""
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text[-1:] in ".?!" else ".")


def sentence_case(text: str) -> str:
    """Lower-case text with capitals where sentences begin, and for I: "yes, i'm here. why?" -> "Yes, I'm here. Why?"."""
    text = re.sub(r"\bi\b", "I", text)
    return re.sub(r"(^|[.!?] )([\"']?)([a-z])", lambda m: m[1] + m[2] + m[3].upper(), text)


def number_in_words(n: int) -> str:
    """0 <= n < 1,000,000 as English words: 342 -> 'three hundred forty two'."""
    if n < 20:
        return ONES[n]
    if n < 100:
        return TENS[n // 10 - 2] + (f" {ONES[n % 10]}" if n % 10 else "")
    if n < 1000:
        return f"{ONES[n // 100]} hundred" + (f" {number_in_words(n % 100)}" if n % 100 else "")
    return f"{number_in_words(n // 1000)} thousand" + (f" {number_in_words(n % 1000)}" if n % 1000 else "")


def _in_digits() -> re.Pattern[str]:
    digit, teen, tens = "|".join(ONES[1:10]), "|".join(ONES[10:]), "|".join(TENS)
    # "twenty first", and "thirty second", which may be one, too
    tenth = rf"(?:{tens})(?![ -](?:first|second|third|four?th|fifth|sixth|seventh|eighth|ninth)\b)"
    two = rf"(?:(?:{tens})[ -](?:{digit})|{tenth}|{teen}|{digit})"
    three = rf"(?:(?:{digit})[ -]hundred(?:[ -](?:and[ -])?{two})?|{two})"
    return re.compile(rf"\b(?:{three}[ -]thousand(?:[ -](?:and[ -])?{three})?|{three})\b(?!['’]?[a-z])", re.IGNORECASE)


IN_DIGITS = _in_digits()


def numbers_in_digits(text: str) -> str:
    """Numbers from ten on as most people write them, and Whisper: "set it to seventy two" -> "set it to 72"."""

    def written(found: re.Match[str]) -> str:
        total = part = 0
        for word in re.findall(r"[a-z]+", found[0].lower()):
            if word == "thousand":
                total, part = 1000 * part, 0
            elif word == "hundred":
                part *= 100
            elif word in ONES:
                part += ONES.index(word)
            elif word in TENS:
                part += 10 * TENS.index(word) + 20
        return str(total + part) if total + part > 9 else found[0]

    return IN_DIGITS.sub(written, text)


def glosses() -> Iterator[tuple[list[str], str]]:
    folder = unpacked(WORDNET) / "usr" / "share" / "wordnet"
    for part in ("noun", "verb", "adj", "adv"):
        for line in (folder / f"data.{part}").read_text(encoding="latin-1").splitlines():
            if line.startswith("  "):
                continue  # the licence
            fields, _, gloss = line.partition(" | ")
            words = fields.split()
            lemmas = [words[4 + 2 * i].split("(")[0].replace("_", " ") for i in range(int(words[3], 16))]
            yield lemmas, gloss.strip()


def exceptions(folder: Path, part: str) -> dict[str, list[str]]:
    """Lemma -> its irregular forms, in the file's (alphabetical) order."""
    irregular: dict[str, list[str]] = {}
    for line in (folder / f"{part}.exc").read_text(encoding="latin-1").splitlines():
        form, *lemmas = line.split()
        for lemma in lemmas:
            irregular.setdefault(lemma, []).append(form)
    return irregular


def dictionary_words() -> set[str]:
    """Every lemma that is one word, and the irregular forms of some, in lower case."""
    folder = unpacked(WORDNET) / "usr" / "share" / "wordnet"
    parts = [exceptions(folder, part) for part in ("noun", "verb", "adj", "adv")]
    irregular = {form for lemmas in parts for forms in lemmas.values() for form in forms}
    return irregular | {name.lower() for names, _ in glosses() for name in names if " " not in name}


def quoted(gloss: str) -> list[str]:
    """The usage examples that a gloss quotes."""
    return re.findall(r'"([^"]+)"', gloss)


def _number(rng: random.Random) -> str:
    n = rng.choice([rng.randint(0, 99), rng.randint(100, 999), rng.randint(1000, 999_999)])
    digits = " ".join(rng.choice(ONES[:10]) for _ in range(rng.randint(2, 7)))
    letters = " ".join(rng.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ") for _ in range(rng.randint(2, 5)))
    return as_sentence(rng.choice([number_in_words(n), digits, letters]))


def wordnet_texts(seed: int = 0) -> list[str]:
    """All sentences, shuffled by ``seed``, without doubles: examples, definitions, word lists, numbers."""
    rng = random.Random(seed)
    examples, definitions, lemmas = [], [], []
    for names, gloss in glosses():
        definition, *_ = gloss.split('; "')
        examples += [as_sentence(t) for t in quoted(gloss) if _plain(t, 3, 14)]
        definition = re.sub(r"\([^)]*\)\s*", "", definition).split(";")[0].strip()
        if _plain(definition, 4, 14):
            definitions.append(as_sentence(definition))
        if '"' in gloss:  # senses with an example are the common ones
            lemmas += [n for n in names if _plain(n, 1, 3)]
    lists = []
    for _ in range(8000):
        pool = rng.choice([lemmas, lemmas, lemmas, CALENDAR])
        lists.append(as_sentence(", ".join(rng.sample(pool, rng.randint(1, 4)))))
    lists += [_number(rng) for _ in range(3000)]
    rng.shuffle(definitions)
    texts = list(dict.fromkeys(examples + definitions[: len(examples) // 2] + lists))
    rng.shuffle(texts)
    return texts


WHO = (
    "I you we they he she the_man the_woman my_mother his_brother her_sister our_teacher the_doctor the_king a_child"
).split()
DID = (
    "saw found wanted heard had liked forgot remembered bought sold opened closed lost took brought kept "
    "left loved feared followed asked_for looked_at waited_for talked_about thought_of"
).split()
WHAT = (
    "house door window garden river mountain letter book story song horse dog cat bird boat ship train "
    "road bridge town city friend stranger captain soldier money gold key table chair lamp fire water "
    "bread dinner answer question secret idea plan picture map forest island sea storm night voice name "
    "word"
).split()
LIKE = (
    "old new little big small great dark bright long short good bad strange beautiful quiet poor rich red white"
).split()
WHEN = (
    "again;last night;this morning;every day;in the winter;before dinner;at home;on the way;very much;too late"
).split(";")


def simple_texts(seed: int = 0) -> list[str]:
    """8,000 generated sentences of common words, without doubles, for machines that can fetch nothing to read."""
    rng = random.Random(seed)
    texts: dict[str, None] = {}
    while len(texts) < 8000:
        words = [rng.choice(WHO), rng.choice(DID), rng.choice(["the", "a", "that", "his", "no"])]
        words += rng.sample(LIKE, rng.randint(0, 2)) + [rng.choice(WHAT)]
        if rng.random() < 0.4:
            words += [rng.choice(["and", "but", "because", "when"]), rng.choice(WHO), rng.choice(DID), "it"]
        if rng.random() < 0.4:
            words.append(rng.choice(WHEN))
        sentence = as_sentence(" ".join(words).replace("_", " "))
        texts[_number(rng) if rng.random() < 0.1 else sentence] = None
    return list(texts)

"""Everyday talk to speak: frames of conversation filled with the common words of WordNet 3.0.

Dictionary examples hold few contractions, questions and answers, and most of their words only once or twice;
a model that never heard a word's token cannot write it. Here every common word, in every inflection, comes
about equally often. The sentences need not make sense: what they say cannot be guessed, only heard.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from ..packages import unpacked
from .texts import CALENDAR, ONES, TENS, WORDNET, as_sentence, exceptions, glosses, number_in_words

# n, ns: noun, plural; v, vs, vd, vn, vg: verb, -s, past, participle, -ing; a: adjective; r: adverb;
# who: a first name; num: a number; when: a day, month or time.
FRAMES = (
    """
I don't {v} the {n}.|I didn't {v} your {ns}.|I can't {v} this {a} {n}.|I won't {v} any {ns}.|I'm {vg} the {n}.
I'm not {vg} to {v}.|I've never {vn} a {n}.|I've {vn} it {r}.|I'll {v} you {when}.|I'd {v} the {a} {ns}.
You're {vg} my {n}.|You're so {a}, {who}.|You don't have to {v}.|You can't {v} that.|You shouldn't {v} her {n}.
You've {vn} the wrong {n}.|You'll {v} it {r}.|You'd better {v} the {n}.|You must be {a}.|You look {a} {when}.
He's {vg} {who}.|He's a {a} {n}.|He {vs} {ns}.|He {vd} his {n} {r}.|He wouldn't {v} us.|He said he'd {v}.
She's {a} and {a}.|She {vs} her {n}.|She {vd} me a {n}.|She hasn't {vn} yet.|She couldn't {v} it.|She'll {v} them.
It's {a}.|It's a {n}.|It's too {a} to {v}.|It isn't {a} here.|It {vs} like a {n}.|It wasn't my {n}.|It'll {v}.
We're {vg} {when}.|We've got {num} {ns}.|We {vd} to {who}.|We don't need {ns}.|We'll {v} for {num} days.|Let's {v}.
They're {a} {ns}.|They {vd} the {n}.|They haven't {vn} our {ns}.|They weren't {a}.|They'd {v} anything for a {n}.
What's that {n}?|What did you {v}?|What are you {vg}?|What do you think of the {n}, {who}?|What a {a} {n}!
Who {vd} it?|Who's {vg} my {n}?|Where's the {n}?|Where did they {v}?|Why don't you {v}?|Why is she {vg}?
How {a} is it?|How do you {v} a {n}?|How's the {n}, {who}?|How many {ns} did he {v}?|When will you {v} the {n}?
Which {n} do you want?|Do you {v}?|Do you know {who}?|Does it {v}?|Did {who} {v} the {ns}?|Have you {vn} it?
Can you {v} {r}?|Could you {v} me the {n}, please?|Would you like some {ns}?|Will they {v} us?|Is it {a}?
Are you {a}?|Are there any {ns}?|Is there a {n} in the {n}?|Isn't that {a}?|Aren't you {who}?|Don't {v} that!
There's a {n} behind the {n}.|There's nothing {a} here.|There are {num} {ns} on the {n}.|Here's your {n}.
That's {a}.|That's what I {vd}.|That's my {n} over there.|This is a {a} {n}.|This {n} {vs}.|These {ns} are {a}.
{who} {vs} {r}.|{who} {vd} the {n} with a {n}.|{who}, {v} the {n}.|My name is {who}.|Tell {who} to {v}.
Give me the {n}.|Take this {n} and {v}.|Go {v} your {n}.|Come and {v} the {ns}.|Stop {vg} me.|Get out of the {n}.
Look at those {ns}.|Look out, the {n} is {vg}!|Wait for the {n}.|Try to {v} it.|Never {v} without a {n}.|Be {a}.
Please {v} your {n}.|Please say your {n}.|Press {num} to {v}.|Press {num} for {ns}.|Your {n} has been {vn}.
Your {n} is now {a}.|You have {num} new {ns}.|The {n} you {vd} is not {a}.|Thank you for {vg}.|To {v}, press {num}.
The {n} is {a}.|The {a} {n} {vd} {r}.|The {ns} were {vn} by the {n}.|The {n} of the {n} {vd}.|No {n}, no {n}.
If you {v} me, I'll {v} you.|When I {vd} the {n}, it {vd}.|I think he's {vg}.|I thought you {vd} {ns}.
I wonder if it {vs}.|I guess it's {a}.|I hope you {v} {r}.|I need a {n}.|I want to {v} the {n}.|I have to {v} {when}.
I was {vg} when she {vd}.|I should have {vn}.|I used to {v} {ns}.|I'm gonna {v} that {n}.|I gotta {v}.|I wanna {v}.
I'm afraid of {ns}.|I'm sure it's {a}.|I'm sorry about your {n}.|I'm glad you {vd}.|I like {vg}.|I love your {n}.
Not {a}, just {a}.|More {ns} than {ns}.|As {a} as a {n}.|Either {v} or {v}.|{ns} and {ns}.|{vg} is {a}.
{n}, {n}, {n}.|{v}, {vd}, {vg}.|{a} {n}.|{a}, {a}, {r}.|{ns}.|{n}.|{r}.|{vg}.|{vn}.|{vs}, {ns}, {a}.
""".replace("\n", "|")
    .strip("|")
    .split("|")
)
BEFORE = (
    "oh well hey yes no okay hmm ah so and but look listen sure thanks sorry please now maybe actually anyway hello wow "
    "right great uh_huh of_course all_right I_mean you_know by_the_way excuse_me in_fact first then"
).split()
AFTER = "then;too;again;you know;right?;now;anymore;at all;I think;please;for you;with me;sir;my friend;alone".split(
    ";"
)
NAMES = (
    "Adam Alan Alex Alice Amy Andrew Anna Anne Arthur Ben Betty Bill Bob Brian Carl Carol Charles Chris Claire Daniel "
    "David Diana Donald Edward Elizabeth Emily Emma Eric Eva Frank Fred Gary George Grace Harry Helen Henry Ian Jack "
    "Jacob James Jane Jason Jean Jeff Jennifer Jerry Jim Joan Joe John Johnny Joseph Judy Julia Karen Kate Keith Kevin "
    "Larry Laura Lee Linda Lisa Louis Lucy Maggie Maria Mark Martha Martin Mary Matthew Max Michael Mike Nancy Neil "
    "Nick Oliver Oscar Pat Paul Peter Philip Ralph Richard Rick Robert Roger Rose Roy Ruth Ryan Sally Sam Sandra Sarah "
    "Scott Sean Simon Sophie Stephen Steve Susan Ted Thomas Tim Tom Tony Victor Walter William London Paris England "
    "America France Africa India China Boston Texas Egypt"
).split()
SAME = (
    "put let cut set hit hurt cost shut cast split spread burst rid quit bet upset".split()
)  # WordNet has no past for them
KINDS = {"1": "n", "2": "v", "3": "a", "4": "r", "5": "a"}  # WordNet's part-of-speech numbers
COMMON = {"n": 2800, "v": 1200, "a": 1100, "r": 300}  # lemmas taken, most frequent first


def plural(word: str) -> str:
    """The regular -s form of a noun or verb: box -> boxes, city -> cities, goes, woodsman -> woodsmen."""
    if word.endswith("man"):
        return word[:-2] + "en"
    if re.search(r"(ss|x|z|ch|sh|[dg]o|us|is)$", word):
        return word + "es"
    return word[:-1] + "ies" if re.search(r"[^aeiou]y$", word) else word + "s" * (word[-1] != "s")


def past(word: str) -> str:
    """The past where WordNet names no irregular one: bake -> baked, try -> tried, stop -> stopped, put -> put."""
    if word in SAME:
        return word
    if word.endswith("e"):
        return word + "d"
    return re.sub(r"[^aeiou]y$", lambda m: m[0][0] + "i", word) + "ed" if word.endswith("y") else _doubled(word) + "ed"


def gerund(word: str) -> str:
    """The -ing form: bake -> baking, stop -> stopping, see -> seeing."""
    if word.endswith("ie"):
        return word[:-2] + "ying"
    return word[:-1] + "ing" if re.search(r"[^eoy]e$", word) else _doubled(word) + "ing"


def _doubled(word: str) -> str:
    """Only short words of one syllable double their last letter by rule; WordNet lists the others."""
    return word + word[-1] if re.fullmatch(r"[^aeiou]*[aeiou][bdgklmnprt]", word) else word


def common_words(folder: Path) -> dict[str, list[str]]:
    """Slot name -> words for it, most frequent lemmas of WordNet's tagged texts first; names are not among them."""
    written = {
        field
        for part in ("noun", "verb", "adj", "adv")
        for line in (folder / f"data.{part}").read_text(encoding="latin-1").splitlines()
        for field in line.partition(" | ")[0].split(" ")
    }  # lemmas as they are spelt: `warsaw` is only ever `Warsaw`
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in COMMON}
    for line in (folder / "cntlist.rev").read_text(encoding="latin-1").splitlines():
        key, _, times = line.split()
        lemma, _, where = key.partition("%")
        if re.fullmatch(r"[a-z]{2,12}", lemma) and lemma in written:
            counts[KINDS[where[0]]][lemma] += int(times)
    lemmas = {k: [w for w, _ in sorted(c.items(), key=lambda i: (-i[1], i[0]))[: COMMON[k]]] for k, c in counts.items()}
    nouns, verbs = exceptions(folder, "noun"), exceptions(folder, "verb")
    words = {"n": lemmas["n"], "a": lemmas["a"], "r": lemmas["r"], "v": [w for w in lemmas["v"] if w != "be"]}
    words["ns"] = [nouns.get(w, [plural(w)])[0] for w in words["n"]]
    words["vs"] = ["has" if w == "have" else plural(w) for w in words["v"]]
    words["vg"] = [_irregular(verbs, w, True, gerund) for w in words["v"]]
    words["vd"] = [_irregular(verbs, w, False, past) for w in words["v"]]
    words["vn"] = [_irregular(verbs, w, False, past, last=True) for w in words["v"]]
    return words


def _irregular(
    known: dict[str, list[str]], word: str, ing: bool, regular: Callable[[str], str], last: bool = False
) -> str:
    forms = [f for f in known.get(word, []) if f.endswith("ing") == ing and (ing or not f.endswith("s"))]
    if not forms:
        return regular(word)
    ends_n = [f for f in forms if re.search(r"(n|ne|um|un|ung|unk)$", f)]  # taken, gone, begun, sung
    others = [f for f in forms if f not in ends_n]
    return (ends_n or others)[-1] if last else (others or ends_n)[0]


def _cycle(words: list[str], rng: random.Random) -> Iterator[str]:
    """Every word once, in random order, then again: all come equally often."""
    while True:
        yield from rng.sample(words, len(words))


def talk_texts(seed: int = 0, count: int = 18_000) -> list[str]:
    """``count`` sentences without doubles; the first so many are the same for every larger ``count``."""
    rng = random.Random(seed)
    slots = {k: _cycle(v, rng) for k, v in common_words(unpacked(WORDNET) / "usr" / "share" / "wordnet").items()}
    slots |= {"who": _cycle(NAMES, rng), "when": _cycle(_WHEN, rng)}
    frames = _cycle(FRAMES, rng)
    texts: dict[str, None] = {}
    while len(texts) < count:
        sentence = _fill(next(frames), slots, rng)
        if rng.random() < 0.5:
            sentence = " ".join(as_sentence(part) for part in (sentence, _fill(next(frames), slots, rng)))
        if rng.random() < 0.2:
            sentence = rng.choice(BEFORE).replace("_", " ") + ", " + _inside(sentence)
        if rng.random() < 0.12:
            sentence = re.sub(r"[.!]$", lambda m: f", {rng.choice(AFTER)}{m[0]}", sentence).replace("?.", "?")
        texts[as_sentence(sentence)] = None
    return list(texts)


def word_texts(seed: int = 0, count: int = 4_000) -> list[str]:
    """``count`` lists of six of the other words that dictionary definitions use, all of them equally often.

    SemCor, which WordNet counts, is of 1961; its definitions are of 2006 and know the user, the server and the exit.
    """
    rng = random.Random(seed)
    known = {word for words in common_words(unpacked(WORDNET) / "usr" / "share" / "wordnet").values() for word in words}
    used = Counter(w for _, gloss in glosses() for w in re.findall(r"(?<![\w-])[a-z]{3,14}(?![\w'-])", gloss))
    words = _cycle(sorted(w for w, times in used.items() if times >= 6 and w not in known), rng)
    texts: dict[str, None] = {}
    while len(texts) < count:
        texts[as_sentence(rng.choice([" ", ", "]).join(next(words) for _ in range(6)))] = None
    return list(texts)


def short_texts(seed: int = 0, count: int = 2_000) -> list[str]:
    """``count`` texts of one or two words, without doubles, as answers, commands and menus are: a fifth numbers, a tenth
    letters, a tenth days, months and names, the rest common words."""
    rng = random.Random(seed)
    common = common_words(unpacked(WORDNET) / "usr" / "share" / "wordnet")
    pools = {"number": ONES + TENS, "letter": list("ABCDEFGHIJKLMNOPQRSTUVWXYZ"), "named": [*CALENDAR, *NAMES]}
    slots = {kind: _cycle(pool, rng) for kind, pool in pools.items()}
    slots["word"] = _cycle([word for kind in common.values() for word in kind[:700]], rng)
    kinds, texts = rng.choices([*slots], [0.2, 0.1, 0.1, 0.6], k=50 * count), dict[str, None]()
    for kind in kinds:
        words = [next(slots[kind]) for _ in range(rng.choice([1, 1, 2]))]
        texts[as_sentence(rng.choice([" ", ", "]).join(words))] = None
        if len(texts) == count:
            break
    return list(texts)


_WHEN = CALENDAR + "tonight soon later before after_that every_day on_Sunday at_once in_a_minute next_week".split()


def _inside(sentence: str) -> str:
    """Without its capital, where that only begins the sentence."""
    first = re.split(r"[ ,.?!']", sentence)[0]
    return sentence if first in ("I", *NAMES) else sentence[0].lower() + sentence[1:]


def _fill(frame: str, slots: dict[str, Iterator[str]], rng: random.Random) -> str:
    def word(match: re.Match[str]) -> str:
        if match[1] == "num":
            return rng.choice([rng.choice(ONES), rng.choice(ONES), number_in_words(rng.randint(0, 999))])
        return next(slots[match[1]]).replace("_", " ")

    filled = re.sub(r"\{(\w+)\}", word, frame)
    return re.sub(r"\b([Aa]) (?=[aeiouAEIOU])", r"\1n ", filled)

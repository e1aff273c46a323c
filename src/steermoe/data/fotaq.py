"""``fotaq``: acted English dialogue from the game Flight of the Amazon Queen (Debian's package of it).

About 6,500 clips, 4.5 hours, 11 kHz MP3. The licence allows free redistribution with the game's readme; the
audio is unpacked into the cache and never becomes part of this project.

All is in one container, ``queen.1c`` (integers are big-endian): dialogues (``.DOG``), scenes (``.CUT``), the
hero's remarks (``QUEEN2.JAS``), the table of objects (``QUEEN.JAS``) and one MP3 (``.SB``) for every segment of a
line. A line's text is cut into segments by stage codes such as ``*03``; the clip of a segment is named after
the line, with the segment's number from 1, in hex, as its last character.

Speakers are *characters*, as far as the container tells: dialogues name the person talked to in their file
name, scenes name the object that speaks. Objects that stand for whoever comes along ("note", "torch") and
voices from off screen are speaker ``someone``. Actors are not named anywhere: one actor may voice several
characters, so an unheard character is not always an unheard voice.

Splits, fixed by rule (see ``split_clips``): ``test`` holds whole characters that ``train`` and ``valid`` never hear,
``valid`` unheard lines of characters that ``train`` hears; no line of text is on two sides.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError
from ..packages import Package, build_once, cache_root, unpacked
from .manifest import Example, read_manifest, write_manifest

PACKAGE = Package(
    "deb",
    "flight-of-the-amazon-queen",
    "1.0.0-9",
    "40c08fd258d6fe95c46c1eaf5e9137f84ba330657995a281bd887c94a560a0f1",
)
SPLITS = ("train", "valid", "test")
LAYOUT = "v1"  # of the unpacked folder; a new one when its contents change
HERO = "Joe"
SOMEONE = "someone"
# Held out: the first characters, in the order of the SHA-256 of their names, that together have 350 clips of
# four words or more; without the hero and those whom "someone" may be (Faye, Sparky, Wedgewood ...).
TEST_CHARACTERS = ("Lola", "Skip", "Eddy", "bellboy", "witch doctor", "showering Amazon", "prisoners")
VALID_SHARE = 0.04  # of the lines of four words or more
MIN_WORDS = 4  # in valid and test

# A dialogue's file name without its digits, or an object's name -> the character; an object that is not here
# and whose name is no person's is "someone".
CHARACTERS = {
    "AND": "Anderson", "APE": "gorilla", "BOB": "Trader Bob", "BUD": "Bud", "CHEF": "chef", "CHIEF": "chief",
    "DEATH": "ferryman", "DOG": "guard dog", "FAYE": "Faye", "FRANK": "Frank", "HENRY": "Henry", "IAN": "Ian",
    "JIM": "Jimmy", "JOHN": "John", "KLUNK": "Klunk", "LARIS": "bellboy", "LOLA": "Lola", "LOU": "Skip",
    "MAN": "prisoners", "NAOMI": "Naomi", "ORACLE": "guardian", "PRIN": "Princess Azura", "SEC": "secretary",
    "SHOWERAM": "showering Amazon", "SPARKY": "Sparky", "TALLPYG": "tall pygmy", "TAM": "Mary-Lou",
    "WEDGE": "Wedgewood", "WITCH": "witch doctor", "ZOMBIE": "zombie woman",
    "Joe King": HERO, "azura obj": "Princess Azura", "bedraggled prisoner": "prisoners",
    "tired prisoner": "prisoners", "guard": "Henry", "gorilla in costume": "gorilla", "vicious dinosaur": "gorilla",
    **dict.fromkeys(["note", "path", "smoke", "torch", "rock", "lily pad", "door", "buttons", "telephone"], SOMEONE),
}  # fmt: skip

_CODE = re.compile(r"\*(?:XY\d\d\(\d+,\d+\)|[A-Za-z0-9]{2})")
_ASIDE = re.compile(r"<[^>]*>|\([^)]*\)|@+")  # <gulp>, (sigh), hearts
_TRADE_MARK = "^_"
_WORD = re.compile(r"[a-z0-9']+")
_ODD = re.compile(r"[^A-Za-z0-9 .,:;!?'\"-]")
_PERSON, _HERO, _VOICE = (-3, -4), (0, -1), (-2, -3, -4)


@dataclass(frozen=True)
class Line:
    """What one character says in one go: ``clip`` is the start of its clips' names."""

    clip: str
    speaker: str
    scene: str
    text: str


def load(split: str = "train", root: Path | None = None) -> list[Example]:
    """The examples of ``train``, ``valid`` or ``test``; ``root`` is not used. Fetches the package on first use."""
    if split not in SPLITS:
        raise DataError(f"fotaq has no split {split!r}; it has {', '.join(SPLITS)}")
    return split_clips(read_manifest(folder() / "manifest.jsonl"))[split]


def folder() -> Path:
    """The cache folder with all clips (``NAME.mp3``) and ``manifest.jsonl``, unpacked once."""
    return build_once(cache_root() / "data" / "fotaq" / f"{PACKAGE.version}-{LAYOUT}", _build)


def split_clips(clips: list[Example]) -> dict[str, list[Example]]:
    """All clips -> ``train``, ``valid``, ``test``.

    test: every clip of TEST_CHARACTERS with four words or more. valid: of the other characters, clips with four
    words or more whose line falls under VALID_SHARE by the digest of its text. A line of one of those is
    dropped from what comes after it, and so are the test characters' short clips, and clips of "someone" in
    scenes where a test character speaks: it might be them.
    """
    held_scenes = {_scene(clip) for clip in clips if clip.speaker in TEST_CHARACTERS}
    sides: dict[str, list[Example]] = {name: [] for name in SPLITS}
    rest = []
    for clip in clips:
        if clip.speaker in TEST_CHARACTERS:
            if len(clip.text.split()) >= MIN_WORDS:
                sides["test"].append(clip)
        elif not (clip.speaker == SOMEONE and _scene(clip) in held_scenes):
            rest.append(clip)
    heard = {line_key(clip.text) for clip in sides["test"]}
    for clip in rest:
        key = line_key(clip.text)
        if key in heard:
            continue
        share = int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) / 2**32
        held = share < VALID_SHARE and len(clip.text.split()) >= MIN_WORDS and clip.speaker != SOMEONE
        sides["valid" if held else "train"].append(clip)
    heard = {line_key(clip.text) for clip in sides["valid"]}
    sides["train"] = [clip for clip in sides["train"] if line_key(clip.text) not in heard]
    return sides


def line_key(text: str) -> str:
    """What makes two lines the same: their words, lower case, without punctuation."""
    return " ".join(_WORD.findall(text.lower()))


def clean(text: str) -> str:
    """A segment as it is spoken: without asides, with single spaces; empty if it is no plain text."""
    text = " ".join(_ASIDE.sub(" ", text.replace(_TRADE_MARK, "")).split())
    return "" if _ODD.search(text) or not _WORD.search(text.lower()) else text


def _scene(clip: Example) -> str:
    return clip.id[:5]  # a scene's clips share its name, padded to five characters


def _build(scratch: Path) -> None:
    import soundfile

    path = unpacked(PACKAGE) / "usr/share/scummvm/flight-of-the-amazon-queen/queen.1c"
    files = read_container(path.read_bytes())
    rows = []
    for name, text, speaker in sorted(clips_of(files)):
        (scratch / f"{name}.mp3").write_bytes(files[f"{name}.SB"])
        info = soundfile.info(scratch / f"{name}.mp3")
        row = {"audio": f"{name}.mp3", "text": text, "duration": info.frames / info.samplerate}
        rows.append(row | {"speaker": speaker, "language": "en", "id": name})
    write_manifest(scratch / "manifest.jsonl", rows)


def read_container(data: bytes) -> dict[str, bytes]:
    """Name -> contents. Entries are 21 bytes: a 12-byte name, one byte, offset, size."""
    if data[:5] != b"QTBLC":
        raise DataError(f"queen.1c begins with {data[:5]!r}, not with b'QTBLC': not the file of {PACKAGE.version}")
    (count,) = struct.unpack_from(">H", data, 13)
    files = {}
    for index in range(count):
        name, _, offset, size = struct.unpack_from(">12sBII", data, 15 + 21 * index)
        files[name.rstrip(b"\0 ").decode("ascii")] = data[offset : offset + size]
    return files


def clips_of(files: dict[str, bytes]) -> list[tuple[str, str, str]]:
    """(clip name, text, speaker) of every clip whose text is known; without those that have two texts."""
    found: dict[str, tuple[str, str]] = {}
    doubtful = set()
    for line in lines_of(files):
        for number, segment in enumerate(_CODE.split(line.text), start=1):
            name, text = f"{line.clip}{number:X}", clean(segment)
            if f"{name}.SB" not in files or not text:
                continue
            if found.setdefault(name, (text, line.speaker))[0] != text:
                doubtful.add(name)
    return [(name, *what) for name, what in found.items() if name not in doubtful]


def lines_of(files: dict[str, bytes]) -> Iterator[Line]:
    """Every line of the game, with the start of its clips' names."""
    table, texts = files["QUEEN.JAS"][20:], files["QUEEN2.JAS"].decode("latin-1").split("\r\n")
    rooms, names, objects, remarks = struct.unpack_from(">4H", table)
    answers = remarks + names + rooms + 12  # 40 general answers, numbered before the remarks
    for number, text in enumerate(texts[answers : answers + 40] + texts[:remarks], start=1):
        if "Y/N" not in text and "on/off" not in text:
            yield Line(f"JOE{number:04d}", HERO, "QUEEN2", text)
    persons = {}
    for index in range(objects):
        values = struct.unpack_from(">8h", table, 8 + 16 * index)  # the first is the name, negated when switched off
        if values[7] in _PERSON:
            persons[index + 1] = texts[remarks + abs(values[0]) - 1]
    for name, data in files.items():
        if name.endswith(".DOG"):
            yield from _dialogue(name[:-4], data[20:])
        elif name.endswith(".CUT"):
            yield from _scene_lines(name[:-4], data[20:], persons)


def _text(data: bytes, at: int, align: int = 2) -> tuple[str, int]:
    """The string at ``at`` (its length is one byte) and where the next one is."""
    size = data[at]
    after = (at + 1 + size + align - 1) // align * align if size else at + 1
    return data[at + 1 : at + 1 + size].decode("latin-1"), after


def _dialogue(name: str, data: bytes) -> Iterator[Line]:
    """Header: levels, -, key, number of J and of P lines; at 22 where P lines begin, -, where the greetings are.

    J is the hero, P the other person. A line: -, its number, its text. The greetings are for later meetings.
    """
    other = CHARACTERS[name.rstrip("0123456789")]
    levels, _, key, hero_lines, other_lines = struct.unpack_from(">5h", data)
    at_other, _, at_greetings = struct.unpack_from(">3H", data, 22)
    parts: tuple[tuple[int, int, str, str], ...] = (
        (32 + abs(levels) * 96, hero_lines, "J", HERO),
        (at_other, other_lines, "P", other),
    )
    for at, count, letter, speaker in parts:
        for index in range(count):
            (number,) = struct.unpack_from(">H", data, at + 2)
            text, at = _text(data, at + 4, align=4)
            opening = letter == "J" and index == 0 and number == 0
            yield Line(f"{key:02d}SSSSJ" if opening else f"{key:02d}{number:04X}{letter}", speaker, name, text)
    text, at = _text(data, at_greetings)
    yield Line(f"{key:02d}XXXXP", other, name, text)
    text, _ = _text(data, at)
    yield Line(f"{key:02d}XXXXJ", HERO, name, text)


def _scene_lines(name: str, data: bytes, persons: dict[int, str]) -> Iterator[Line]:
    """Header: -, number of records, -, -, where the texts begin, -; then the records, each with one text."""
    count, at_text, at = abs(struct.unpack_from(">h", data, 2)[0]), struct.unpack_from(">H", data, 8)[0], 12
    _, at_text = _text(data, at_text)  # the first text is not spoken
    for number in range(1, count + 1):
        record = struct.unpack_from(">17h", data, at)
        at += 34
        at += 2 + 2 * struct.unpack_from(">H", data, at)[0]  # who else is in the room
        text, at_text = _text(data, at_text)
        actor, animation, execute, copied_from = record[0], record[4], record[5], record[12]
        person = not animation and (actor in _HERO or actor in persons)
        if not person and actor not in _VOICE and execute and copied_from <= 0:
            while struct.unpack_from(">h", data, at)[0] != -2:  # frames of an animation
                at += 20
            at += 2
        yield Line(f"{name:_<5}{number:02d}", _who(actor, persons), name, text)


def _who(actor: int, persons: dict[int, str]) -> str:
    if actor in _HERO:
        return HERO
    name = persons.get(actor, SOMEONE)
    return CHARACTERS.get(name, name)

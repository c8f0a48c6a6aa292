"""Bach's four-part chorales as sequences of symbols, and such a sequence as MIDI.

The scores are MusicXML files in the corpus of music21 (BSD-3-Clause; the music is in the public
domain). This takes those in four single voices and four quarters a bar, and moves them into C major
or A minor. Time goes in eighths. At each eighth the soprano, alto, tenor and bass have one symbol
in turn: a note that begins, or HOLD, or REST.
"""

import importlib.util
import math
import struct
import zipfile
from pathlib import Path
from xml.etree import ElementTree

LOWEST, NOTES = 31, 56  # MIDI numbers; a symbol below NOTES is the note LOWEST + symbol
HOLD, REST, SYMBOLS = NOTES, NOTES + 1, NOTES + 2
BAR = 32  # symbols in a bar: 8 eighths of 4 voices
STEPS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}


def part(element, divisions: float, fifths: int) -> list[tuple[float, float, int]]:
    """Begin and end in eighths and MIDI number, moved to no sharps or flats, of each note."""
    notes, now = [], 0.0
    shift = (-7 * fifths + 6) % 12 - 6
    for note in element.iter("note"):
        length, pitch = note.findtext("duration"), note.find("pitch")
        if length is None or note.find("chord") is not None:  # a grace note, a second voice
            continue
        begin, now = now, now + 2 * float(length) / divisions
        if pitch is None:
            continue
        number = (
            STEPS[pitch.findtext("step")]
            + int(pitch.findtext("alter", "0"))
            + 12 * int(pitch.findtext("octave"))
        )
        tied = any(tie.get("type") == "stop" for tie in note.iter("tie"))
        if tied and notes:
            notes[-1] = (notes[-1][0], now, notes[-1][2])
        else:
            notes.append((begin, now, number + 12 + shift))
    return notes


def chorale(path: Path) -> list[int] | None:
    """The symbols of a score in MusicXML; None if it is not in four parts of single notes."""
    with zipfile.ZipFile(path) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith("xml") and "META-INF" not in n)
        root = ElementTree.fromstring(archive.read(name))
    parts = root.findall("part")
    if len(parts) != 4 or root.find(".//backup") is not None or root.findtext(".//beats") != "4":
        return None
    divisions, fifths = float(root.findtext(".//divisions")), int(root.findtext(".//fifths"))
    voices = [part(element, divisions, fifths) for element in parts]
    bars = [sum(float(n.findtext("duration", "0")) for n in m.iter("note")) for m in parts[0]]
    upbeat = (8 - round(2 * bars[0] / divisions)) % 8  # rests before it, to begin with a bar
    length = math.ceil(max(notes[-1][1] for notes in voices if notes))
    rows = []
    for notes in voices:
        row = [REST] * length
        for begin, end, number in notes:
            first = math.ceil(begin)
            for at in range(first, math.ceil(end)):
                row[at] = HOLD if at > first else number - LOWEST
        rows.append([REST] * upbeat + row)
    symbols = [symbol for column in zip(*rows, strict=True) for symbol in column]
    return symbols if min(symbols) >= 0 and max(symbols) < SYMBOLS else None


def load(files: int | None = None) -> list[list[int]]:
    """The chorales of the first `files` scores, or of all, without repetitions."""
    (music21,) = importlib.util.find_spec("music21").submodule_search_locations
    paths = sorted(Path(music21, "corpus", "bach").glob("*.mxl"))[:files]
    pieces = (chorale(path) for path in paths)
    return [list(piece) for piece in dict.fromkeys(tuple(p) for p in pieces if p is not None)]


def notes(symbols: list[int], voice: int) -> list[tuple[int, int, int]]:
    """Begin and end in eighths and MIDI number of each note of voice 0 ... 3."""
    found = []
    for at, symbol in enumerate(symbols[voice::4]):
        if symbol < NOTES:
            found.append((at, at + 1, LOWEST + symbol))
        elif symbol == HOLD and found and found[-1][1] == at:
            found[-1] = (found[-1][0], at + 1, found[-1][2])
    return found


def write_midi(symbols: list[int], path: Path) -> None:
    """A Standard MIDI File, format 0, on a church organ at 84 quarters a minute."""
    events = [(0, 0, bytes([0xC0 | voice, 19])) for voice in range(4)]
    events.append((0, 0, b"\xff\x51\x03" + (60_000_000 // 84).to_bytes(3)))
    for voice in range(4):
        for begin, end, number in notes(symbols, voice):
            events.append((begin, 2, bytes([0x90 | voice, number, 80])))
            events.append((end, 1, bytes([0x80 | voice, number, 0])))  # before what begins there
    track, now = b"", 0
    for at, _, message in sorted(events):
        ticks, now = (at - now) * 12, at
        high, low = divmod(ticks, 128)
        if high >= 128:  # lengths of 16384 ticks would need a third byte
            raise ValueError(f"a pause of {ticks} ticks")
        track += (bytes([128 | high]) if high else b"") + bytes([low]) + message
    track += b"\x00\xff\x2f\x00"
    header = struct.pack(">4sIHHH", b"MThd", 6, 0, 1, 24)  # 24 ticks a quarter
    path.write_bytes(header + struct.pack(">4sI", b"MTrk", len(track)) + track)

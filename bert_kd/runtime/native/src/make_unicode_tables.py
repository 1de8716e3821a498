"""Writes unicode_tables.cpp: what the `tokenizers` library does to every code point.

It asks the installed `tokenizers`, as the versions of Unicode within it (Oniguruma's, Rust's, the
crates') differ among themselves and from Python's. Python's (3.11: Unicode 14) says alone which
code points are old: releases of `tokenizers` differ about younger ones (0.21 to 0.23 agree on all
others), so these are marked as doubtful. Run `python3.11 make_unicode_tables.py` after a change of
what is asked.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path

from tokenizers import Regex, normalizers, pre_tokenizers

TABLES = Path(__file__).with_name("unicode_tables.cpp")
UNICODE = "14.0.0"
"""The version of Python's table that tells old code points."""
HANGUL = range(0xAC00, 0xD7A4)
BLOCK = 128
"""Code points of one line of the second-stage table; as in unicode_tables.h."""
SAME = 255
"""The length of a replacement that is the code point itself; as in unicode_tables.h."""
GROWTH = 3
"""How many bytes may become of one; as in normalizer.cpp."""
FENCE = "|"
"""Stands between code points that are asked about in one call: no component moves past it."""

# Bits of a record's flags; as in unicode_tables.h.
WORD, LETTER, SPACE, HAN, PUNCTUATION, CHINESE, REMOVED, DOUBTFUL = (1 << bit for bit in range(8))


@dataclass(frozen=True)
class Facts:
    """What `tokenizers` does to one code point."""

    flags: int
    stripped: str  # by strip_accents
    lowered: str  # by lowercase


def probe() -> dict[int, Facts]:
    """Return the facts of all code points that are no younger than UNICODE.

    Raises ValueError where `tokenizers` does what the C++ code does not provide for.
    """
    word, space, han = (_matched_by(pattern) for pattern in (r"\w", r"\s", r"\p{Han}"))
    letter, other = _matched_by(r"[\w&&[^\p{Han}]]"), _matched_by(r"[^\w\s]")
    cleaned = _made_by(normalizers.BertNormalizer(True, False, False, False))
    spaced = _made_by(normalizers.BertNormalizer(False, True, False, False))
    stripped = _made_by(normalizers.BertNormalizer(False, False, True, False))
    lowered = _made_by(normalizers.BertNormalizer(False, False, False, True))
    separating, isolated = _split_by_bert()
    movable = _reordered_by_nfd()

    facts = {}
    for code in _code_points():
        char = chr(code)
        # Within brackets, \w is less: without superscripts and fractions of Latin-1.
        _check(code not in letter or (code in word and code not in han), "Regex", code)
        in_set = code in letter or (code in word and code in han)
        _check((code in other) != (code in space or in_set), "Regex", code)
        _check(cleaned[code] in (char, " ", ""), "clean_text", code)
        _check(cleaned[code] != " " or code in space, "clean_text", code)
        _check((code in space) == (code in separating), "BertPreTokenizer", code)
        _check(code not in space or cleaned[code] in ("", " "), "clean_text", code)
        _check(spaced[code] in (char, f" {char} "), "handle_chinese_chars", code)
        _check(code not in HANGUL or stripped[code] == _jamo(code), "strip_accents", code)
        both = "".join(lowered.get(ord(part), part) for part in stripped[code])
        longest = max(len(text.encode()) for text in (both, stripped[code], lowered[code]))
        room = GROWTH * len(char.encode()) - (len(spaced[code]) - 1)
        _check(longest <= room, "strip_accents or lowercase", code)
        moves = not movable.isdisjoint(map(ord, stripped[code]))
        flags = (
            WORD * (code in word)
            | LETTER * (code in letter)
            | SPACE * (code in space)
            | HAN * (code in han)
            | PUNCTUATION * (code in isolated)
            | CHINESE * (spaced[code] != char)
            | REMOVED * (cleaned[code] == "")
            | DOUBTFUL * moves
        )
        facts[code] = Facts(flags, stripped[code], lowered[code])
    return facts


@cache
def _code_points() -> list[int]:
    """Return what is old, without surrogates, which can't stand in UTF-8."""
    return [c for c in range(0x110000) if unicodedata.category(chr(c)) not in ("Cn", "Cs")]


def _check(expected: bool, component: str, code: int) -> None:
    if not expected:
        raise ValueError(f"{component} does to U+{code:04X} what the C++ code does not provide for")


def _batches(size: int = 1024) -> Iterator[list[int]]:
    for start in range(0, len(_code_points()), size):
        yield _code_points()[start : start + size]


def _made_by(normalizer: normalizers.Normalizer) -> dict[int, str]:
    """Return what `normalizer` makes of each code point."""
    made: dict[int, str] = {}
    for batch in _batches():
        text = FENCE.join("" if chr(code) == FENCE else chr(code) for code in batch)
        made |= dict(zip(batch, normalizer.normalize_str(text).split(FENCE), strict=True))
    return made | {ord(FENCE): normalizer.normalize_str(FENCE)}


def _matched_by(pattern: str) -> set[int]:
    """Return the code points that a regular expression of one character matches."""
    made = _made_by(normalizers.Replace(Regex(rf"(?!\{FENCE}){pattern}"), "<>"))
    made[ord(FENCE)] = normalizers.Replace(Regex(pattern), "<>").normalize_str(FENCE)
    return {code for code, text in made.items() if text == "<>"}


def _split_by_bert() -> tuple[set[int], set[int]]:
    """Return the code points that separate words, and those that are pieces of their own."""
    separating, isolated = set(), set()
    for batch in _batches():
        # "x", code point, "y,": the comma ends what the next one could join.
        text = "".join(f"x{chr(code)}y," for code in batch)
        pieces = pre_tokenizers.BertPreTokenizer().pre_tokenize_str(text)
        covered = {at: end - start for _, (start, end) in pieces for at in range(start, end)}
        for number, code in enumerate(batch):
            length = covered.get(4 * number + 1, 0)
            _check(length in (0, 1, 3), "BertPreTokenizer", code)
            if length == 0:
                separating.add(code)
            elif length == 1:
                isolated.add(code)
    return separating, isolated


def _reordered_by_nfd() -> set[int]:
    """Return the code points that NFD may move past a neighbour: those of a combining class."""
    low, high = "\u0334", "\u0345"  # combining classes 1 and 240, the least and the greatest
    nfd = normalizers.NFD()
    moved = set(map(ord, low + high))
    for batch in _batches():
        asked = [chr(code) for code in batch if chr(code) != FENCE]
        for pairs in ([char + low for char in asked], [high + char for char in asked]):
            made = nfd.normalize_str(FENCE.join(pairs)).split(FENCE)
            moved |= {
                ord(char)
                for char, before, after in zip(asked, pairs, made, strict=True)
                if after == before[::-1] != before
            }
    return moved


def _jamo(code: int) -> str:
    """Return the letters of a Hangul syllable, by the arithmetic of the Unicode standard, 3.12."""
    lead, rest = divmod(code - HANGUL.start, 21 * 28)
    vowel, trail = divmod(rest, 28)
    return chr(0x1100 + lead) + chr(0x1161 + vowel) + (chr(0x11A7 + trail) if trail else "")


def render(facts: dict[int, Facts]) -> str:
    """Return the C++ source of the tables."""
    pool = bytearray()
    places: dict[bytes, int] = {}

    def placed(code: int, text: str) -> tuple[int, int]:
        """Return where the pool holds the replacement, and its length in bytes."""
        if text == chr(code) or code in HANGUL:
            return 0, SAME
        data = text.encode()
        if data not in places:
            places[data] = len(pool)
            pool.extend(data)
        return places[data], len(data)

    records: dict[tuple[int, ...], int] = {}

    def record_of(code: int) -> int:
        known = facts.get(code, Facts(DOUBTFUL, chr(code), chr(code)))
        stripped, lowered = placed(code, known.stripped), placed(code, known.lowered)
        return records.setdefault((known.flags, *stripped, *lowered), len(records))

    blocks: dict[tuple[int, ...], int] = {}
    first = [
        blocks.setdefault(tuple(map(record_of, range(start, start + BLOCK))), len(blocks))
        for start in range(0, 0x110000, BLOCK)
    ]
    lines = [
        "// Generated by make_unicode_tables.py: edit that instead.",
        "",
        '#include "unicode_tables.h"',
        "",
        "namespace bert_kd::unicode {",
        "",
        f"const std::uint16_t kBlocks[{len(first)}] = {{",
        *_wrapped(first),
        "};",
        "",
        f"const std::uint16_t kRecordOf[{len(blocks)}][{BLOCK}] = {{",
        *chain.from_iterable(("{", *_wrapped(block), "},") for block in blocks),
        "};",
        "",
        f"const Record kRecords[{len(records)}] = {{",
        *_wrapped(["{" + ",".join(map(str, record)) + "}" for record in records]),
        "};",
        "",
        f"const unsigned char kReplacements[{len(pool)}] = {{",
        *_wrapped(pool),
        "};",
        "",
        "}  // namespace bert_kd::unicode",
    ]
    return "\n".join(lines) + "\n"


def _wrapped(values: Iterable[object]) -> Iterator[str]:
    line = ""
    for value in values:
        if len(line) + len(str(value)) + 1 > 100:
            yield line
            line = ""
        line += f"{value},"
    yield line


if __name__ == "__main__":
    if unicodedata.unidata_version != UNICODE:
        raise SystemExit(f"run this with a Python of Unicode {UNICODE}, which is 3.11")
    TABLES.write_text(render(probe()), encoding="utf-8")

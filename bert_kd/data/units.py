"""A text as units: what views replace, leave out and cut between.

A unit is a word, a number, a run of one punctuation mark, or a single Chinese or Japanese
character, which no space sets apart. The white space before each unit is kept, so that a text comes
back exactly as it was written, typed ("don't,") or tokenised ("do n't ,").
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import NamedTuple

_ALONE = "\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Kana and Chinese characters."""
_MARKS = (
    "!-/:-@\\[-`{-~\u00a1-\u00bf\u2000-\u200b\u200e-\u206f\u3000-\u303f\uff00-\uff0f\uff1a-\uff20"
)
"""Punctuation: ASCII (without digits and letters), Latin, general, Chinese and full-width."""
_LETTER = f"[^\\s{_ALONE}{_MARKS}]"
_UNIT = re.compile(
    rf"(\s*)([{_ALONE}]"
    rf"|\d+(?:[.,]\d+)*(?!{_LETTER})"
    rf"|{_LETTER}+(?:['’\-]{_LETTER}+)*"
    r"|['’](?:s|re|ve|ll|d|m)\b"
    r"|(\S)\3*)",
    re.IGNORECASE,
)


class Units(NamedTuple):
    """The units of a text, and the white space before each and after the last."""

    gaps: list[str]
    words: list[str]
    tail: str = ""

    def text(self) -> str:
        """Return the text that these units make up, as it was written."""
        return "".join(map("".join, zip(self.gaps, self.words, strict=True))) + self.tail

    def part(self, start: int, end: int) -> Units:
        """Return the units from `start` to `end`, without the white space around them."""
        gaps = self.gaps[start:end]
        if gaps:
            gaps[0] = ""
        return Units(gaps, self.words[start:end])


def split_units(text: str) -> Units:
    """Return the units of `text`."""
    found = _UNIT.findall(text)
    return Units(
        [gap for gap, _, _ in found], [word for _, word, _ in found], text[len(text.rstrip()) :]
    )


def is_word(unit: str) -> bool:
    """Whether a unit is a word or a number, and no punctuation."""
    return any(map(str.isalnum, unit))


def ends_part(unit: str) -> bool:
    """Whether a part of a sentence ends with this unit: a comma, a full stop, a dash."""
    return unit[0] not in "'’\"`“”([{（《「『" and unicodedata.category(unit[0]) in (
        "Po",
        "Pd",
        "Pe",
    )


def in_case_of(word: str, model: str) -> str:
    """Return `word` in small letters, capitalised or in capitals, as `model` is."""
    if model.islower() or not model.isupper() and not model[:1].isupper():
        return word
    return word.upper() if model.isupper() and len(model) > 1 else word[:1].upper() + word[1:]


def words_of(text: str) -> Iterable[str]:
    """Return the words and numbers of `text`, in order."""
    return filter(is_word, split_units(text).words)

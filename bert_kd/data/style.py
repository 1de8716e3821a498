"""The writing habits of the labelled text, and bringing other texts to them.

A pool of unlabelled texts is often written otherwise than the labelled ones: typed and cased where
they are lower-cased and tokenised (SST-2: "do n't", " , "), half-width where they are full-width.
Here the labelled text's habits are learned, as far as it has any, and other texts are rewritten to
them. A text that follows them already stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

HABIT = 0.98
"""Share of the places where a habit shows at which it must be kept."""
PLACES = 20
"""A habit that shows at fewer places is not learned."""
LEARNED_TEXTS = 50_000

_CJK = "\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_PAIR = re.compile(f"(?<=[{_CJK}])(\\s*)(?=[{_CJK}])")
_WIDE = dict(zip(",!?:;", "，！？：；", strict=True))
_NARROW = {wide: narrow for narrow, wide in _WIDE.items()}
_AFTER_CJK = re.compile(f"(?<=[{_CJK}])[,!?:;，！？：；]")
_MARK = re.compile(r"(?<=\w)(\s*)(?:[,;!?]|:(?!\d)|\.(?=\s*$))(?![,;:.!?\w])")
_CLITIC = re.compile(r"(?i)(?<=\w)(\s*)(?:n't|'(?:s|re|ve|ll|d|m))\b")
_QUOTE = re.compile("``|''|[\"“”]")
_BRACKET = re.compile(r"(?i)-[lr]rb-|[()]")

# Penn-Treebank tokenisation, after the rules that R. MacIntyre published with the Treebank.
_APART = (
    (re.compile(r"\.\.\.+"), r" ... "),
    (re.compile(r"(?<!\d)([,:;])|([,:;])(?!\d)"), r" \1\2 "),
    (re.compile(r"([?!()\[\]{}$%&#@])"), r" \1 "),
    (re.compile(r"--+"), r" -- "),
    (re.compile(r"(?<![.\s])\.(?=[\"'”’)\]]*\s*$)"), r" . "),
    (re.compile(r"(?i)(?<=\w)(n't|'(?:s|re|ve|ll|d|m))\b"), r" \1"),
    (re.compile(r"(?i)\bcannot\b"), "can not"),
    (re.compile(r"(?<=\w)'(?=\s|$)"), r" ' "),
    (re.compile(r"(?i)(?<=\s)'(?!(?:re|ve|ll)\b)(?=[^\W\d]{2})"), r"' "),
)


@dataclass(frozen=True)
class Style:
    """The habits of the labelled text; each is None or False where it has none."""

    lower: bool = False
    """No capital letters."""
    tokenised: bool = False
    """Marks and clitics set apart, as in the Penn Treebank."""
    treebank_quotes: bool = False
    """`` and '' for quotation marks."""
    treebank_brackets: bool = False
    """-lrb- and -rrb- for brackets."""
    spaced_cjk: bool | None = None
    """White space between Chinese characters: always or never."""
    full_width: bool | None = None
    """Marks between Chinese characters full-width or half-width."""

    @property
    def habits(self) -> list[str]:
        """Return the habits in words."""
        words = {
            "lower-cased": self.lower,
            "tokenised": self.tokenised,
            "Treebank quotation marks": self.treebank_quotes,
            "Treebank brackets": self.treebank_brackets,
            "spaces between Chinese characters": self.spaced_cjk is True,
            "no spaces between Chinese characters": self.spaced_cjk is False,
            "full-width marks": self.full_width is True,
            "half-width marks": self.full_width is False,
        }
        return [word for word, is_so in words.items() if is_so]

    def __call__(self, text: str) -> str:
        """Return `text` written in this style."""
        if self.full_width is not None:
            marks = _WIDE if self.full_width else _NARROW
            text = _AFTER_CJK.sub(lambda found: marks.get(found[0], found[0]), text)
        if self.spaced_cjk is not None:
            text = _PAIR.sub(" " if self.spaced_cjk else "", text)
        if self.tokenised:
            text = self._apart(text)
        return text.lower() if self.lower else text

    def _apart(self, text: str) -> str:
        text = re.sub("[‘’´]", "'", text)
        text = _quoted(text, self.treebank_quotes)
        for pattern, replacement in _APART:
            text = pattern.sub(replacement, text)
        if self.treebank_brackets:
            text = text.replace("(", "-LRB-").replace(")", "-RRB-")
        return " ".join(text.split())


def _quoted(text: str, treebank: bool) -> str:
    """Set quotation marks apart; as `` and '' where the Treebank's are wanted."""
    parts = re.split("``|''|[\"“”]", text)
    if not treebank:
        return ' " '.join(parts)
    out = [parts[0]]
    for number, part in enumerate(parts[1:]):
        out += [" `` " if number % 2 == 0 else " '' ", part]
    return "".join(out)


@dataclass
class Rewriting:
    """A style that counts the texts that it changes."""

    style: Style
    read: int = 0
    changed: int = 0

    def __call__(self, text: str) -> str:
        """Return `text` in this style."""
        written = self.style(text) if self.style.habits else text
        self.read += 1
        self.changed += written != text
        return written

    def notes(self) -> list[str]:
        """Return what was done, in words; nothing where nothing was."""
        if not self.changed:
            return []
        return [
            f"transfer: {self.changed:,} of {self.read:,} texts rewritten as the labelled ones are "
            f'({", ".join(self.style.habits)}); data.transfer_style = "as given" leaves them'
        ]


@dataclass
class _Share:
    """How often something was so, of how often it could have been."""

    held: int = 0
    places: int = 0

    def add(self, is_so: bool) -> None:
        self.held += is_so
        self.places += 1

    @property
    def always(self) -> bool:
        return self.places >= PLACES and self.held >= HABIT * self.places

    @property
    def never(self) -> bool:
        return self.places >= PLACES and self.held <= (1 - HABIT) * self.places


def learn_style(texts: Iterable[str]) -> Style:
    """Return the habits of `texts`, as seen in the first of them."""
    lower, apart, quotes, brackets, spaced, wide = (_Share() for _ in range(6))
    for text in islice(texts, LEARNED_TEXTS):
        if text.lower() != text.upper():
            lower.add(text == text.lower())
        for found in (*_MARK.finditer(text), *_CLITIC.finditer(text)):
            apart.add(bool(found[1]))
        for found in _QUOTE.finditer(text):
            quotes.add(found[0] in ("``", "''"))
        for found in _BRACKET.finditer(text):
            brackets.add(len(found[0]) > 1)
        for found in _PAIR.finditer(text):
            spaced.add(bool(found[1]))
        for found in _AFTER_CJK.finditer(text):
            wide.add(found[0] in _NARROW)
    return Style(
        lower=lower.always,
        tokenised=apart.always,
        treebank_quotes=quotes.always,
        treebank_brackets=brackets.always,
        spaced_cjk=_either(spaced),
        full_width=_either(wide),
    )


def _either(share: _Share) -> bool | None:
    """Return whether something is always or never so; None: now so, now otherwise."""
    return True if share.always else False if share.never else None

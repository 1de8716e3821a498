"""Views: rows of labelled text changed a little, for the teacher to label anew.

Here: what is done to one row. Words are masked or replaced by one of the same class (Tang et al.
2019, section 4.3) or by one near in meaning (TinyBERT, Jiao et al. 2020, algorithm 1); parts of two
texts are joined; a span is kept of the rest (Tang's n-gram sampling). Of a pair one side is
changed lightly, or it is joined with the other side of another pair, or the sides are swapped. A
view depends on its row, the seed and what was learned from all rows; not on the order of the rows.
Not here: reading and writing rows, and repeats among them (`views.py`).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from bert_kd.config import AugmentConfig
from bert_kd.data.keys import key_bytes, row_keys
from bert_kd.data.rows import Rows
from bert_kd.data.units import Units, ends_part, in_case_of, is_word, split_units
from bert_kd.data.word_classes import WordClasses

KINDS = {
    "mask": 1,
    "replace_by_class": 2,
    "neighbours": 4,
    "ngram": 8,
    "mix": 16,
    "swap": 32,
}
"""What was done to a row; its `view` is the sum of these numbers."""
TRIES = 3
"""How often a view is tried that came out as the row itself or as another view of it."""
SPAN = 5
"""Tang et al. 2019 keep 1 to 5 words; of longer texts here up to half the words are kept."""

Span = tuple[int, int]
Neighbours = Callable[[Sequence[str], Sequence[Sequence[Span]]], list[list[Sequence[str]]]]
"""Words that could stand at these places (start, end) of each text, the place's own aside."""


@dataclass(frozen=True)
class Partners:
    """Rows to join others with, by label."""

    rows: Mapping[int, Sequence[tuple[str, str | None]]]
    holding: Mapping[str, Sequence[tuple[str, str | None]]] = field(default_factory=dict)
    """Of pairs: those whose first side holds a word, by word."""

    def draw(
        self, label: int, first: Units | None, source: random.Random
    ) -> tuple[str, str | None] | None:
        """Return a row of this label or, as often, of any; or one whose first side shares a word
        with `first`. None where there is none.
        """
        if first is not None:
            shared = [word for word in first.words if word in self.holding]
            if shared:
                return source.choice(self.holding[source.choice(shared)])
        if source.random() < 0.5:
            label = source.choice(sorted(self.rows))
        rows = self.rows.get(label)
        return source.choice(rows) if rows else None


@dataclass(frozen=True)
class Tools:
    """What views are made with, beside the rows themselves."""

    classes: WordClasses
    partners: Partners
    neighbours: Neighbours | None = None
    mask_token: str | None = None
    """The teacher's; None: a masked word is left out."""


@dataclass
class _Sketch:
    """A view before words near in meaning are known."""

    at: tuple[int, int]
    """Its row, and which of the row's views it is."""
    units: Units
    """Of the side that is changed."""
    other: str | None
    """The other side of a pair, as it stays."""
    second: bool
    """Whether it is the second side of a pair that is changed."""
    kinds: int
    source: random.Random
    open: list[int] = field(default_factory=list)
    """Units to be replaced by a word near in meaning."""


def make_views(rows: Rows, wanted: Sequence[int], config: AugmentConfig, tools: Tools) -> Rows:
    """Return up to `wanted[row]` views of each row, without labels, in the order of the rows.

    A view is neither empty nor equal to its row or to another view of it; where chance gives no
    such view, there are fewer.
    """
    sides: list[Sequence[str]] = (
        [rows.texts] if rows.texts_b is None else [rows.texts, rows.texts_b]
    )
    split = [[split_units(text) for text in side] for side in sides]
    keys = key_bytes(rows.keys)
    made: dict[tuple[int, int], tuple[str, str | None, int]] = {}
    seen = [{(text[0], text[1] if len(text) > 1 else None)} for text in zip(*sides, strict=True)]
    due = [(row, view) for row in range(len(rows)) for view in range(wanted[row])]
    for attempt in range(TRIES):
        sketches = []
        for row, view in due:
            key = keys[16 * row : 16 * row + 16]
            source = _chance(config.seed, key, view, attempt)
            units = [side[row] for side in split]
            sketches.append(
                _sketch((row, view), units, int(rows.labels[row]), config, tools, source)
            )
        if tools.neighbours is not None:
            _fill(sketches, tools.neighbours)
        due = []
        for sketch in sketches:
            text, text_b, kinds = _finish(sketch, config)
            own = seen[sketch.at[0]]
            if not kinds or not text.strip() or (text, text_b) in own:
                due.append(sketch.at)
                continue
            own.add((text, text_b))
            made[sketch.at] = (text, text_b, kinds)
    found = [made[at] for at in sorted(made)]
    texts = [text for text, _, _ in found]
    texts_b = [text_b or "" for _, text_b, _ in found] if rows.texts_b is not None else None
    return Rows(
        row_keys(texts, texts_b),
        texts,
        texts_b,
        np.full(len(found), -1, dtype=np.int64),
        np.array([kinds for _, _, kinds in found], dtype=np.int16),
    )


def _chance(seed: int, key: bytes, view: int, attempt: int) -> random.Random:
    """Return the source of chance of one view: the same for the same row, wherever it stands."""
    digest = hashlib.blake2b(key, digest_size=8, salt=f"{view}.{attempt}".encode()[:16])
    digest.update(seed.to_bytes(8, "little"))
    return random.Random(int.from_bytes(digest.digest(), "little"))


def _sketch(
    at: tuple[int, int],
    units: Sequence[Units],
    label: int,
    config: AugmentConfig,
    tools: Tools,
    source: random.Random,
) -> _Sketch:
    """Return a view in which all is done that needs no words near in meaning."""
    kinds, other, second = 0, None, False
    if len(units) == 1:
        changed = units[0]
        if source.random() < config.mix and (partner := tools.partners.draw(label, None, source)):
            changed, kinds = _joined(changed, split_units(partner[0]), source), KINDS["mix"]
    else:
        pair = list(units)
        if source.random() < config.mix:
            shared = pair[0] if source.random() < 0.5 else None
            partner = tools.partners.draw(label, shared, source)
            if partner is not None and partner[1] is not None:
                pair[1], kinds = split_units(partner[1]), KINDS["mix"]
        if source.random() < config.swap:
            pair, kinds = pair[::-1], kinds | KINDS["swap"]
        second = source.random() < 0.5
        changed, other = pair[second], pair[not second].text()
    sketch = _Sketch(at, Units(changed.gaps[:], changed.words[:], changed.tail), other, second,
                     kinds, source)  # fmt: skip
    _change_words(sketch, config, tools)
    return sketch


def _joined(mine: Units, other: Units, source: random.Random) -> Units:
    """Return the beginning of one text and the end of the other."""
    first, last = (mine, other) if source.random() < 0.5 else (other, mine)
    head, end = first.part(0, _border(first, source)), _border(last, source)
    gaps, words = last.gaps[end:], last.words[end:]
    if len(last.words) == 1:  # it has no border inside: it is taken whole
        gaps, words = [head.gaps[-1] if len(head.gaps) > 1 else " "], last.words
    return Units(head.gaps + gaps, head.words + words)


def _border(units: Units, source: random.Random) -> int:
    """Return where a text is cut: after a punctuation mark where it has one inside, else between
    any two words.
    """
    borders = [at + 1 for at, word in enumerate(units.words[:-1]) if ends_part(word)]
    return source.choice(borders) if borders else source.randint(1, max(len(units.words) - 1, 1))


def _change_words(sketch: _Sketch, config: AugmentConfig, tools: Tools) -> None:
    """Mask words, replace words by others of their class, and choose those that words near in
    meaning are wanted for.
    """
    gaps, words, source = sketch.units.gaps, sketch.units.words, sketch.source
    by_class = config.mask + config.replace_by_class
    by_meaning = by_class + (config.neighbours if tools.neighbours is not None else 0.0)
    left_out = []
    for at, word in enumerate(words):
        chance = source.random()
        if chance >= by_meaning or not is_word(word):
            continue
        if chance < config.mask:
            sketch.kinds |= KINDS["mask"]
            if tools.mask_token is None:
                left_out.append(at)
            else:
                words[at] = tools.mask_token
        elif chance >= by_class:
            sketch.open.append(at)
        elif (drawn := tools.classes.draw(word, source)) is not None:
            words[at] = drawn
            sketch.kinds |= KINDS["replace_by_class"]
    if left_out and len(left_out) < len(words):
        gone = set(left_out)
        kept = [at for at in range(len(words)) if at not in gone]
        sketch.open = [kept.index(at) for at in sketch.open]
        first_gap = gaps[0]
        gaps[:], words[:] = [gaps[at] for at in kept], [words[at] for at in kept]
        gaps[0] = first_gap


def _fill(sketches: Sequence[_Sketch], neighbours: Neighbours) -> None:
    """Replace the open units of all sketches by words near in meaning, drawn evenly."""
    asked = [sketch for sketch in sketches if sketch.open]
    places = []
    for sketch in asked:
        ends = np.cumsum(
            [len(gap) + len(word) for gap, word in zip(*sketch.units[:2], strict=True)]
        )
        places.append(
            [(int(ends[at]) - len(sketch.units.words[at]), int(ends[at])) for at in sketch.open]
        )
    found = neighbours([sketch.units.text() for sketch in asked], places)
    for sketch, words in zip(asked, found, strict=True):
        for at, proposed in zip(sketch.open, words, strict=True):
            if proposed:
                own = sketch.units.words[at]
                sketch.units.words[at] = in_case_of(sketch.source.choice(proposed), own)
                sketch.kinds |= KINDS["neighbours"]


def _finish(sketch: _Sketch, config: AugmentConfig) -> tuple[str, str | None, int]:
    """Return the view's text (or both of a pair) and what was done."""
    units, kinds, source = sketch.units, sketch.kinds, sketch.source
    count = len(units.words)
    if sketch.other is None:
        if count > 1 and source.random() < config.ngram:
            length = source.randint(1, min(max(SPAN, count // 2), count - 1))
            start = source.randint(0, count - length)
            units, kinds = units.part(start, start + length), kinds | KINDS["ngram"]
        return units.text(), None, kinds
    sides = (sketch.other, units.text()) if sketch.second else (units.text(), sketch.other)
    return *sides, kinds if sides[0].strip() and sides[1].strip() else 0

"""What is counted about the rows of a source and told to people.

Empty texts, duplicates, texts with two labels, leaks, overlap, and the lengths of texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bert_kd.data.draft import Draft, Example
from bert_kd.data.labels import Labels
from bert_kd.data.rows import Rows
from bert_kd.data.splits import Groups, Mask
from bert_kd.progress import Advance

MOST_EXAMPLES = 5
LONGEST_COUNTED = 2**17
"""A longer text is counted as this long."""


@dataclass(frozen=True)
class Finding:
    """One thing that was counted in one split."""

    kind: str
    """`empty`, `duplicate`, `two_labels`, `leak` or `overlap`."""
    split: str
    rows: int
    dropped: int
    sentence: str
    """The finding in words, for people."""
    examples: tuple[Example, ...]


def find_empty(split: str, draft: Draft, mask: Mask, drop: bool) -> Iterator[Finding]:
    """Yield a finding where rows that `mask` picks have no text."""
    rows = np.flatnonzero(mask & draft.empty)
    if len(rows):
        outcome = "dropped" if drop else "kept, so that scores stay comparable"
        sentence = f"{split}: {_rows(len(rows))} without text ({outcome})"
        yield _finding("empty", split, draft, rows, drop, sentence)


def find_duplicates(split: str, draft: Draft, repeats: Mask, drop: bool) -> Iterator[Finding]:
    """Yield a finding where rows repeat an earlier text of the split."""
    rows = np.flatnonzero(repeats)
    if len(rows):
        outcome = "dropped" if drop else "kept"
        if split == "train" and not drop:
            outcome += "; data.drop_duplicates = true drops them"
        sentence = f"{split}: {_rows(len(rows))} repeating an earlier text ({outcome})"
        yield _finding("duplicate", split, draft, rows, drop, sentence)


def find_two_labels(
    split: str, draft: Draft, rows: npt.NDArray[np.int64], groups: Groups, labels: Labels
) -> Iterator[Finding]:
    """Yield a finding where one text of the split carries several labels.

    `rows` are the rows of the split in `draft`, `groups` their equal texts.
    """
    numbers = labels.lookup[draft.codes[rows]]
    least, greatest = groups.range(numbers)
    torn = least != greatest  # [groups]
    if not torn.any():
        return
    first = np.sort(groups.order[groups.starts[torn]])[:MOST_EXAMPLES]
    examples = []
    for at, example in zip(first, draft.examples(rows[first]), strict=True):
        carried = np.unique(numbers[draft.keys[rows] == draft.keys[rows[at]]])
        examples.append(replace(example, labels=tuple(labels.names[label] for label in carried)))
    count = int(groups.spread(torn).sum())
    texts = int(torn.sum())
    sentence = (
        f"{split}: {texts:,} text{'s' if texts > 1 else ''} with more than one label "
        f"({_rows(count)}; kept, correct them in the source)"
    )
    yield Finding("two_labels", split, count, 0, sentence, tuple(examples))


def find_leaks(
    split: str, draft: Draft, leaks: Mask, other: int, dropped: int
) -> Iterator[Finding]:
    """Yield a finding where texts of validation or test also stand in train.

    `other` of them have another label there; `dropped` rows left train for it.
    """
    rows = np.flatnonzero(leaks)
    if len(rows):
        outcome = (
            f"{_rows(dropped)} dropped from train"
            if dropped
            else "kept; data.drop_leaks = true drops them from train"
        )
        torn = f", {other:,} of them with another label" if other else ""
        sentence = (
            f"{split}: {_rows(len(rows))} whose text also stands in train, case, width and white "
            f"space aside{torn} ({outcome})"
        )
        found = _finding("leak", split, draft, rows, False, sentence)
        yield replace(found, dropped=dropped)


def find_overlap(draft: Draft, overlap: Mask) -> Iterator[Finding]:
    """Yield a finding where transfer texts also stand in another split."""
    rows = np.flatnonzero(overlap)
    if len(rows):
        sentence = (
            f"transfer: {_rows(len(rows))} whose text also stands in train, validation or test, "
            "case, width and white space aside (dropped)"
        )
        yield _finding("overlap", "transfer", draft, rows, True, sentence)


def _finding(
    kind: str, split: str, draft: Draft, rows: npt.NDArray[np.int64], drop: bool, sentence: str
) -> Finding:
    examples = tuple(draft.examples(rows[:MOST_EXAMPLES]))
    return Finding(kind, split, len(rows), len(rows) if drop else 0, sentence, examples)


def _rows(count: int) -> str:
    return f"{count:,} row{'' if count == 1 else 's'}"


@dataclass
class Lengths:
    """Lengths of the texts of a split (both of a pair together), counted as they pass by."""

    words: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, dtype=np.int64))
    characters: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, dtype=np.int64))

    def counted(self, batches: Iterable[Rows], advance: Advance) -> Iterator[Rows]:
        """Yield `batches` as they are, counting; call `advance` with the rows of each."""
        for rows in batches:
            texts: list[tuple[str, ...]] = (
                [(text,) for text in rows.texts]
                if rows.texts_b is None
                else list(zip(rows.texts, rows.texts_b, strict=True))
            )
            self.words = _add(
                self.words, [sum(len(part.split()) for part in text) for text in texts]
            )
            self.characters = _add(self.characters, [sum(map(len, text)) for text in texts])
            yield rows
            advance(len(rows))

    def summary(self) -> Mapping[str, Mapping[str, float]]:
        """Return mean, 95th percentile and maximum of words (by white space) and characters."""
        return {"words": _summary(self.words), "characters": _summary(self.characters)}


def _add(counts: npt.NDArray[np.int64], lengths: list[int]) -> npt.NDArray[np.int64]:
    """Return the histogram `counts` with `lengths` added."""
    fresh = np.bincount(np.minimum(lengths, LONGEST_COUNTED))
    longer, shorter = (fresh, counts) if len(fresh) > len(counts) else (counts, fresh)
    total = longer.copy()
    total[: len(shorter)] += shorter
    return total


def _summary(counts: npt.NDArray[np.int64]) -> dict[str, Any]:
    rows = int(counts.sum())
    if not rows:
        return {"mean": 0.0, "p95": 0, "max": 0}
    lengths = np.arange(len(counts))
    p95 = int(np.searchsorted(np.cumsum(counts), 0.95 * rows))
    return {
        "mean": round(float((counts * lengths).sum() / rows), 2),
        "p95": p95,
        "max": int(np.flatnonzero(counts)[-1]),
    }

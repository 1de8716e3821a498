"""What every kind of source yields: checked batches of raw rows with their line numbers.

Here: `Columns` (what is wanted), `RawRows` (what comes), and the checks and messages that all
formats share. Not here: the formats themselves (`text_files`, `arrow_tables`), and what labels mean
(`labels`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from bert_kd.errors import DataError, nearest

BATCH_ROWS = 4096
MOST_LISTED = 20
LONGEST_LISTED = 40
"""Characters of a column's name in a message."""

RawLabel = int | str | None
"""A label as the source has it; None: there is none."""


@dataclass(frozen=True)
class Columns:
    """Names of the columns to read."""

    text: str
    text_b: str | None = None
    label: str | None = None
    label_optional: bool = False
    """Whether the label column may be absent; every label is None then."""

    def wanted(self) -> list[tuple[str, str]]:
        """Return (setting, column) of the columns to read: `("data.text", "sentence")`."""
        pairs = (("text", self.text), ("text_b", self.text_b), ("label", self.label))
        return [(f"data.{setting}", name) for setting, name in pairs if name is not None]

    def required(self) -> list[tuple[str, str]]:
        """Return those of `wanted` that must be there."""
        return [
            (setting, name)
            for setting, name in self.wanted()
            if not (self.label_optional and setting == "data.label")
        ]


@dataclass(frozen=True)
class RawRows:
    """A batch of rows as the source has them."""

    texts: list[str]
    texts_b: list[str] | None
    labels: list[RawLabel] | None
    lines: list[int]
    """Number of each row's line (text files) or row (tables), from 1."""

    def __len__(self) -> int:
        return len(self.texts)

    def rewritten(self, rewrite: Callable[[str], str]) -> RawRows:
        """Return these rows with every text as `rewrite` gives it."""
        other = None if self.texts_b is None else [rewrite(text) for text in self.texts_b]
        return RawRows([rewrite(text) for text in self.texts], other, self.labels, self.lines)


@dataclass(frozen=True)
class Table:
    """One table of a source: a file, or a split of a hub data set."""

    name: str
    """For messages: the file's path, or the data set and split."""
    read: Callable[[Columns], Iterator[RawRows]]
    unit: str = "line"
    """What `RawRows.lines` count: `line` or `row`."""
    rows: int | None = None
    """Rows in all, where that is known without reading."""

    def place(self, line: int) -> str:
        """Return where a row stands, for messages."""
        return f"{self.name}, {self.unit} {line}"


@contextmanager
def reading(place: str | Path) -> Iterator[None]:
    """Turn what the system says of an unreadable file or folder into DataError.

    The message names `place` where the system names no file. An OSError without a number is a
    format's own and passes.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise DataError(
            f"{error.filename or place} cannot be read ({os.strerror(error.errno)}): make it "
            "readable to you, or give another"
        ) from None


def require_columns(place: str, found: Sequence[str], columns: Columns, hint: str = "") -> None:
    """Check that `found` holds every required column once. Raises DataError naming the nearest."""
    require_different(columns)
    for setting, name in columns.required():
        if name not in found:
            near = nearest(name, map(_name, found))
            raise DataError(
                f"{place}: there is no column '{name}'{near}; found: {listed(found)}. "
                f"Set {setting} to the column's name{hint}"
            )
    for _setting, name in columns.wanted():
        if found.count(name) > 1:
            raise DataError(f"{place}: the column '{name}' is there twice: rename one of them")


def require_different(columns: Columns) -> None:
    """Raise DataError where two settings name one column."""
    settings: dict[str, str] = {}
    for setting, name in columns.wanted():
        if name in settings:
            raise DataError(
                f"{settings[name]} and {setting} both name the column '{name}': set each to a "
                "column of its own"
            )
        settings[name] = setting


def listed(names: Iterable[str]) -> str:
    """Return column names for a message: the first ones, each cut to a readable length."""
    shown = [_name(name) for name in islice(names, MOST_LISTED + 1)]
    more = ["…"] if len(shown) > MOST_LISTED else []
    return ", ".join(shown[:MOST_LISTED] + more) or "none"


def _name(name: str) -> str:
    cut = name if len(name) <= LONGEST_LISTED else name[: LONGEST_LISTED - 1] + "…"
    return cut if cut.isprintable() else repr(cut)[1:-1]


def checked(
    values: Mapping[str, Sequence[Any]], columns: Columns, lines: list[int], where: str
) -> RawRows:
    """Return column `values` as rows, every text a text and every label an integer or a text.

    An absent text (null) is an empty one; an absent label column gives labels of None. Of labels, a
    truth value is called "false" or "true", and a float is written as in a text file ("1.0"; NaN:
    there is none). `where` goes before a line's number in messages (`train.csv, line`). Raises
    DataError.
    """
    texts = _texts(values[columns.text], columns.text, lines, where)
    texts_b = None
    if columns.text_b is not None:
        texts_b = _texts(values[columns.text_b], columns.text_b, lines, where)
    labels: list[RawLabel] | None = None
    if columns.label is not None:
        given = values.get(columns.label, [None] * len(lines))
        labels = _labels(given, columns.label, lines, where)
    return RawRows(texts, texts_b, labels, lines)


def _texts(values: Sequence[Any], column: str, lines: list[int], where: str) -> list[str]:
    if {type(value) for value in values} - {str, type(None)}:
        for value, line in zip(values, lines, strict=True):
            if value is not None and type(value) is not str:
                raise DataError(
                    f"{where} {line}: the column '{column}' holds {_shown(value)}, which is not a "
                    "text: write it as a text, or name another column"
                )
    texts = ["" if value is None else value for value in values]
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        for text, line in zip(texts, lines, strict=True):
            _refuse_half_character(text, column, f"{where} {line}")
    return texts


def _refuse_half_character(text: str, column: str, place: str) -> None:
    """Raise DataError where `text` holds half of a surrogate pair, which UTF-8 cannot write."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = f"\\u{ord(text[error.start]):04x}"
        raise DataError(
            f"{place}: the column '{column}' holds {code}, half of a character (a lone surrogate): "
            "remove it or write the whole pair"
        ) from None


def _labels(values: Sequence[Any], column: str, lines: list[int], where: str) -> list[RawLabel]:
    if {type(value) for value in values} <= {int, str, type(None)}:
        return list(values)
    labels: list[RawLabel] = []
    for value, line in zip(values, lines, strict=True):
        if type(value) is bool:
            labels.append("true" if value else "false")
        elif type(value) is float and not math.isinf(value):
            # What it means is decided when the names are known, as for the floats of a text file.
            labels.append(None if math.isnan(value) else _as_written(value))
        elif value is None or type(value) in (int, str):
            labels.append(value)
        else:
            raise DataError(
                f"{where} {line}: the label column '{column}' holds {_shown(value)}: labels are "
                "integers or class names; write it as one, or set data.label to another column"
            )
    return labels


def _as_written(value: float) -> str:
    """Return a float without an exponent where it has no fraction."""
    return f"{value:.1f}" if value.is_integer() else repr(value)


def _shown(value: Any) -> str:
    """Return a value and its type for a message, cut to a readable length."""
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"

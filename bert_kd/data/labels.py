"""What labels mean: integers and strings of a source become class numbers and names in order.

Names come from `data.label_names`, else from the source (`labels.json`, a hub data set's features),
else from the labels that stand in train: integers in numeric order, strings in code point order.
A number without a fraction ("1.0", as a column of integers with a gap is written) is its integer,
unless a name is written so. Where every label of train is true or false, in whatever case, they are
two classes, "false" before "true", which names that are given rename as they do 0 and 1.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bert_kd.data.tables import RawLabel
from bert_kd.errors import DataError, nearest
from bert_kd.store import read_json

MISSING = -1
UNKNOWN = -2
MOST_CLASSES = 10_000

Codes = npt.NDArray[np.int32]

_INTEGER = re.compile(r"0|-?[1-9][0-9]*")
_WHOLE = re.compile(r"(-?0|-?[1-9][0-9]*)\.0*")
_FRACTION = re.compile(r"[+-]?[0-9]*\.[0-9]+([eE][+-]?[0-9]+)?|[0-9]+\.")


GIVEN = "data.label_names"
TRAIN = "train"
TRUTH = ("false", "true")
BLANK = ("nan", "null", "none", "na", "n/a")
"""How programs write a missing label, in small letters."""


@dataclass(frozen=True)
class Names:
    """Class names in order, and what the integers of the source stand for."""

    names: tuple[str, ...]
    numbers: Mapping[int, int]
    """Integer label of the source → place in `names`."""
    origin: str
    """Where the names come from, for messages."""


def numbered_names(
    names: Sequence[str], origin: str, numbers: Sequence[int] | None = None
) -> Names:
    """Return `names`, each standing for its integer of `numbers` (None: 0, 1, …).

    Raises DataError.
    """
    repeated = [name for name in names if list(names).count(name) > 1]
    if repeated:
        raise DataError(
            f"{origin}: the name '{repeated[0]}' is there twice: every class needs its own"
        )
    places = range(len(names)) if numbers is None else numbers
    if numbers is None and any(_INTEGER.fullmatch(name) for name in names):
        # Classes called "1", "2", "3": an integer label is a name then, never a position.
        return Names(tuple(names), {}, origin)
    return Names(tuple(names), dict(zip(places, range(len(names)), strict=True)), origin)


def read_names(path: Path) -> Names:
    """Return the names of a `labels.json`: `{"0": "negative", …}` or a list. Raises DataError."""
    content = read_json(path)
    remedy = 'it must be like {"0": "negative", "1": "positive"} or ["negative", "positive"]'
    if isinstance(content, list):
        names, numbers = content, list(range(len(content)))
    elif isinstance(content, dict) and all(_INTEGER.fullmatch(key) for key in content):
        numbers = sorted(int(key) for key in content)
        names = [content[str(number)] for number in numbers]
    else:
        raise DataError(f"{path} does not give names to integers: {remedy}")
    if not names or not all(isinstance(name, str) and name for name in names):
        raise DataError(f"{path} holds a name that is not a text: {remedy}")
    return numbered_names(names, str(path), numbers)


def reordered(own: Names | None, wanted: tuple[str, ...]) -> Names:
    """Return the names of the configuration, `wanted`, over the source's `own` ones.

    The same names in another order: integers keep their meaning. Other names, as many: they rename
    class by class.
    """
    if own is None:
        return numbered_names(wanted, GIVEN)
    if set(wanted) == set(own.names):
        numbers = {number: wanted.index(own.names[at]) for number, at in own.numbers.items()}
        return Names(wanted, numbers, GIVEN)
    if len(wanted) != len(own.names):
        raise DataError(
            f"data.label_names has {len(wanted)} names, {own.origin} has {len(own.names)} "
            f"({', '.join(own.names)}): give as many, or none"
        )
    renamed = numbered_names(wanted, GIVEN)
    return Names(renamed.names, own.numbers, renamed.origin)


@dataclass
class LabelCodes:
    """Gives every distinct label a code and remembers where each split has it first."""

    column: str
    values: list[int | str] = field(default_factory=list)
    places: dict[str, dict[int, str]] = field(default_factory=dict)
    """Split → code → the place of its first row."""
    _codes: dict[RawLabel, int] = field(default_factory=dict)

    def encode(
        self, split: str, labels: list[RawLabel], lines: Sequence[int], place: Callable[[int], str]
    ) -> Codes:
        """Return the code of each label, shape [rows]; `MISSING` for none.

        Raises DataError past 10,000 classes.
        """
        seen = self.places.setdefault(split, {})
        for label in dict.fromkeys(labels):
            code = self._code(label)
            if code not in seen:
                seen[code] = place(lines[labels.index(label)])
        return np.array([self._codes[label] for label in labels], dtype=np.int32)

    def _code(self, label: RawLabel) -> int:
        """Return the code of a label, a new one where it was not met before."""
        if label in self._codes:
            return self._codes[label]
        value: RawLabel = label.strip() if isinstance(label, str) else label
        if isinstance(value, str) and _INTEGER.fullmatch(value):
            value = int(value)
        if value is None or value == "":
            code = MISSING
        elif value in self._codes:
            code = self._codes[value]
        else:
            code = len(self.values)
            self.values.append(value)
        if code >= MOST_CLASSES:
            raise DataError(
                f"the label column '{self.column}' holds over {MOST_CLASSES:,} different labels: "
                "set data.label to the column that holds the class"
            )
        self._codes[label] = self._codes[value] = code
        return code

    def resolve(self, own: Names | None) -> Labels:
        """Return what the codes stand for, by the source's names or by the labels of train.

        Raises DataError.
        """
        in_train = {code for code in self.places.get("train", {}) if code != MISSING}
        truths = all(str(self.values[code]).lower() in TRUTH for code in in_train)
        read = _truth if truths else _meant
        meant = [read(value, own) for value in self.values]
        own = self._from_one(own, {meant[code] for code in in_train})
        if own is None:
            self._refuse_missing("train", [MISSING])
            values = sorted({meant[code] for code in in_train}, key=_order)
            self._refuse_fractions(in_train)
            own = Names(
                tuple(str(value) for value in values),
                {value: at for at, value in enumerate(values) if isinstance(value, int)},
                TRAIN,
            )
        lookup = np.full(len(self.values) + 1, MISSING, dtype=np.int32)  # its last place: code -1
        for code, value in enumerate(meant):
            lookup[code] = _place(value, own)
        return Labels(own, lookup)

    def _from_one(self, own: Names | None, values: set[int | str]) -> Names | None:
        """Return names with integers that do not start at 0, where each name has its integer."""
        numbers = sorted(value for value in values if isinstance(value, int))
        if own is None or own.origin != GIVEN or len(numbers) < len(values):
            return own
        if len(numbers) != len(own.names) or numbers == sorted(own.numbers):
            return own
        return numbered_names(own.names, own.origin, numbers)

    def _refuse_fractions(self, in_train: set[int]) -> None:
        for code in sorted(in_train):
            value = _meant(self.values[code], None)
            if isinstance(value, str) and _FRACTION.fullmatch(value):
                raise DataError(
                    f"{self.places['train'][code]}: the label '{value}' is a number with a "
                    "fraction: labels are integers or class names (where it is a name, list all "
                    "names in data.label_names)"
                )

    def check(self, split: str, labels: Labels) -> bool:
        """Return whether `split` has labels: all of its rows, or none.

        Raises DataError at the first bad row.
        """
        seen = self.places.get(split, {})
        found = {code: int(labels.lookup[code]) for code in seen}
        without = [code for code, label in found.items() if label == MISSING]
        if without and (split != "test" or len(without) < len(found)):
            self._refuse_missing(split, without)
        for code, label in found.items():
            if label == UNKNOWN:
                value = self.values[code]
                names = labels.own.names
                shown = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
                raise DataError(
                    f"{seen[code]}: the label '{value}' is none of the {len(names)} classes of "
                    f"{labels.own.origin} ({shown}){nearest(str(value), names)}: correct the row, "
                    "or list all classes in data.label_names"
                )
        return not without

    def _refuse_missing(self, split: str, without: Sequence[int]) -> None:
        """Raise DataError where the split holds one of these codes, which mean no label."""
        seen = self.places.get(split, {})
        for code in without:
            if code in seen:
                raise DataError(
                    f"{seen[code]}: the label column '{self.column}' is empty or -1 here: label "
                    "the row or remove it (unlabelled texts go into the files of data.transfer)"
                )


@dataclass(frozen=True)
class Labels:
    """Class names, and the class number of every code (`lookup[code]`; `MISSING`, `UNKNOWN`)."""

    own: Names
    lookup: Codes

    @property
    def names(self) -> tuple[str, ...]:
        return self.own.names

    def blank(self) -> list[str]:
        """Return the names, found in train and given by nobody, that may be missing labels."""
        found = self.own.origin == TRAIN
        return [name for name in self.names if found and name.lower() in BLANK]


def _order(value: int | str) -> tuple[int, int, str]:
    """Sort integers by value, before strings by code point."""
    return (0, value, "") if isinstance(value, int) else (1, 0, value)


def _meant(value: int | str, own: Names | None) -> int | str:
    """Return a label with "1.0" read as 1, unless a name is written so."""
    whole = _WHOLE.fullmatch(value) if isinstance(value, str) else None
    if whole is None or (own is not None and value in own.names):
        return value
    return int(whole[1])


def _truth(value: int | str, own: Names | None) -> int | str:
    """Return true or false, in any case, as it is named; else 0 or 1 where there are names."""
    small = str(value).lower()
    if small not in TRUTH or (own is not None and value in own.names):
        return _meant(value, own)
    if own is None:
        return small
    return next((name for name in own.names if name.lower() == small), TRUTH.index(small))


def _place(value: int | str, own: Names) -> int:
    """Return the class number of a label; -1 means none (as in GLUE) unless it is a class."""
    if isinstance(value, int) and value in own.numbers:
        return own.numbers[value]
    if str(value) in own.names:
        return own.names.index(str(value))
    return MISSING if value == -1 else UNKNOWN

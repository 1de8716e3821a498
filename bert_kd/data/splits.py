"""Which rows are equal and which go where: plain functions over arrays of keys and labels.

All work by sorting, so a million rows take about a second. A row's place in a cut depends on its
key and its class alone, or on those of its variants (texts that differ in case, width or white
space alone): not on the order of the rows, and adding other texts moves only those at the border of
the cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from bert_kd.data.keys import Keys

TRAIN, VALIDATION, TEST = 0, 1, 2

Ints = npt.NDArray[np.int64]
Codes = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]
Destinations = npt.NDArray[np.int8]
Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True)
class Groups:
    """Rows with equal keys, group by group in key order."""

    order: Ints  # [rows], rows sorted by key, equal ones as they stood
    starts: Ints  # [groups], where in `order` each group starts

    def __len__(self) -> int:
        return len(self.starts)

    def repeats(self) -> Mask:
        """Return which rows repeat an earlier one, shape [rows]."""
        repeated = np.ones(len(self.order), dtype=bool)
        repeated[self.order[self.starts]] = False
        return repeated

    def range(self, values: npt.NDArray[Scalar]) -> tuple[npt.NDArray[Scalar], npt.NDArray[Scalar]]:
        """Return the least and the greatest of `values` in each group, shapes [groups]."""
        if not len(self):
            return values[:0], values[:0]
        ordered = values[self.order]
        return (
            np.minimum.reduceat(ordered, self.starts),
            np.maximum.reduceat(ordered, self.starts),
        )

    def spread(self, values: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
        """Return each row's group's value of `values` [groups], shape [rows]."""
        rows = np.empty(len(self.order), dtype=values.dtype)
        rows[self.order] = np.repeat(values, np.diff(self.starts, append=len(self.order)))
        return rows


def group(keys: Keys) -> Groups:
    """Return the groups of equal keys."""
    high = keys["high"].astype(np.uint64)  # the machine's byte order sorts much faster
    order = np.argsort(high, kind="stable")
    high = high[order]
    same = high[1:] == high[:-1]
    # Half a key tells nearly all keys apart: the other half is compared where it does not.
    near = np.flatnonzero(same)
    low = keys["low"]
    if np.any(low[order[near]] != low[order[near + 1]]):
        order = np.lexsort((low, keys["high"]))
        same = keys[order[1:]] == keys[order[:-1]]
    fresh = np.ones(len(keys), dtype=bool)
    fresh[1:] = ~same
    return Groups(order, np.flatnonzero(fresh))


def contained(keys: Keys, others: Keys) -> Mask:
    """Return which of `keys` are also among `others`, shape [rows]."""
    groups = group(np.concatenate([keys, others]))
    other = np.zeros(len(keys) + len(others), dtype=np.int32)
    other[len(keys) :] = 1
    _, greatest = groups.range(other)
    return groups.spread(greatest)[: len(keys)].astype(bool)


def cut(
    keys: Keys, folded: Keys, labels: Codes, validation: float | None, test: float | None
) -> Destinations:
    """Return TRAIN, VALIDATION or TEST for each row, shape [rows].

    `validation` and `test` are the shares of each class's distinct texts to cut off (None: that
    split is given). A class with two texts or more gives at least one to each, as long as one is
    left for train. Texts are ordered by a salted hash of their key: the lowest go to test, the
    highest to validation, so that the one cut does not depend on the other. Texts of one `folded`
    key stay together, by the least of their keys; of several labels the least counts.
    """
    groups = group(folded)
    strata, _ = groups.range(labels)  # [groups]
    least, _ = groups.range(keys["high"].astype(np.uint64))  # [groups]
    # Equal hashes keep the groups' order, which is that of the keys.
    order = np.lexsort((_mixed(least), strata))
    destination = np.full(len(groups), TRAIN, dtype=np.int8)
    start = 0
    for size in np.bincount(strata).tolist():
        stratum = order[start : start + size]
        start += size
        tested = 0 if test is None else _quota(size, test, free=size - 1)
        destination[stratum[:tested]] = TEST
        if validation is not None:
            quota = _quota(size, validation, free=size - 1 - tested)
            destination[stratum[size - quota :]] = VALIDATION
    return groups.spread(destination)


def largest_class(folded: Keys, labels: Codes) -> int:
    """Return how many distinct texts the class has that has most: what `cut` can cut from."""
    strata, _ = group(folded).range(labels)
    return int(np.bincount(strata).max(initial=0))


def _quota(size: int, share: float, free: int) -> int:
    """Return how many of a class to cut off: its share, rounded, at least one, of those free."""
    return max(min(max(int(size * share + 0.5), 1), free), 0)


def _mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return a salted hash of integers (the finaliser of SplitMix64, Steele et al. 2014)."""
    mixed: npt.NDArray[np.uint64] = values + np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed

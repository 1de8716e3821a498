"""Finding row keys among row keys: sorted once, then binary search, all vectorised.

Keys are compared as two 64-bit integers, high before low: numpy sorts and searches those far
faster than structured values. Nothing here knows about files.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bert_kd.data.keys import KEY_DTYPE, Keys

Words = npt.NDArray[np.uint64]
Positions = npt.NDArray[np.int64]


def _words(keys: Keys) -> tuple[Words, Words]:
    """Return the high and low halves of `keys` in the machine's byte order, each [rows]."""
    return keys["high"].astype(np.uint64), keys["low"].astype(np.uint64)


def _sorted_order(high: Words, low: Words) -> Positions:
    """Return the stable order that sorts by high, then low, shape [rows]."""
    order = np.argsort(high, kind="stable")
    ordered = high[order]
    same_as_next = ordered[1:] == ordered[:-1]
    if same_as_next.any():
        # Equal highs are rare (equal texts, mostly), so the second half is compared only among
        # them.
        tied = np.zeros(len(order), dtype=np.bool_)
        tied[1:] |= same_as_next
        tied[:-1] |= same_as_next
        among = order[tied]
        order[tied] = among[np.lexsort((low[among], high[among]))]
    return order


@dataclass(frozen=True)
class KeyIndex:
    """Distinct keys in ascending order."""

    high: Words  # [keys]
    low: Words  # [keys]

    def __len__(self) -> int:
        return len(self.high)

    def find(self, keys: Keys) -> Positions:
        """Return where each of `keys` stands in this index, −1 where it does not, shape [rows]."""
        high, low = _words(keys)
        # In ascending order the search walks through memory instead of jumping about in it.
        order = np.argsort(high)
        high, low = high[order], low[order]
        start = np.searchsorted(self.high, high, side="left")
        stop = np.searchsorted(self.high, high, side="right")
        # Halve the range of equal highs until `start` is the first low that is not smaller.
        while (wide := start < stop).any():
            middle = (start + stop) // 2
            smaller = np.zeros(len(low), dtype=np.bool_)
            smaller[wide] = self.low[middle[wide]] < low[wide]
            start = np.where(smaller, middle + 1, start)
            stop = np.where(wide & ~smaller, middle, stop)
        inside = start < len(self.high)
        at = np.where(inside, start, 0)
        if len(self.high):
            inside &= (self.high[at] == high) & (self.low[at] == low)
        positions = np.empty(len(keys), dtype=np.int64)
        positions[order] = np.where(inside, at, -1)
        return positions

    def joined(self, other: KeyIndex) -> KeyIndex:
        """Return an index of the keys of both."""
        high = np.concatenate([self.high, other.high])
        low = np.concatenate([self.low, other.low])
        return _distinct(high, low)[0]

    def keys(self) -> Keys:
        """Return the keys themselves, ascending, shape [keys]."""
        found = np.empty(len(self), dtype=KEY_DTYPE)
        found["high"], found["low"] = self.high, self.low
        return found


def _distinct(high: Words, low: Words) -> tuple[KeyIndex, Positions, npt.NDArray[np.bool_]]:
    """Return the distinct keys, the order that sorts all, and which of those ordered are new."""
    order = _sorted_order(high, low)
    high, low = high[order], low[order]
    first = np.ones(len(order), dtype=np.bool_)
    first[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    return KeyIndex(high[first], low[first]), order, first


def index_keys(keys: Keys) -> KeyIndex:
    """Return the index of `keys`, which may hold a key more than once."""
    return _distinct(*_words(keys))[0]


def group_keys(keys: Keys) -> tuple[KeyIndex, Positions, Positions]:
    """Return the index of `keys`, the first row of each of its keys, and each row's place in it."""
    index, order, first = _distinct(*_words(keys))
    group = np.empty(len(keys), dtype=np.int64)
    group[order] = np.cumsum(first) - 1
    return index, order[first], group

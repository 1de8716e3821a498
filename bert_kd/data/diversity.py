"""How much an unlabelled text adds to the labelled ones while staying near to them."""

from __future__ import annotations

from collections.abc import Iterable
from zlib import crc32

import numpy as np
import numpy.typing as npt

from bert_kd.data.units import is_word, split_units

TABLE_BITS = 22
"""Sequences are told apart by this many bits of a hash: 4 MB, whatever the size of the pool."""


def diversity(labelled: Iterable[str], pool: Iterable[str]) -> npt.NDArray[np.float64]:
    """Return a score from 0 to 1 for each text of the pool, in order, shape [texts].

    The score is the share of a text's words that the labelled texts know (near to their domain),
    times the share of its pairs of neighbouring words that stood in no labelled text and in no text
    of the pool before (something new). A text said again in other words scores low.
    """
    known: set[str] = set()
    seen = np.zeros(2**TABLE_BITS, dtype=bool)
    for text in labelled:
        words = _words(text)
        known.update(words)
        seen[_sequences(words)] = True
    scores = []
    for text in pool:
        words = _words(text)
        places = np.unique(_sequences(words))
        near = sum(word in known for word in words) / max(len(words), 1)
        scores.append(near * (1.0 - float(seen[places].mean())) if len(places) else 0.0)
        seen[places] = True
    return np.array(scores, dtype=np.float64)


def _words(text: str) -> list[str]:
    return [word.lower() for word in split_units(text).words if is_word(word)]


def _sequences(words: list[str]) -> npt.NDArray[np.int64]:
    """Return where the pairs of neighbouring words stand in the table."""
    pairs = zip(words[:-1], words[1:], strict=True)
    hashes = [crc32(f"{first} {second}".encode()) % 2**TABLE_BITS for first, second in pairs]
    return np.array(hashes, dtype=np.int64)

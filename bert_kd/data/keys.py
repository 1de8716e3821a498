"""Row keys: what joins a text with the teacher's answer, whatever its position.

A key is 128 bits of BLAKE2b over the text (and the second text of a pair). Shuffles, subsets and
new runs meet the same key; equal texts share one.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

KEY_BYTES = 16
KEY_DTYPE = np.dtype([("high", ">u8"), ("low", ">u8")])
"""A key as two big-endian integers, so that sorting keys is sorting their bytes."""

Keys = npt.NDArray[Any]
"""An array of `KEY_DTYPE`, shape [rows]."""


def row_key(text: str, text_b: str | None = None) -> bytes:
    """Return the 16-byte key of a text, or of a pair of texts."""
    first = text.encode()
    if text_b is None:
        return hashlib.blake2b(first, digest_size=KEY_BYTES).digest()
    # The length keeps ("ab", "c") and ("a", "bc") apart.
    joined = len(first).to_bytes(8, "little") + first + text_b.encode()
    return hashlib.blake2b(joined, digest_size=KEY_BYTES, person=b"pair").digest()


def row_keys(texts: Sequence[str], texts_b: Sequence[str] | None = None) -> Keys:
    """Return the keys of `texts` (and `texts_b`), shape [rows]."""
    if texts_b is None:
        joined = b"".join(row_key(text) for text in texts)
    else:
        joined = b"".join(
            row_key(text, text_b) for text, text_b in zip(texts, texts_b, strict=True)
        )
    return np.frombuffer(joined, dtype=KEY_DTYPE)


def folded_keys(texts: Sequence[str], texts_b: Sequence[str] | None = None) -> Keys:
    """Return keys that are equal where texts differ in case, width or white space alone, shape
    [rows]: they tell what is the same text to people, and stand in no file.
    """
    folded = [_folded(text) for text in texts]
    return row_keys(folded, None if texts_b is None else [_folded(text) for text in texts_b])


def _folded(text: str) -> str:
    """Return `text` case-folded, in Unicode's NFKC form, its white space single spaces."""
    text = text.lower() if text.isascii() else text.casefold()
    if not unicodedata.is_normalized("NFKC", text):
        text = unicodedata.normalize("NFKC", text)
        # NFKC can bring capitals, and folding them what it composes otherwise (Unicode, D146).
        folded = text.casefold()
        text = text if folded == text else unicodedata.normalize("NFKC", folded)
    return " ".join(text.split())


def join_keys(parts: Sequence[Keys]) -> Keys:
    """Return the keys of `parts` one after the other.

    `np.concatenate` alone gives the machine's byte order: equal values, but other bytes.
    """
    joined = np.concatenate([np.zeros(0, dtype=KEY_DTYPE), *parts])
    return joined.astype(KEY_DTYPE, copy=False)


def key_bytes(keys: Keys) -> bytes:
    """Return the bytes of all keys, 16 each, whatever byte order the array has in memory."""
    return np.ascontiguousarray(keys, dtype=KEY_DTYPE).tobytes()


def hex_keys(keys: Keys) -> list[str]:
    """Return keys as 32 hexadecimal digits each, for messages."""
    joined = key_bytes(keys).hex()
    return [joined[at : at + 2 * KEY_BYTES] for at in range(0, len(joined), 2 * KEY_BYTES)]

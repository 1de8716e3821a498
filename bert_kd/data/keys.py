"""Row keys: what joins a text with the teacher's answer, whatever its position.

A key is 128 bits of BLAKE2b over the text (and the second text of a pair). Shuffles, subsets and
new runs meet the same key; equal texts share one.
"""

from __future__ import annotations

import hashlib
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


def hex_keys(keys: Keys) -> list[str]:
    """Return keys as 32 hexadecimal digits each, for messages."""
    return [key.tobytes().hex() for key in keys]

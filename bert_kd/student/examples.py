"""From prepared rows to what the student learns from: token ids, gold labels, cached teacher
answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from bert_kd.data.batches import Ints, Tokens, encode
from bert_kd.data.keys import Keys, join_keys
from bert_kd.data.rows import iterate_rows


@dataclass(frozen=True)
class Encoded:
    """The rows of one or more splits as the student sees them, in order."""

    keys: Keys  # [rows]
    tokens: Tokens
    tokens_b: Tokens | None
    labels: Ints  # [rows], −1: none

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, rows: Ints) -> Encoded:
        """Return these rows, in this order."""
        other = None if self.tokens_b is None else self.tokens_b.take(rows)
        return Encoded(self.keys[rows], self.tokens.take(rows), other, self.labels[rows])

    @property
    def cut(self) -> int:
        """How many texts were longer than the tokenizer's maximum length."""
        return self.tokens.cut + (self.tokens_b.cut if self.tokens_b is not None else 0)

    @property
    def unknown_share(self) -> float:
        """The share of `[UNK]` (id 1) among all tokens."""
        sides = [self.tokens] if self.tokens_b is None else [self.tokens, self.tokens_b]
        total = sum(len(side.ids) for side in sides)
        return sum(int((side.ids == 1).sum()) for side in sides) / max(total, 1)


def texts_of(paths: Sequence[Path]) -> Iterator[str]:
    """Yield every text of these splits, both sides of pairs, in constant memory."""
    for path in paths:
        for rows in iterate_rows(path):
            yield from rows.texts
            if rows.texts_b is not None:
                yield from rows.texts_b


def encode_splits(tokenizer: Tokenizer, paths: Sequence[Path]) -> Encoded:
    """Return the rows of these splits, one after the other; texts are dropped as soon as they are
    token ids.
    """
    keys, labels, sides, sides_b = [], [], [], []
    for path in paths:
        for rows in iterate_rows(path):
            keys.append(rows.keys)
            labels.append(rows.labels)
            sides.append(encode(tokenizer, rows.texts))
            if rows.texts_b is not None:
                sides_b.append(encode(tokenizer, rows.texts_b))
    return Encoded(
        join_keys(keys),
        _joined(sides),
        _joined(sides_b) if sides_b else None,
        np.concatenate(labels) if labels else np.zeros(0, dtype=np.int64),
    )


def _joined(parts: Sequence[Tokens]) -> Tokens:
    """Return the texts of all parts, one after the other."""
    offsets = np.zeros(sum(len(part) for part in parts) + 1, dtype=np.int64)
    if parts:
        np.cumsum(np.concatenate([part.lengths for part in parts]), out=offsets[1:])
    ids = np.concatenate([part.ids for part in parts]) if parts else np.zeros(0, dtype=np.int32)
    return Tokens(ids, offsets, sum(part.cut for part in parts))

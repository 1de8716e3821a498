"""Ragged token ids and how they are cut into batches of similar length.

Here: `Tokens` (ids of many texts in one array), encoding with a `tokenizers` tokenizer, padding,
and two ways to batch: shuffled buckets for training, sorted by a token budget for inference. No
torch: the runtime uses this too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Tokens:
    """Token ids of many texts: text i is `ids[offsets[i]:offsets[i + 1]]`."""

    ids: npt.NDArray[np.int32]  # [tokens]
    offsets: Ints  # [texts + 1]
    cut: int = 0  # texts that were longer than the tokenizer's maximum

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Ints:
        """Tokens of each text, shape [texts]."""
        return np.diff(self.offsets)

    def take(self, rows: Ints) -> Tokens:
        """Return these texts alone, in the given order."""
        parts = [self.ids[self.offsets[row] : self.offsets[row + 1]] for row in rows]
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum(self.lengths[rows], out=offsets[1:])
        return Tokens(np.concatenate(parts) if parts else self.ids[:0], offsets)

    def padded(self, rows: Ints) -> tuple[Ints, Ints]:
        """Return ids [batch, longest] (padded with 0) and lengths [batch] of these rows."""
        lengths = self.offsets[rows + 1] - self.offsets[rows]  # those of all rows would take longer
        ids = np.zeros((len(rows), int(lengths.max(initial=1))), dtype=np.int64)
        for line, row in zip(ids, rows, strict=True):
            text = self.ids[self.offsets[row] : self.offsets[row + 1]]
            line[: len(text)] = text
        return ids, lengths


def encode(tokenizer: Tokenizer, texts: Sequence[str], chunk: int = 4096) -> Tokens:
    """Return the token ids of `texts`, cut to the tokenizer's truncation; a text without tokens is
    one `[UNK]`.
    """
    unknown = tokenizer.token_to_id("[UNK]") or 0
    ids: list[npt.NDArray[np.int32]] = []
    lengths: list[int] = []
    cut = 0
    for start in range(0, len(texts), chunk):
        for encoding in tokenizer.encode_batch_fast(list(texts[start : start + chunk])):
            found = encoding.ids or [unknown]
            ids.append(np.asarray(found, dtype=np.int32))
            lengths.append(len(found))
            cut += bool(encoding.overflowing)
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    joined = np.concatenate(ids) if ids else np.zeros(0, dtype=np.int32)
    return Tokens(joined, offsets, cut)


def bucketed_batches(lengths: Ints, batch_size: int, generator: np.random.Generator) -> list[Ints]:
    """Cut all rows into shuffled batches of similar length; every row stands in exactly one.

    Rows are shuffled, sorted by length within chunks of 64 batches, cut, and the batches shuffled:
    each epoch's batches differ, and hardly any padding is left.
    """
    order = generator.permutation(len(lengths))
    batches: list[Ints] = []
    for start in range(0, len(order), 64 * batch_size):
        chunk = order[start : start + 64 * batch_size]
        chunk = chunk[np.argsort(lengths[chunk], kind="stable")]
        batches += [chunk[at : at + batch_size] for at in range(0, len(chunk), batch_size)]
    return [batches[index] for index in generator.permutation(len(batches))]


def sorted_batches(lengths: Ints, tokens_per_batch: int) -> Iterator[Ints]:
    """Yield all rows, longest first, in batches of at most `tokens_per_batch` padded tokens (at
    least one row).

    Longest first: if memory runs out, it does so at once.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        longest = max(int(lengths[order[start]]), 1)
        count = max(tokens_per_batch // longest, 1)
        yield order[start : start + count]
        start += count

"""Texts as the teacher's token ids: ragged in one array, padded a batch at a time.

Truncation, special tokens and the template of a pair are the tokenizer's own. A batch is padded to
its own longest row, never to the maximum length.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedTokenizerBase

from bert_kd.data.batches import Ints, Tokens

CHUNK = 4096
"""Texts handed to the tokenizer at once."""


@dataclass(frozen=True)
class Encoded:
    """Texts as token ids and, where the model tells the two texts of a pair apart, type ids."""

    tokens: Tokens
    types: npt.NDArray[np.int8] | None  # [tokens]
    cut: int
    """How many texts were longer than the maximum length."""

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Padding:
    """How a tokenizer pads: RoBERTa's padding id, for one, is not 0."""

    token: int
    type: int
    left: bool

    @staticmethod
    def of(tokenizer: PreTrainedTokenizerBase) -> Padding:
        """Return the padding of `tokenizer`."""
        return Padding(
            token=int(tokenizer.pad_token_id or 0),
            type=int(getattr(tokenizer, "pad_token_type_id", 0)),
            left=tokenizer.padding_side == "left",
        )


def encode(
    tokenizer: PreTrainedTokenizerBase,
    parts: Iterable[tuple[Sequence[str], Sequence[str] | None]],
    max_length: int,
) -> Encoded:
    """Return the token ids of texts (or pairs) that come in `parts`, cut to `max_length`."""
    ids: list[npt.NDArray[np.int32]] = []
    types: list[npt.NDArray[np.int8]] = []
    lengths: list[int] = []
    cut = 0
    for texts, texts_b in _chunks(parts):
        found = tokenizer(
            list(texts),
            None if texts_b is None else list(texts_b),
            truncation=True,
            max_length=max_length,
            return_attention_mask=False,
            verbose=False,
        )
        rows = found["input_ids"]
        lengths += [len(row) for row in rows]
        ids.append(np.fromiter((token for row in rows for token in row), dtype=np.int32))
        if "token_type_ids" in found:
            flat = (kind for row in found["token_type_ids"] for kind in row)
            types.append(np.fromiter(flat, dtype=np.int8))
        cut += _longer(tokenizer, texts, texts_b, rows, max_length)
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    joined = np.concatenate(ids) if ids else np.zeros(0, dtype=np.int32)
    return Encoded(Tokens(joined, offsets), np.concatenate(types) if types else None, cut)


def _chunks(
    parts: Iterable[tuple[Sequence[str], Sequence[str] | None]],
) -> Iterable[tuple[Sequence[str], Sequence[str] | None]]:
    for texts, texts_b in parts:
        for start in range(0, len(texts), CHUNK):
            end = start + CHUNK
            yield texts[start:end], None if texts_b is None else texts_b[start:end]


def _longer(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    texts_b: Sequence[str] | None,
    rows: Sequence[Sequence[int]],
    max_length: int,
) -> int:
    """Return how many texts have more than `max_length` tokens: only those that fill it can."""
    full = [index for index, row in enumerate(rows) if len(row) >= max_length]
    if not full:
        return 0
    whole = tokenizer(
        [texts[index] for index in full],
        None if texts_b is None else [texts_b[index] for index in full],
        truncation=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    return sum(len(row) > max_length for row in whole["input_ids"])


def batch(encoded: Encoded, rows: Ints, padding: Padding) -> dict[str, torch.Tensor]:
    """Return the model's inputs for these rows, padded to the longest of them."""
    tokens = encoded.tokens
    lengths = tokens.lengths[rows]  # [batch]
    shape = (len(rows), max(int(lengths.max(initial=1)), 1))
    ids = np.full(shape, padding.token, dtype=np.int64)  # [batch, length]
    mask = np.zeros(shape, dtype=np.int64)  # [batch, length]
    types = np.full(shape, padding.type, dtype=np.int64)  # [batch, length]
    for line, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        place = slice(shape[1] - length, None) if padding.left else slice(0, length)
        source = slice(tokens.offsets[row], tokens.offsets[row + 1])
        ids[line, place] = tokens.ids[source]
        mask[line, place] = 1
        if encoded.types is not None:
            types[line, place] = encoded.types[source]
    inputs = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
    if encoded.types is not None:
        inputs["token_type_ids"] = torch.from_numpy(types)
    return inputs

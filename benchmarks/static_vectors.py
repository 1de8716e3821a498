"""Static vectors of the pieces of a vocabulary, by a model that is asked once for each; a text is
the mean of its pieces' vectors, in the manner of model2vec.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bert_kd.data.rows import Rows

Ints = npt.NDArray[np.int64]
Vectors = npt.NDArray[np.float32]

STATIC_SIZE = 256
STATIC_WEIGHT = 1e-3
"""a in Arora et al. 2017, equation 1: a piece of frequency p weighs a / (a + p)."""
PIECES_PER_BATCH = 256


@dataclass(frozen=True)
class StaticVectors:
    """The mean of the weighted vectors of a text's pieces, of length 1.

    `rows` maps a piece's id in `tokenizer` to its row in `vectors` [pieces, size]; other pieces
    count for nothing.
    """

    tokenizer: Any
    rows: Ints  # [ids of the tokenizer], −1: no vector
    vectors: Vectors  # [pieces, size]
    letters: int
    """Bytes of the pieces themselves, in UTF-8."""
    frequencies: Vectors  # [pieces]

    def weighted(self) -> StaticVectors:
        """Return these vectors, the frequent ones shortened (Arora et al. 2017, equation 1)."""
        weights = STATIC_WEIGHT / (STATIC_WEIGHT + self.frequencies)
        return replace(self, vectors=self.vectors * weights[:, None])

    @property
    def parameters(self) -> int:
        return int(self.vectors.size)

    @property
    def table(self) -> int:
        return int(self.vectors.size)

    @property
    def bytes(self) -> int:
        return int(self.vectors.nbytes) + self.letters

    def __call__(self, texts: Sequence[str]) -> Vectors:
        means = np.zeros((len(texts), self.vectors.shape[1]), dtype=np.float32)
        encoded = self.tokenizer.encode_batch(list(texts), add_special_tokens=False)
        for row, found in enumerate(encoded):
            places = self.rows[found.ids]
            places = places[places >= 0]
            if len(places):
                means[row] = self.vectors[places].mean(axis=0)
        lengths = np.linalg.norm(means, axis=1, keepdims=True)
        # Of spread 1 in each place, which is what the penalty of the regression goes by.
        means *= np.float32(self.vectors.shape[1] ** 0.5) / np.maximum(lengths, np.float32(1e-9))
        return means


def static_vectors(train: Rows, base: Path | str, size: int = STATIC_SIZE) -> StaticVectors:
    """Return the vectors of all pieces of `train` by the base model in folder (or hub name) `base`.

    Each piece is run through the model between its special tokens; its vector is the mean of the
    last hidden states, reduced to `size` principal axes, as model2vec's `distill` does it.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer

    from bert_kd.teacher.model import quiet

    with quiet():
        tokenizer: Any = AutoTokenizer.from_pretrained(base).backend_tokenizer
        model = AutoModel.from_pretrained(base).eval()
    tokenizer.no_truncation()
    tokenizer.no_padding()
    counts: Counter[int] = Counter()
    for found in tokenizer.encode_batch(
        [*train.texts, *(train.texts_b or ())], add_special_tokens=False
    ):
        counts.update(found.ids)
    pieces = sorted(counts)
    around = tokenizer.encode("").ids  # [CLS], [SEP]
    states = []
    with torch.inference_mode():
        for start in range(0, len(pieces), PIECES_PER_BATCH):
            batch = pieces[start : start + PIECES_PER_BATCH]
            # [batch, length]
            ids = torch.tensor([[*around[:1], piece, *around[1:]] for piece in batch])
            states.append(model(input_ids=ids).last_hidden_state.mean(dim=1).float().numpy())
    values = _principal(np.concatenate(states), size)  # [pieces, size]
    frequencies = np.array([counts[piece] for piece in pieces], dtype=np.float32)
    rows = np.full(max(tokenizer.get_vocab().values()) + 1, -1, dtype=np.int64)
    rows[pieces] = np.arange(len(pieces))
    letters = sum(len(tokenizer.id_to_token(piece).encode()) for piece in pieces)
    return StaticVectors(tokenizer, rows, values, letters, frequencies / frequencies.sum())


def _principal(values: Vectors, size: int) -> Vectors:
    """Return `values` [rows, hidden] on their first principal axes, at most `size` of them."""
    centred = values - values.mean(axis=0)
    _, axes = np.linalg.eigh(centred.T @ centred)  # rising eigenvalues
    return np.ascontiguousarray(centred @ axes[:, ::-1][:, :size], dtype=np.float32)

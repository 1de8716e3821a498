"""Texts, keys and answers that tell their row's number, for the tests of this folder."""

from __future__ import annotations

import numpy as np

from bert_kd.data.keys import Keys, row_keys
from bert_kd.logits.shard import Features, Logits

LABELS = ("billing", "delivery", "refund")


def texts(count: int, start: int = 0) -> list[str]:
    return [f"text {number}" for number in range(start, start + count)]


def answers(count: int, classes: int = 3, start: int = 0) -> Logits:
    """Logits [count, classes] in which every row tells its number."""
    rows = np.arange(start, start + count, dtype=np.float32)[:, None]
    return rows + np.linspace(0.1, 0.9, classes, dtype=np.float32)


def features(count: int, size: int = 4, start: int = 0) -> Features:
    rows = np.arange(start, start + count, dtype=np.float16)[:, None]
    return (rows * np.ones(size, dtype=np.float16)).astype(np.float16)


def keys(count: int, start: int = 0) -> Keys:
    return row_keys(texts(count, start))

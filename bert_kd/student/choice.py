"""Which rows without a gold label a student learns from, where there are more than it should.

By chance, or half by chance and half those that the teacher is least certain of (uncertainty
sampling, Lewis and Gale 1994): uncertain rows alone would show the student the border between the
classes and little else.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bert_kd.config import RowsConfig
from bert_kd.data.keys import Keys
from bert_kd.logits.combine import softmax
from bert_kd.logits.shard import Logits

Ints = npt.NDArray[np.int64]


def choose_rows(config: RowsConfig, keys: Keys, labels: Ints, logits: Logits) -> Ints | None:
    """Return the rows to learn from, in order: all with a gold label, and `config.maximum` of the
    others; None where that is all.

    What is chosen depends on keys and logits, not on the order of the rows.
    """
    extra = np.flatnonzero(labels < 0)
    if config.maximum is None or len(extra) <= config.maximum:
        return None
    # Keys are hashes, so their order is one by chance; another half of them than cuts go by.
    shuffled = extra[np.lexsort((keys["high"][extra], keys["low"][extra]))]
    by_chance = config.maximum if config.choose == "random" else config.maximum // 2
    chosen = [np.flatnonzero(labels >= 0), shuffled[:by_chance]]
    if config.choose == "uncertain":
        rest = shuffled[by_chance:]
        order = np.argsort(-entropy(logits[rest]), kind="stable")
        chosen.append(rest[order[: config.maximum - by_chance]])
    return np.sort(np.concatenate(chosen))


def entropy(logits: Logits) -> npt.NDArray[np.float64]:
    """Return the entropy of the softmax of each row, in nats, shape [rows]."""
    probabilities = softmax(logits)  # [rows, classes]
    logarithms = np.log(np.maximum(probabilities, 1e-30))
    found: npt.NDArray[np.float64] = -(probabilities * logarithms).sum(axis=1)
    return found

"""One or several teachers' caches, read as one set of answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bert_kd.config import TeacherSource
from bert_kd.data.keys import Keys
from bert_kd.errors import CacheError, nearest
from bert_kd.logits.cache import Answers, LogitCache
from bert_kd.logits.shard import Logits

SMALLEST_PROBABILITY = 1e-7
"""About the step of float32 below 1. A smaller probability is taken as this much: its logarithm
must be finite, and how far below it lies is rounding, which a squared error on logits would take
for the most important fact of the row."""


def column_order(found: Sequence[str], wanted: Sequence[str], whose: str) -> list[int]:
    """Return the column in `found` of each label `wanted`. CacheError where the names differ."""
    if sorted(found) != sorted(wanted):
        lacking = sorted(set(wanted) - set(found))
        unknown = sorted(set(found) - set(wanted))
        parts = [f"'{name}' is lacking{nearest(name, unknown)}" for name in lacking]
        parts += [f"'{name}' is none of the data's" for name in unknown]
        raise CacheError(
            f"the labels of {whose} are not the data's: {'; '.join(parts) or 'a name repeats'}. "
            "Use answers of a teacher with the same classes, named the same"
        )
    return [list(found).index(name) for name in wanted]


def softmax(logits: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """Return the probabilities of `logits`, shape [rows, classes]."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    exponentials /= exponentials.sum(axis=1, keepdims=True)
    return np.asarray(exponentials)


def centred_logarithms(probabilities: npt.NDArray[Any]) -> Logits:
    """Return logits [rows, classes] that have these probabilities and a mean of 0 in each row.

    The softmax of log p is p whatever is added to a row, so any row mean would do for it; a
    squared error on logits however makes the student learn that number. Centred, it is nothing to
    learn. Probabilities are raised to `SMALLEST_PROBABILITY`.
    """
    logarithms = np.log(np.maximum(probabilities.astype(np.float64), SMALLEST_PROBABILITY))
    logarithms -= logarithms.mean(axis=1, keepdims=True)
    return logarithms.astype(np.float32)


def read_teachers(
    sources: Sequence[TeacherSource],
    labels: Sequence[str],
    keys: Keys,
    combine: Literal["logits", "probabilities"],
    *,
    features: bool = True,
    temperatures: Sequence[float] = (),
) -> Answers:
    """Return the teachers' answers to `keys`, columns in the order of `labels`.

    One teacher's are given as they are, of several the weighted mean: of logits or of
    probabilities (then given as centred log-probabilities). Features are read, if `features`,
    where there is a single teacher; spaces of different teachers have nothing in common to
    average. `temperatures`, one a teacher (none: all 1), divide its logits first. Raises CacheError
    where a cache is missing or incomplete, or names other classes.
    """
    if not sources:
        raise ValueError("no teacher to read")
    total = sum(source.weight for source in sources)
    mean: npt.NDArray[np.float64] | None = None
    for source, temperature in zip(sources, temperatures or [1.0] * len(sources), strict=True):
        cache = LogitCache.open(source.folder)
        order = column_order(cache.manifest.labels, labels, f"the logit cache {source.folder}")
        answers = cache.lookup(keys, features=features and len(sources) == 1)
        logits = answers.logits[:, order] / np.float32(temperature)  # [rows, classes]
        if len(sources) == 1:
            return Answers(np.ascontiguousarray(logits), answers.features)
        part = softmax(logits) if combine == "probabilities" else logits.astype(np.float64)
        part *= source.weight / total
        mean = part if mean is None else mean + part
    assert mean is not None
    if combine == "probabilities":
        return Answers(centred_logarithms(mean))
    return Answers(mean.astype(np.float32))

"""How sure a teacher may be: one temperature for its logits, fitted on gold labels.

A scalar changes no answer, only the probabilities behind it (Guo et al. 2017, section 4.2). Here:
the fit (`fit_temperature`), and that of each of several teachers (`calibrate`). Not here: dividing
by it, which `read_teachers` does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bert_kd.config import TeacherSource
from bert_kd.data.keys import Keys
from bert_kd.errors import CacheError
from bert_kd.logits.combine import read_teachers, softmax
from bert_kd.logits.shard import Logits

FEW_ROWS = 50
"""With fewer labelled rows than this the temperature is little more than chance."""
LARGEST = 2.0**20
"""A temperature that leaves nothing of the answers: where only a larger one would do, they are no
better than chance."""
PRECISION = 1e-6
"""Relative, of the temperature."""


@dataclass(frozen=True)
class Calibration:
    """The temperature of one teacher; NLL is the mean of −log p(gold) in nats."""

    teacher: str
    """The name of its cache's folder."""
    temperature: float
    rows: int
    """Validation rows with a gold label."""
    wrong: int
    """Of these, the rows that the teacher answers wrong."""
    nll_before: float
    nll_after: float

    def describe(self) -> str:
        """Return one sentence for people."""
        if not self.wrong:
            return (
                f"the teacher's temperature stays 1: all {self.rows:,} labelled validation rows "
                f"are answered right, which leaves it open (cache {self.teacher})"
            )
        few = ", too few to rely on" if self.rows < FEW_ROWS else ""
        return (
            f"the teacher's temperature is {self.temperature:.2f}: NLL {self.nll_before:.3f} -> "
            f"{self.nll_after:.3f} on {self.rows:,} labelled validation rows{few} "
            f"(cache {self.teacher})"
        )


def calibrate(
    sources: Sequence[TeacherSource],
    labels: Sequence[str],
    keys: Keys,
    gold: npt.NDArray[np.int64],
) -> tuple[Calibration, ...]:
    """Return the calibration of each teacher, fitted on its answers to `keys`, whose gold labels
    are `gold` [rows] (−1: none, not counted).

    Raises CacheError where an answer is missing or not finite, where there is no gold label, or
    where a teacher is no better than chance.
    """
    labelled = gold >= 0
    found = []
    for source in sources:
        answers = read_teachers([source], labels, keys[labelled], "logits", features=False)
        found.append(fit_temperature(answers.logits, gold[labelled], source.folder.name))
    return tuple(found)


def fit_temperature(logits: Logits, gold: npt.NDArray[np.int64], teacher: str) -> Calibration:
    """Return the calibration that minimises the NLL of softmax(logits / T) [rows, classes] under
    the labels `gold` [rows].

    The NLL is convex in 1/T: its slope is bisected. Where every row is answered right it falls for
    ever as T goes to 0, and T stays 1. Raises CacheError as `calibrate` does.
    """
    turn_off = "or set logits.calibrate = false"
    if len(gold) == 0:
        raise CacheError(
            f"no validation row has a gold label to calibrate the teacher {teacher} with: label "
            f"some, {turn_off}"
        )
    if not np.isfinite(logits).all():
        raise CacheError(
            f"answers of the teacher {teacher} to validation are not finite: run `bert-kd logits "
            f"verify` on its cache, then `bert-kd cache-logits`, {turn_off}"
        )
    wide = logits.astype(np.float64)
    truth = wide[np.arange(len(gold)), gold]  # [rows]

    def slope(inverse: float) -> float:
        """Return the NLL's derivative by 1/T: the expected logit less that of the gold label."""
        return float(((softmax(wide * inverse) * wide).sum(axis=1) - truth).mean())

    before = _nll(wide, gold)
    wrong = int((wide.max(axis=1) > truth).sum())
    if not wrong:
        return Calibration(teacher, 1.0, len(gold), wrong, before, before)
    if slope(1 / LARGEST) >= 0:
        raise CacheError(
            f"the teacher {teacher} is no better than chance on the {len(gold):,} labelled "
            f"validation rows: no temperature mends that; check its label order, {turn_off}"
        )
    low = high = 1.0
    while slope(low) > 0:
        low /= 2
    while slope(high) < 0:
        high *= 2
    while high / low > 1 + PRECISION:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    temperature = 1 / math.sqrt(low * high)
    after = _nll(wide / temperature, gold)
    return Calibration(teacher, temperature, len(gold), wrong, before, after)


def _nll(logits: npt.NDArray[np.float64], gold: npt.NDArray[np.int64]) -> float:
    """Return the mean of −log softmax(logits)[gold], natural logarithm."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    normaliser = np.log(np.exp(shifted).sum(axis=1))  # [rows]
    return float((normaliser - shifted[np.arange(len(gold)), gold]).mean())

"""What a teacher has to beat: a linear model of word n-grams, fitted to the gold labels of train.

The gate (`gate.py`) refuses answers that cannot be right. A teacher can pass it and still know less
than the labels teach by themselves: one that was pretrained on another language, say. A student
that follows it ends where its teacher stands, below its twin. A linear model takes seconds, and few
things that are worth learning from are worse. Not here: the model (`linear.py`), and what is done
about it (the caller's).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bert_kd.data.rows import Rows, read_rows
from bert_kd.errors import CacheError
from bert_kd.logits.linear import fit, labelled_rows, read_as
from bert_kd.logits.panel import Panel

MOST_ROWS = 20_000
"""Of train that the linear model is fitted to, drawn by chance, always the same."""
FACTOR, CHANCE = 1.25, 0.05
"""A teacher is worse that errs more than so many times as often on validation, where chance would
bring that about less often than this.
"""


@dataclass(frozen=True)
class Reference:
    """A teacher beside the linear model, on validation."""

    rows: int
    teacher: float
    """Its accuracy."""
    linear: float
    """The linear model's accuracy."""
    chance: float
    """Probability of so many more errors if the two were equally good (McNemar's exact test)."""

    @property
    def worse(self) -> bool:
        """Whether the teacher knows less than the linear model, clearly and beyond chance."""
        return 1 - self.teacher > FACTOR * (1 - self.linear) and self.chance < CHANCE

    def describe(self) -> str:
        """Return the finding as a sentence."""
        return (
            f"the teacher is right on {self.teacher:.1%} of {self.rows:,} validation rows, a "
            f"linear model of n-grams on {self.linear:.1%}"
        )


def find_doubt(panel: Panel, train: Path, validation: Path) -> str | None:
    """Return why the panel is not worth following, None where it is, or where that can't be told:
    without gold labels, or without answers to the split `validation` in an imported cache.
    """
    asked = read_rows(validation)
    try:
        answers = panel.answers(asked.keys).logits
    except CacheError:
        if not panel.config.teachers:
            raise
        return None
    found = compare_with_linear(read_rows(train), asked, answers)
    return found.describe() if found is not None and found.worse else None


def compare_with_linear(
    train: Rows, validation: Rows, answers: npt.NDArray[np.float32]
) -> Reference | None:
    """Fit the linear model to train's gold labels and compare; `answers` are the teacher's logits
    [rows, classes] to validation. None where gold labels are too few to tell.
    """
    asked = np.flatnonzero(validation.labels >= 0)
    mine, theirs = labelled_rows(train, MOST_ROWS), validation.take(asked)
    if not len(asked) or len(np.unique(mine.labels)) < 2:
        return None
    classes = max(answers.shape[1], int(mine.labels.max()) + 1)
    model = fit(read_as(mine.texts, mine.texts_b), mine.labels, classes)
    if model is None:
        return None
    gold = theirs.labels
    by_teacher = answers[asked].argmax(axis=1) == gold
    read = read_as(theirs.texts, theirs.texts_b)
    by_linear = model.logits(read).argmax(axis=1) == gold
    lost, won = int((by_linear & ~by_teacher).sum()), int((by_teacher & ~by_linear).sum())
    return Reference(
        len(asked), float(by_teacher.mean()), float(by_linear.mean()), _chance(lost, won)
    )


def _chance(lost: int, won: int) -> float:
    from scipy.stats import binomtest

    if lost + won == 0:
        return 1.0
    return float(binomtest(lost, lost + won, alternative="greater").pvalue)

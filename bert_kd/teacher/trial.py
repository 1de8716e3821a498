"""A teacher that can't read the texts is tried before it is trained at length.

One of another language ends below a linear model of n-grams and is not followed
(`logits/reference.py`), after hours of training on a CPU. So it trains for a tenth of the examples
first; where it is clearly worse than the linear model by then, that is all it gets. A teacher that
might yet be followed is trained in full.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bert_kd.config import TeacherConfig
from bert_kd.data.prepare import Prepared
from bert_kd.data.rows import read_rows
from bert_kd.logits.linear import labelled_rows
from bert_kd.logits.reference import Reference, compare_with_linear
from bert_kd.progress import say
from bert_kd.store import RunFolder
from bert_kd.teacher.answer import answer
from bert_kd.teacher.card import TRIED
from bert_kd.teacher.finetune import finetune
from bert_kd.teacher.model import open_teacher

MOST_ROWS = 2_000
"""Of validation that it is judged by."""


def finetune_if_worth_it(
    config: TeacherConfig, run: RunFolder, prepared: Prepared, folder: Path
) -> dict[str, Any]:
    """Do what `finetune` does; of a teacher that can't read the texts, cut short where a linear
    model is clearly better after its trial.
    """
    facts = finetune(config, run, prepared, folder, trial=True)
    if not facts.get(TRIED):
        return facts
    found = _beside_linear(run, folder)
    if found is not None and found.worse:
        say(f"{folder.name}: {found.describe()}: it is not trained any longer")
        return facts
    say(f"{folder.name}: a linear model is not clearly better: it is trained in full")
    return finetune(config, run, prepared, folder)


def _beside_linear(run: RunFolder, folder: Path) -> Reference | None:
    asked = labelled_rows(read_rows(run.split("validation")), MOST_ROWS)
    answers = answer(open_teacher(folder), asked.texts, asked.texts_b).logits
    return compare_with_linear(read_rows(run.split("train")), asked, answers)

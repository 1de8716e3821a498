"""A linear model of n-grams as the teacher: its answers in a logit cache like any other's.

For texts that no BERT at hand knows, of a language it was not pretrained in, say. Students gain by
it what they gain by any teacher: soft answers, and answers to views and transfer texts, on which
they see far more than the labels alone show. It is fitted when it is asked, which takes seconds, so
it has no folder; a cache says which rows it was fitted to. Not here: the model
(`logits/linear.py`).
"""

from __future__ import annotations

import time

import numpy as np

from bert_kd.data.prepare import Prepared
from bert_kd.data.rows import read_rows
from bert_kd.errors import TeacherError
from bert_kd.logits.cache import Answers, LogitCache, Manifest
from bert_kd.logits.index import group_keys
from bert_kd.logits.linear import cross_fit, identify, labelled_rows, read_as
from bert_kd.progress import progress, say
from bert_kd.store import RunFolder
from bert_kd.teacher.fill import SPLITS, Filled, Part, Window, distinct_keys, finished, windows

MOST_ROWS = 200_000
"""Of train that the model is fitted to, drawn by chance, always the same."""
ABOUT = "linear model of n-grams"


def fill_linear(
    run: RunFolder, prepared: Prepared, rows_per_shard: int, part: Part = (1, 1)
) -> Filled:
    """Compute the answers that the linear model's cache lacks, and only these.

    Raises TeacherError where the gold labels of train teach it nothing.
    """
    started = time.monotonic()
    fingerprint = identify(prepared)
    folder = run.cache(fingerprint)
    manifest = Manifest(fingerprint, prepared.labels, facts={"model": ABOUT})
    splits = [name for name in SPLITS if name in prepared.rows]
    wanted = distinct_keys(run, splits, part)
    cache = LogitCache.create(folder, manifest)
    is_open = cache.missing(wanted.keys())
    missing, shards = int(is_open.sum()), 0
    if missing:
        answering = _Answering(run, prepared)
        done = len(wanted) - missing
        with progress("asking the linear model", len(wanted), "rows", done=done) as advance:
            for window in windows(run, splits, wanted, is_open, rows_per_shard):
                answers = answering(window)
                cache.append(np.concatenate(window.keys), answers.logits)
                advance(len(window.texts))
                shards += 1
    return finished(f"{folder} ({ABOUT})", folder, len(wanted), missing, shards, started)


class _Answering:
    """Answers windows of rows: those of train by models that were not fitted to them, others,
    views among them, by the model of all.
    """

    def __init__(self, run: RunFolder, prepared: Prepared) -> None:
        rows = labelled_rows(read_rows(run.split("train")), MOST_ROWS)
        self.index, self.first, _ = group_keys(rows.keys)
        read = read_as(rows.texts, rows.texts_b)
        fitted = cross_fit(read, rows.labels, len(prepared.labels))
        if fitted is None:
            raise TeacherError(
                f"the gold labels of train's {len(rows):,} rows teach a {ABOUT} nothing: name "
                "another teacher.model, or let students learn from gold labels alone "
                "(loss.soft_weight = 0)"
            )
        self.fitted = fitted
        say(
            f"{ABOUT}: right on {fitted.accuracy:.1%} of train's {len(rows):,} rows, each "
            "answered by a model of others"
        )

    def __call__(self, window: Window) -> Answers:
        """Return the answers to a window's rows."""
        logits = self.fitted.model.logits(read_as(window.texts, window.texts_b or None))
        found = self.index.find(np.concatenate(window.keys))
        told = np.flatnonzero(found >= 0)
        logits[told] = self.fitted.logits[self.first[found[told]]]
        return Answers(logits)

"""Run a stage and die of SIGKILL in the middle of it: `killed.py train|cache RUN BASE AFTER`."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import small_teachers
import torch

from bert_kd.store import RunFolder
from bert_kd.teacher import answer, fill, finetune, trainer


def die_after(count: int, function):
    """Return `function` as it is for `count` calls; the next one kills this process."""
    calls = [0]

    def counted(*given, **named):
        calls[0] += 1
        if calls[0] > count:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*given, **named)

    return counted


if __name__ == "__main__":
    torch.set_num_threads(1)  # as in the tests: sums differ by the number of threads
    what, folder, base, after = sys.argv[1:]
    run = RunFolder(Path(folder))
    prepared = small_teachers.small_data(run)
    if what == "train":
        trainer._Flow.on_step_end = die_after(int(after), trainer._Flow.on_step_end)
        finetune.finetune(small_teachers.resumable(Path(base)), run, prepared)
    else:
        answer.Answering.__call__ = die_after(int(after), answer.Answering.__call__)
        fill.fill_cache(run, prepared, small_teachers.exact(rows_per_shard=16), run.teacher)

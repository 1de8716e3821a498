"""Which of a student's seeds is exported."""

from __future__ import annotations

from pathlib import Path

import pytest

from bert_kd.config_file import load_config
from bert_kd.stages import METRICS, best_member
from bert_kd.store import RunFolder, write_json


@pytest.mark.parametrize(
    ("metric", "best"),
    [("accuracy", 2), ("macro_f1", 3), ("nll", 1)],  # of equal accuracies the first
)
def test_the_best_seed_on_validation_is_exported(tmp_path: Path, metric: str, best: int):
    settings = ["students.base.seeds=[1, 2, 3]", f"students.base.training.metric={metric}"]
    config, run = load_config(None, [f"run={tmp_path}", *settings]), RunFolder(tmp_path)
    measured = {1: (0.7, 0.5, 0.2), 2: (0.9, 0.6, 0.9), 3: (0.9, 0.7, 0.4)}
    for seed, values in measured.items():
        names = ("validation_accuracy", "validation_macro_f1", "validation_nll")
        folder = run.student(f"base-seed{seed}")
        folder.mkdir(parents=True)
        write_json(folder / METRICS, dict(zip(names, values, strict=True)))
    member = best_member(config, run, config.students[0])
    assert (member.name, member.twin) == (f"base-seed{best}", False)

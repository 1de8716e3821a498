"""The rows of the study of teachers, from made-up answers and facts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import quality_teachers
from places import CONFIGS
from quality_suites import CONFIGURED, Variant

from bert_kd.data.keys import row_keys
from bert_kd.data.rows import Rows
from bert_kd.store import RunFolder, write_json

TEXTS = ["a", "b", "c"]
ROWS = Rows(row_keys(TEXTS), TEXTS, None, np.zeros(3, np.int64), np.zeros(3, np.int16))


def test_rows_hold_every_seed_and_all_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pair = Variant("ensemble of 2", ("teacher.ensemble=2",), "ensemble", CONFIGURED)
    config = CONFIGS / "tiny.toml"
    candidates = quality_teachers.plan(config, [f"run={tmp_path}"], (pair,), 3)
    answers = {}
    for place, candidate in enumerate(candidates):
        for run in candidate.runs:
            seed = run.teacher.seed
            answers[run.run] = {"test": np.full((1, 3), 10 * place + seed)}
            for folder in RunFolder(run.run).teachers(run.teacher.ensemble):
                trainable = {"parameters": 100, "trainable": 40}
                facts = {"base": "model", "trainable": trainable}
                write_json(folder / "teacher.json", facts)
                (folder / "model.safetensors").write_bytes(b"1234567")
    monkeypatch.setattr(
        quality_teachers, "teacher_predictions", lambda config, sets: answers[config.run]
    )
    configured, both = quality_teachers.candidate_systems(candidates, {"test": ROWS})
    assert configured.predictions["test"].tolist() == [[1] * 3, [2] * 3, [3] * 3]
    assert both.predictions["test"].tolist() == [[11] * 3, [12] * 3, [13] * 3]
    assert (configured.parameters, both.parameters) == (100, 200)
    assert (configured.bytes, both.bytes) == (7, 14)
    assert configured.figures == {"trainable_parameters": 40}
    assert both.figures == {"trainable_parameters": 80}
    assert (configured.name, configured.beside) == (CONFIGURED, None)
    assert (both.name, both.beside, both.about) == (pair.name, CONFIGURED, "teacher.ensemble=2")
    ensembles, ones = quality_teachers.NOTE_ON_ENSEMBLES, quality_teachers.NOTE_ON_ONE_SEED
    told = quality_teachers.notes(candidates)
    assert ensembles in told and ones not in told
    assert ensembles not in quality_teachers.notes(candidates[:1])
    told = quality_teachers.notes(quality_teachers.plan(config, [f"run={tmp_path}"], (pair,), 1))
    assert ones in told and ensembles not in told

"""What the accuracy benchmark measures of a student: one thing, the bundle that is shipped."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from quality_systems import student_systems

import bert_kd
from bert_kd.config import Config
from bert_kd.data.rows import read_rows
from bert_kd.runtime import export
from bert_kd.store import RunFolder


def test_answers_bytes_and_speed_are_of_the_bundle_chosen_on_validation(
    tiny_run: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tiny_run.run)
    test, validation = read_rows(run.split("test")), read_rows(run.split("validation"))
    checked, logits = [], []
    real = export.export_bundle

    def exported(student: Path, folder: Path, *given, **named):
        checked.append((given[0], named["check_labels"].tolist()))
        bundle = real(student, folder, *given, **named)
        logits.append(bert_kd.load(folder, threads=1).logits(test.texts))
        return bundle

    monkeypatch.setattr(export, "export_bundle", exported)
    with ExitStack() as bundles:
        systems = student_systems(tiny_run, {"test": test}, bundles)
        assert set(systems) == {("base", False), ("base", True)}
        assert all(found == (validation.texts, validation.labels.tolist()) for found in checked)
        assert len(checked) == 2 * len(tiny_run.students[0].seeds)
        system = systems["base", False]
        assert system.beside == "base twin" and system.answer is not None
        predicted = system.predictions["test"]
        assert predicted.tolist()[0] == logits[0].argmax(axis=1).tolist()
        timed = np.asarray(system.answer(test.texts))
        assert timed.argmax(axis=1).tolist() == predicted.tolist()[0]
    shipped = bert_kd.load(run.bundle("base")).bundle
    assert system.bytes == pytest.approx(shipped.bytes, rel=0.01)

"""The accuracy benchmark of configurations without a BERT: a student of gold labels alone, and one
of a linear model.
"""

from __future__ import annotations

from pathlib import Path

import controls
import pytest
import quality
import quality_docs
from places import CONFIGS
from quality_suites import Suite, Variant

from bert_kd.store import write_json

ALONE = (
    "teacher.model=nowhere",
    "students.base.loss.soft_weight=0",
    "students.base.vocabulary.kind=words",
    "students.base.embedding.start=random",
    "students.base.training.epochs=1",
)
CURVE = (
    Variant("10%", (), "data", x=0.1, share_of_train=0.1),
    Variant("24 units", ("students.base.model.hidden_size=24",), "size", x=24),
)
SUITE = Suite("tiny", "tiny.toml", None, curve=CURVE)


def test_tables_do_without_a_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(controls, "GRIDS", {controls.TFIDF: ({"characters": False, "C": 1.0},)})
    monkeypatch.setattr(controls, "fasttext", _not_installed)
    found = {
        table: quality.measure(
            quality.Request(SUITE, table, CONFIGS / "tiny.toml", None, tmp_path / "run", 1, ALONE)
        )
        for table in ("main", "curve")
    }
    names = [system["name"] for system in found["main"]["config"]["systems"]]
    assert names == ["base", controls.TFIDF]
    assert found["main"]["config"]["systems"][0]["about"] == "gold labels alone"
    metrics = {row["metric"] for row in found["main"]["rows"]}
    assert "test.accuracy" in metrics and "texts_per_second" in metrics
    # What is told of others, beside a teacher, is told of none here.
    assert not {"test.minus_teacher", "test.gap_closed", "times_faster_bulk"} & metrics
    assert "teacher" not in found["main"]["config"]["settings"]
    assert [system["name"] for system in found["curve"]["config"]["systems"]] == ["10%", "24 units"]

    for table, one in found.items():
        write_json(tmp_path / "results" / quality_docs.file_name("tiny", table), one)
    quality_docs.write_docs(tmp_path / "results", tmp_path / "docs" / "results.md")
    lines = (tmp_path / "docs" / "results.md").read_text(encoding="utf-8").splitlines()
    (head,) = [line for line in lines if line.startswith("| system")]
    assert "texts/s" in head and "teacher" not in head and "twin" not in head
    assert not (tmp_path / "run" / "teacher").exists()


def test_a_linear_teacher_has_a_row_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(controls, "GRIDS", {controls.TFIDF: ({"characters": False, "C": 1.0},)})
    monkeypatch.setattr(controls, "fasttext", _not_installed)
    overrides = (
        "teacher.model=linear",
        "students.base.embedding.start=random",
        "students.base.training.epochs=1",
    )
    run = tmp_path / "run"
    found = quality.measure(
        quality.Request(SUITE, "main", CONFIGS / "tiny.toml", None, run, 1, overrides)
    )
    systems = {system["name"]: system for system in found["config"]["systems"]}
    assert list(systems) == ["teacher", "base", "base twin", controls.TFIDF]
    assert systems["teacher"]["about"] == "linear model of n-grams"
    values = {(row["system"], row["metric"]): row["value"] for row in found["rows"]}
    assert values["teacher", "test.accuracy"] > 0.4  # eight classes
    assert values["teacher", "texts_per_second"] > 0
    assert ("base", "test.minus_teacher") in values


def _not_installed() -> controls.Fit:
    raise controls.MissingExtra("fasttext-numpy2", "bench")

"""Students that learn from gold labels alone: the line without a teacher, from text to bundle."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from places import CONFIGS

import bert_kd
from bert_kd import stages
from bert_kd.config import Config
from bert_kd.config_file import load_config
from bert_kd.data.rows import read_rows
from bert_kd.errors import StageError
from bert_kd.evaluate.report import read_report, results_table
from bert_kd.provenance import members, needs_teacher
from bert_kd.store import RunFolder, read_json

ALONE = (
    "students.base.loss.soft_weight=0",
    "students.base.vocabulary.kind=words",
    "students.base.embedding.start=random",
)


def configured(folder: Path, *more: str) -> Config:
    """Return the tiny configuration without a teacher. Its model is not there, and views are asked
    for: neither is needed nor made.
    """
    settings = ["teacher.model=nowhere", "augment.views=2", f"run={folder}"]
    return load_config(CONFIGS / "tiny.toml", [*ALONE, *settings, *more])


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The configuration of a finished run without a teacher. To be read, not changed."""
    config = configured(tmp_path_factory.mktemp("runs") / "alone")
    stages.run_stages(config)
    return config


def test_no_stage_makes_what_a_teacher_would_have(alone: Config):
    run = RunFolder(alone.run)
    assert not run.teacher.exists() and not run.logits.exists()
    assert "views" not in read_json(run.prepared)["rows"]
    assert [folder.name for folder in run.students.iterdir()] == ["base-seed17"]
    facts = read_json(run.student("base-seed17") / "config.json")
    assert facts["distilled"] is False
    # The transfer texts, which nobody has labelled, are no part of it.
    rows = len(read_rows(run.split("train")))
    assert run.split("transfer").exists()
    assert read_json(run.student("base-seed17") / "metrics.json")["examples"] == rows


def test_a_second_call_finds_all_current_and_says_what_is_left_out(alone: Config, capsys):
    results = stages.run_stages(alone)
    assert list(results) == ["prepare-data", "train-students", "evaluate", "export"]
    said = capsys.readouterr().err
    assert said.count("is current") == 4
    for stage in ("train-teacher", "cache-logits"):
        assert f"{stage}: left out, as all students learn from gold labels alone" in said


def test_the_report_does_without_teacher_and_twin(alone: Config):
    report = read_report(RunFolder(alone.run).report)
    assert [model.role for model in report.models] == ["student"]
    assert all(metrics.agreement is None for metrics in report.models[0].metrics.values())
    assert report.notes[0].startswith("There is no teacher")
    page = (RunFolder(alone.run).report / "index.html").read_text(encoding="utf-8")
    # Words alone: the texts of the data set and the names of colours have their own.
    said = re.sub(
        r"(?s)<style.*?</style>|<svg.*?</svg>|<blockquote>.*?</blockquote>|<[^>]*>", "", page
    )
    assert said.count("teacher") == 1 and "twin" not in said
    assert "Times faster" not in said and "One text takes" in said
    headers = [str(column.header) for column in results_table(report).columns]
    assert "times\nfaster" not in headers


def test_the_bundle_answers_and_its_card_names_no_teacher(alone: Config):
    run = RunFolder(alone.run)
    classify = bert_kd.load(run.bundle("base"))
    test = read_rows(run.split("test"))
    gold = [classify.labels[label] for label in test.labels]
    answers = [answer["label"] for answer in classify(test.texts)]
    right = sum(a == b for a, b in zip(answers, gold, strict=True)) / len(gold)
    assert right == pytest.approx(report_accuracy(run), abs=1 / len(gold))
    card = (run.bundle("base") / "README.md").read_text(encoding="utf-8")
    assert "trained on labelled texts by bert_kd, without a teacher" in card
    assert "distilled" not in card and "agreement |" not in card


def report_accuracy(run: RunFolder) -> float:
    (row,) = read_json(run.report / "report.json")["rows"]
    return float(row["accuracy"])


def test_other_transfer_texts_leave_the_student_as_it_is(alone: Config, tmp_path: Path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(alone.run, folder)
    (tmp_path / "pool.txt").write_text("text\nsomething else\n", encoding="utf-8")
    config = configured(folder, f"data.transfer=['{tmp_path / 'pool.txt'}']", "data.format=tsv")
    stages.prepare_data(config)
    capsys.readouterr()
    stages.train_students(config)
    assert "base-seed17 is current" in capsys.readouterr().err


@pytest.mark.parametrize(
    "override",
    [
        "students.base.loss.soft_weight=0.5",
        "students.base.loss.feature_weight=0.5",
        "students.base.vocabulary.kind=wordpiece",
        "students.base.embedding.start=teacher",
        "students.base.embedding.start=words",
        "logits.teachers=[{folder='answers'}]",
    ],
)
def test_whatever_a_teacher_gives_makes_one_needed(tmp_path: Path, override: str):
    assert not needs_teacher(configured(tmp_path))
    assert needs_teacher(configured(tmp_path, override))


def test_one_student_with_a_teacher_is_enough_to_need_one(alone: Config, tmp_path: Path):
    folder = tmp_path / "run"
    shutil.copytree(alone.run, folder)
    (student,) = alone.students
    taught = student.model_copy(
        update={"name": "taught", "loss": student.loss.model_copy(update={"soft_weight": 1.0})}
    )
    augment = alone.augment.model_copy(update={"views": 0})
    mixed = alone.model_copy(
        update={"run": folder, "students": (student, taught), "augment": augment}
    )
    assert [member.twin for member in members(mixed)] == [False, False, True]
    stages.prepare_data(mixed)
    with pytest.raises(StageError, match="run cache-logits first"):
        stages.train_students(mixed)

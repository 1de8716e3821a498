"""Several teachers: each made, kept and answered for on its own, learned from and shown as one."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from bert_kd import stages
from bert_kd.config import Config
from bert_kd.data.rows import read_rows
from bert_kd.errors import StageError
from bert_kd.evaluate.report import read_report, results_table
from bert_kd.logits.cache import LogitCache
from bert_kd.provenance import teacher_sources
from bert_kd.standing import NO_WISHES, Wishes
from bert_kd.store import RunFolder, Stamp


def of(config: Config, folder: Path, **teacher) -> Config:
    """Return the configuration for another run folder, with these settings of the teacher."""
    changed = config.teacher.model_copy(update=teacher)
    return config.model_copy(update={"run": folder, "teacher": changed})


def copied(config: Config, folder: Path) -> Config:
    """Return the configuration for a copy of its run, free to be changed."""
    shutil.copytree(config.run, folder)
    return of(config, folder)


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def pair(tiny_run: Config, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A copy of the run of one teacher with a second one, trained and asked. Not to be changed."""
    alone = copied(tiny_run, tmp_path_factory.mktemp("ensemble") / "run")
    first = RunFolder(alone.run).teacher
    before = times(first)
    config = of(alone, alone.run, ensemble=2)
    stages.train_teacher(config)
    assert times(first) == before
    filled = stages.cache_logits(config)
    # The first one's answers are there already.
    assert filled.computed == filled.reused == filled.rows // 2
    assert filled.folder == RunFolder(alone.run).logits
    return config


def test_each_member_has_its_seed_its_stamp_and_its_cache(pair: Config):
    run = RunFolder(pair.run)
    folders = run.teachers(2)
    assert [folder.name for folder in folders] == ["teacher", "teacher-2"]
    seeds = [Stamp.read(folder).identity["teacher"]["seed"] for folder in folders]
    assert seeds == [pair.teacher.seed, pair.teacher.seed + 1]
    one, other = (load_file(folder / "model.safetensors") for folder in folders)
    assert any((one[name] != other[name]).any() for name in one)
    assert not run.checkpoints_of(folders[1]).exists()

    sources = teacher_sources(pair, run, NO_WISHES)
    assert len({source.folder for source in sources}) == 2
    keys = read_rows(run.split("train")).keys
    answers = [LogitCache.open(source.folder).lookup(keys).logits for source in sources]
    assert (answers[0] != answers[1]).any()
    assert all(LogitCache.open(source.folder).stats().rows for source in sources)


def test_students_of_one_teacher_are_not_those_of_two(pair: Config):
    with pytest.raises(StageError, match=r"inputs\.teachers"):
        stages.train_students(pair)


def test_fewer_teachers_want_their_answers_named_again(pair: Config, tmp_path: Path):
    config = of(copied(pair, tmp_path / "run"), tmp_path / "run", ensemble=1)
    with pytest.raises(StageError, match="wanted 1, cached 2.*run cache-logits again"):
        stages.train_students(config)
    assert len(teacher_sources(config, RunFolder(config.run), Wishes(keep={"cache-logits"}))) == 2
    assert stages.cache_logits(config).computed == 0
    stages.train_students(config)  # those that learned from the first alone are current again


def test_the_report_shows_the_ensemble_and_its_members(pair: Config, tmp_path: Path):
    pair = copied(pair, tmp_path / "run")
    run = RunFolder(pair.run)
    twin = times(run.student("base-seed17-twin"))
    stages.train_students(pair, Wishes(force={"train-students"}))
    assert times(run.student("base-seed17-twin")) == twin  # teachers are nothing to it
    report = stages.evaluate(pair)
    teacher = report.models[0]
    rows = read_rows(run.split("test"))
    sources = teacher_sources(pair, run, NO_WISHES)
    answers = [LogitCache.open(source.folder).lookup(rows.keys).logits for source in sources]

    def accuracy(logits: np.ndarray) -> float:
        return float((logits.argmax(axis=1) == rows.labels).mean())

    assert teacher.metrics["test"].accuracy == pytest.approx(accuracy(np.mean(answers, axis=0)))
    assert [member.name for member in teacher.ensemble] == ["teacher", "teacher-2"]
    for member, logits in zip(teacher.ensemble, answers, strict=True):
        assert member.accuracy["test"] == pytest.approx(accuracy(logits))
        assert set(member.accuracy) == set(pair.evaluate.splits)
    tensors = load_file(run.teacher / "model.safetensors").values()
    assert teacher.parameters == 2 * sum(tensor.size for tensor in tensors)
    files = [folder / "model.safetensors" for folder in run.teachers(2)]
    assert teacher.bytes == sum(file.stat().st_size for file in files)
    assert teacher.speed is not None
    note = next(note for note in report.notes if "mean of 2 teachers" in note)
    assert "teacher-2" in note and note in (run.report / "index.html").read_text(encoding="utf-8")
    assert read_report(run.report) == report
    assert "mean of 2" in str(results_table(report).caption)
    assert len(stages.export(pair)) == 1


def test_a_line_killed_between_members_keeps_the_finished_one(
    tiny_run: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from bert_kd.teacher import finetune as room

    folder = tmp_path / "run"
    shutil.copytree(tiny_run.run / "data", folder / "data")
    config = of(tiny_run, folder, ensemble=2)
    done = []

    def killed(member, run, prepared, home):
        if done:
            raise KeyboardInterrupt
        done.append(home)
        return finetune(member, run, prepared, home)

    finetune = room.finetune
    monkeypatch.setattr(room, "finetune", killed)
    with pytest.raises(KeyboardInterrupt):
        stages.train_teacher(config)
    first, second = RunFolder(folder).teachers(2)
    before = times(first)
    assert done == [first] and before and not second.exists()
    with pytest.raises(StageError, match="teacher-2 is not finished: run train-teacher first"):
        stages.cache_logits(config)

    monkeypatch.setattr(room, "finetune", finetune)
    stages.train_teacher(config)
    assert times(first) == before and (second / "stage.json").exists()
    # A member is the teacher that its seed makes alone, in an ensemble or not.
    lonely = load_file(tiny_run.run / "teacher" / "model.safetensors")
    for name, value in load_file(first / "model.safetensors").items():
        np.testing.assert_array_equal(value, lonely[name], err_msg=name)


def test_force_makes_again_what_was_made_otherwise(
    pair: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from bert_kd.teacher import finetune as room

    folder = copied(pair, tmp_path / "run").run
    made = []
    finetune = room.finetune

    def counted(member, run, prepared, home):
        made.append((home.name, member.learning_rate))
        return finetune(member, run, prepared, home)

    monkeypatch.setattr(room, "finetune", counted)
    faster = of(pair, folder, ensemble=1, learning_rate=2e-3)
    stages.train_teacher(faster, Wishes(force={"train-teacher"}))
    faster = of(faster, folder, ensemble=2)
    with pytest.raises(StageError, match=r"teacher-2 was made otherwise.*learning_rate"):
        stages.train_teacher(faster)
    stages.train_teacher(faster, Wishes(force={"train-teacher"}))
    assert made == [("teacher", 2e-3), ("teacher-2", 2e-3)]  # the first is current by then

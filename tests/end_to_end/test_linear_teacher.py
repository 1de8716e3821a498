"""A linear model of n-grams as the teacher: the line without any BERT, and in place of one that is
not worth following.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from places import CONFIGS

import bert_kd
from bert_kd import stages
from bert_kd.config import Config
from bert_kd.config_file import load_config
from bert_kd.data.rows import read_rows
from bert_kd.errors import StageError, TeacherError, UserError
from bert_kd.evaluate.report import read_report
from bert_kd.logits.cache import LogitCache
from bert_kd.logits.linear import identify
from bert_kd.provenance import teacher_sources
from bert_kd.standing import NO_WISHES
from bert_kd.store import RunFolder, read_json

LINEAR = ("teacher.model=linear", "students.base.embedding.start=random", "augment.views=3")


def configured(folder: Path, *more: str) -> Config:
    return load_config(CONFIGS / "tiny.toml", [*LINEAR, f"run={folder}", *more])


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The configuration of a finished run. To be read, not changed."""
    config = configured(tmp_path_factory.mktemp("runs") / "linear")
    stages.run_stages(config)
    return config


def test_it_answers_every_row_and_students_learn_from_all_of_them(line: Config):
    run = RunFolder(line.run)
    assert not run.teacher.exists()
    (source,) = teacher_sources(line, run, NO_WISHES)
    assert source.folder.name.startswith("linear-")
    cache = LogitCache.open(source.folder)
    learned = 0
    for split in ("train", "transfer", "views", "validation", "test"):
        rows = read_rows(run.split(split))
        assert np.isfinite(cache.lookup(rows.keys).logits).all()
        learned += len(rows) if split in ("train", "transfer", "views") else 0
    assert read_json(run.student("base-seed17") / "metrics.json")["examples"] == learned
    masked = [text for text in read_rows(run.split("views")).texts if "[MASK]" in text]
    assert masked


def test_its_report_and_bundle_say_what_it_is(line: Config):
    run = RunFolder(line.run)
    report = read_report(run.report)
    teacher = report.models[0]
    assert teacher.role == "teacher" and "linear model of n-grams" in teacher.description
    assert teacher.speed is None and teacher.parameters is None
    assert report.models[1].metrics["test"].agreement is not None
    page = (run.report / "index.html").read_text(encoding="utf-8")
    assert "None" not in re.sub(r"(?s)<style.*?</style>|<svg.*?</svg>|<[^>]*>", "", page)
    answers = bert_kd.load(run.bundle("base"))(["where is my parcel"])
    assert answers[0]["label"] in report.data.labels


def test_a_second_call_finds_all_current(line: Config, capsys):
    stages.run_stages(line)
    said = capsys.readouterr().err
    assert "train-teacher: nothing to do" in said and " 0 computed" in said
    assert said.count("is current") == 5  # data, student, twin, report, bundle


def test_killed_it_answers_what_is_missing(line: Config, tmp_path: Path, capsys):
    config = configured(tmp_path / "run")
    stages.prepare_data(config)
    stages.cache_logits(config)
    run = RunFolder(config.run)
    (source,) = teacher_sources(config, run, NO_WISHES)
    train = read_rows(run.split("train"))
    whole = LogitCache.open(source.folder).lookup(train.keys).logits
    for shard in source.folder.glob("part-*.parquet"):
        shard.unlink()
    for part in ((1, 2), (2, 2)):
        stages.cache_logits(config, part=part)
    again = LogitCache.open(source.folder).lookup(train.keys).logits
    assert np.array_equal(whole, again)


def test_other_train_rows_make_it_another_model(tmp_path: Path):
    def write(word: str) -> None:
        for split in ("train", "validation", "test"):
            lines = [f"{('red', 'blue')[row % 2]} {word} {row}\t{row % 2}" for row in range(60)]
            text = "\n".join(["text\tlabel", *lines]) + "\n"
            (tmp_path / f"{split}.tsv").write_text(text, encoding="utf-8")

    config = configured(tmp_path / "run", f"data.source={tmp_path}", "data.transfer=[]")
    write("one")
    before = stages.prepare_data(config)
    stages.cache_logits(config)
    write("other")
    assert identify(stages.prepare_data(config)) != identify(before)
    with pytest.raises(
        StageError, match="teacher: wanted linear-.*cached linear-.*run cache-logits"
    ):
        stages.train_students(config)
    stages.cache_logits(config)
    assert "base-seed17" in stages.train_students(config)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("students.base.embedding.start=teacher", "has none: set embedding.start"),
        ("students.base.vocabulary.kind=wordpiece", "has none: set embedding.start"),
        ("students.base.loss.feature_weight=1", "has no features: set feature_weight = 0"),
        ("teacher.ensemble=2", "is one model"),
    ],
)
def test_what_it_cannot_give_is_refused_before_any_work(tmp_path: Path, override, message):
    with pytest.raises(UserError, match=message):
        configured(tmp_path, override)


def test_its_answers_are_not_taken_for_those_of_a_bert(
    line: Config, tmp_path: Path, tiny_overrides: list[str]
):
    folder = tmp_path / "run"
    shutil.copytree(line.run, folder)
    overrides = [*tiny_overrides, f"run={folder}", "augment.views=3"]
    bert = load_config(CONFIGS / "tiny.toml", overrides)
    stages.prepare_data(bert)
    stages.train_teacher(bert)
    with pytest.raises(StageError, match="cached linear-.*run cache-logits again"):
        teacher_sources(bert, RunFolder(folder), NO_WISHES)
    # A BERT that is left in the folder changes nothing for students of the linear model.
    stages.prepare_data(line.model_copy(update={"run": folder}))
    stages.cache_logits(line.model_copy(update={"run": folder}))
    assert teacher_sources(line, RunFolder(folder), NO_WISHES)
    card = (folder / "bundles" / "base" / "README.md").read_text(encoding="utf-8")
    assert "distilled from a teacher" in card and "BERT" not in card.split("##")[0]


def test_labels_that_texts_do_not_tell_are_refused(tmp_path: Path):
    lines = ["text\tlabel", *(f"!{'?' * row}\t{'ab'[row % 2]}" for row in range(60))]
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = configured(tmp_path / "run", f"data.source={tmp_path}", "data.transfer=[]",
                        "augment.views=0")  # fmt: skip
    stages.prepare_data(config)
    with pytest.raises(TeacherError, match="gold labels .* teach a linear model .* nothing"):
        stages.cache_logits(config)


def test_a_teacher_that_will_not_be_followed_is_not_asked_at_length(
    tmp_path: Path, tiny_overrides: list[str], capsys
):
    overrides = [*tiny_overrides, f"run={tmp_path / 'run'}", "augment.views=3"]
    doubtful = [*overrides, "logits.must_beat_linear=true"]
    config = load_config(CONFIGS / "tiny.toml", doubtful)
    stages.prepare_data(config)
    stages.train_teacher(config)
    filled = stages.cache_logits(config)
    said = capsys.readouterr().err
    assert "students follow the linear model instead" in said
    run = RunFolder(config.run)
    counts = {name: len(read_rows(run.split(name))) for name in ("train", "views")}
    assert filled.rows < counts["train"] and filled.folder.name != identify_of(run)
    assert (filled.computed, filled.reused) == (filled.rows, 0)
    assert LogitCache.open(run.cache(identify_of(run))).stats().rows > sum(counts.values())
    # Followed after all, the rest is asked.
    followed = load_config(CONFIGS / "tiny.toml", overrides)
    with pytest.raises(UserError, match="run `bert-kd cache-logits`: only what is missing"):
        stages.train_students(followed)
    assert stages.cache_logits(followed).computed > sum(counts.values()) / 2


def test_a_teacher_that_cannot_read_the_texts_is_followed_only_if_trained_in_full(
    tmp_path: Path, tiny_overrides: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("bert_kd.teacher.trainer.TRIED_EXAMPLES", 8)
    for split, rows in (("train", 60), ("validation", 40), ("test", 40)):
        lines = [f"{'好差'[row % 2]}房{split}{row}\t{'ab'[row % 2]}" for row in range(rows)]
        (tmp_path / f"{split}.tsv").write_text("\n".join(["text\tlabel", *lines]), "utf-8")
    data = [f"data.source={tmp_path}", "data.transfer=[]", "augment.views=0"]
    model = ["teacher.epochs=auto", "students.base.vocabulary.kind=auto"]
    overrides = [*tiny_overrides, *data, *model, f"run={tmp_path / 'run'}"]
    doubtful = load_config(CONFIGS / "tiny.toml", [*overrides, "logits.must_beat_linear=true"])
    stages.prepare_data(doubtful)
    assert stages.train_teacher(doubtful)["tried"]
    assert stages.train_teacher(doubtful)["tried"]  # it is current
    stages.cache_logits(doubtful)
    stages.train_students(doubtful)
    report = stages.evaluate(doubtful)
    assert any("tried with few examples" in note for note in report.notes)

    followed = load_config(CONFIGS / "tiny.toml", overrides)
    refused = "can't read the texts .* set teacher.epochs"
    for part in ((1, 1), (1, 2)):
        with pytest.raises(StageError, match=refused):
            stages.cache_logits(followed, part=part)
    # Nor where the comparison of all validation rows comes out otherwise.
    shutil.rmtree(RunFolder(doubtful.run).student("base-seed17"))
    with monkeypatch.context() as patched:
        patched.setattr("bert_kd.logits.reference.find_doubt", lambda *given: None)
        with pytest.raises(StageError, match=refused):
            stages.train_students(doubtful)
    facts = stages.train_teacher(followed)
    assert "tried" not in facts and facts["steps"] > 8
    assert stages.cache_logits(followed).rows == 140


def identify_of(run: RunFolder) -> str:
    from bert_kd.data.prepare import load_prepared

    return identify(load_prepared(run))

"""A student from prepared rows and cached answers to its folder and its report: every loss of the
configuration, pooled states through the linear map, calibrated teachers.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bert_kd import provenance, stages
from bert_kd.config import Config, LossConfig, StudentConfig
from bert_kd.data.rows import read_rows
from bert_kd.errors import CacheError, StageError, StudentError
from bert_kd.evaluate.metrics import measure
from bert_kd.logits.cache import LogitCache, Manifest
from bert_kd.logits.word_vectors import write_word_vectors
from bert_kd.provenance import members
from bert_kd.stages import forget_checkpoint
from bert_kd.standing import NO_WISHES, Wishes
from bert_kd.store import RunFolder, read_json
from bert_kd.student import lesson as lesson_module
from bert_kd.student.lesson import _follow_linear, _start, prepare_lesson, teach
from bert_kd.student.train import CHECKPOINT, read_history

WORDS = ("parcel", "invoice", "password", "broken")
FILLERS = ("my", "the", "please", "help", "is", "where", "now", "again", "was", "soon")
TOO_SURE = 4.0


@pytest.fixture
def configured(tmp_path: Path) -> Callable[..., Config]:
    """Make prepared data of so many classes and a cache of answers to it; return a configuration.

    The teacher sees the class's word and is far too sure; one to be calibrated is often wrong.
    """

    def make(
        classes: int = 3,
        *,
        loss: dict[str, Any] | None = None,
        calibrate: bool = False,
        features: bool = False,
        validation: int = 80,
        twin: bool = False,
        must_beat_linear: bool = False,
    ) -> Config:
        generator = np.random.default_rng(5)
        source = tmp_path / "source"
        source.mkdir(exist_ok=True)
        for split, rows in (("train", 120), ("validation", validation), ("test", 60)):
            lines = ["text\tlabel"]
            for row in range(rows):
                label = row % classes
                lines.append(f"{sentence(generator, label)} {split} {row}\t{WORDS[label]}")
            (source / f"{split}.tsv").write_text("\n".join(lines) + "\n")
        pool = ["text", *(f"{sentence(generator, row % classes)} pool {row}" for row in range(30))]
        (source / "pool.txt").write_text("\n".join(pool) + "\n")
        config = Config.model_validate(
            {
                "run": tmp_path / "run",
                "data": {"source": str(source), "transfer": [str(source / "pool.txt")],
                         "format": "tsv"},
                "logits": {"teachers": [{"folder": tmp_path / "answers"}], "calibrate": calibrate,
                           "must_beat_linear": must_beat_linear},
                "students": [{
                    "name": "base",
                    "twin": twin,
                    "vocabulary": {"kind": "words"},
                    "embedding": {"size": 12, "start": "random"},
                    "model": {"hidden_size": 8, "dense": 0, "dropout": 0.0},
                    "training": {"epochs": 8, "batch_size": 16, "learning_rate": 0.02},
                    "loss": loss or {},
                }],
                "evaluate": {"speed_rounds": 0, "bootstrap_samples": 100},
            }
        )  # fmt: skip
        prepared = stages.prepare_data(config)
        noise = 1.2 if calibrate else 0.1
        answer(config, prepared.labels, generator, features, noise)
        return config

    def answer(
        config: Config,
        labels: tuple[str, ...],
        generator: np.random.Generator,
        features: bool,
        noise: float,
    ) -> None:
        size = 6 if features else None
        cache = LogitCache.create(
            tmp_path / "answers", Manifest("other", labels, feature_size=size)
        )
        for split in ("train", "transfer", "validation", "test"):
            rows = read_rows(RunFolder(config.run).split(split))
            seen = np.array([[name in text.split() for name in labels] for text in rows.texts])
            logits = 2 * seen + generator.normal(0, noise, seen.shape)
            states = logits @ np.linspace(-1, 1, 6 * len(labels)).reshape(len(labels), 6)
            cache.append(
                rows.keys,
                (TOO_SURE * logits).astype(np.float32),
                states.astype(np.float16) if features else None,
            )

    return make


def sentence(generator: np.random.Generator, label: int) -> str:
    words = [*generator.choice(FILLERS, size=4), WORDS[label]]
    generator.shuffle(words)
    return " ".join(words)


@pytest.mark.parametrize(
    "loss",
    [
        {"soft": "dkd", "temperature": 2.0},
        {"soft": "dist", "temperature": 2.0},
        {"soft": "kl", "temperature": 2.0, "standardise": True},
        {"soft": "dkd", "temperature": 2.0, "standardise": True, "dkd_other_weight": 1.0},
    ],
    ids=["dkd", "dist", "kl, standardised", "dkd, standardised"],
)
def test_a_student_learns_by_every_soft_term(configured, loss):
    config = configured(loss=loss | {"hard_weight": 0.0})
    metrics = stages.train_students(config)
    history = read_history(RunFolder(config.run).student("base-seed17"))
    assert history[-1]["soft"] < history[0]["soft"] / 2
    assert metrics["base-seed17"]["validation_accuracy"] > 0.8


def test_beside_a_teacher_too_a_student_may_learn_from_gold_labels_alone(configured):
    config = configured(loss={"hard_weight": 1.0, "soft_weight": 0.0}, twin=True)
    assert [member.name for member in members(config)] == ["base-seed17"]
    metrics = stages.train_students(config)
    assert metrics["base-seed17"]["examples"] == 120  # of 150 rows, those of train


def test_a_teacher_that_knows_less_than_a_linear_model_is_not_followed(configured, capsys):
    # Calibrated ones are often wrong; the classes' words are plain to see.
    config = configured(calibrate=True, twin=True, must_beat_linear=True)
    metrics = stages.train_students(config)
    said = capsys.readouterr().err
    assert "students follow the linear model instead" in said and "must_beat_linear" in said
    # It answers transfer texts too, and is right where the teacher is often wrong.
    assert metrics["base-seed17"]["examples"] == 150
    assert metrics["base-seed17"]["validation_accuracy"] > 0.95
    history = read_history(RunFolder(config.run).student("base-seed17"))
    assert all(row["soft"] > 0 for row in history)
    # A twin that is made later, after a kill in between, reads by the same vocabulary.
    run = RunFolder(config.run)
    student, twin = run.student("base-seed17"), run.student("base-seed17-twin")
    shutil.rmtree(twin)
    stages.train_students(config)
    assert "n-grams" in read_json(student / "config.json")["doubt"]
    assert (twin / "tokenizer.json").read_bytes() == (student / "tokenizer.json").read_bytes()
    notes = stages.evaluate(config).notes
    assert sum("learned from that linear model instead" in note for note in notes) == 1

    followed = config.model_copy(
        update={"logits": config.logits.model_copy(update={"must_beat_linear": False})}
    )
    with pytest.raises(StageError, match="must_beat_linear"):
        stages.train_students(followed)
    stages.train_students(followed, Wishes(force=frozenset({"train-students"})))
    assert "doubt" not in read_json(student / "config.json")
    assert not any("n-grams" in note for note in stages.evaluate(followed).notes)


def test_a_student_of_gold_labels_does_not_ask_how_good_a_teacher_is(configured, capsys):
    config = configured(loss={"hard_weight": 1.0, "soft_weight": 0.0}, must_beat_linear=True)
    logits = config.logits.model_copy(update={"minimum_gain": 0.999})
    config = config.model_copy(update={"logits": logits})
    assert stages.train_students(config)["base-seed17"]["examples"] == 120
    assert "linear" not in capsys.readouterr().err


def test_the_linear_model_has_no_pooled_states_to_learn(configured, capsys):
    loss = {"feature_weight": 1.0, "soft_weight": 0.0, "hard_weight": 0.0}
    config = configured(loss=loss, features=True, calibrate=True, must_beat_linear=True)
    metrics = stages.train_students(config)
    assert "loss.feature_weight counts for nothing" in capsys.readouterr().err
    assert metrics["base-seed17"]["validation_accuracy"] > 0.95
    history = read_history(RunFolder(config.run).student("base-seed17"))
    assert all(row["feature"] == 0 and row["soft"] > 0 for row in history)


def test_a_teacher_that_knows_more_is_followed(configured):
    config = configured(must_beat_linear=True)
    assert stages.train_students(config)["base-seed17"]["examples"] == 150
    assert not any("n-grams" in note for note in stages.evaluate(config).notes)


@pytest.mark.parametrize("kind", ["mse", "cosine"])
def test_pooled_states_are_learned_through_the_map_and_it_is_left_behind(configured, kind):
    loss = {"feature_weight": 1.0, "feature": kind, "soft_weight": 0.0, "hard_weight": 0.1}
    config = configured(loss=loss, features=True, twin=True)
    stages.train_students(config)
    folder = RunFolder(config.run).student("base-seed17")
    history = read_history(folder)
    assert 0 < history[-1]["feature"] < history[0]["feature"] / 2
    assert all(row["soft"] == 0 for row in history)
    assert stages.evaluate(config).models[1].name == "base-seed17"  # reads it without the map
    twin = read_history(RunFolder(config.run).student("base-seed17-twin"))
    assert all(row["feature"] == 0 for row in twin)


def test_features_that_are_not_cached_are_refused(configured):
    config = configured(loss={"feature_weight": 1.0})
    with pytest.raises(StudentError, match="answers has none: set feature_weight = 0, or name"):
        stages.train_students(config)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ({"soft": "dist"}, 'correlation is 1 or -1.*set loss.soft = "kl"'),
        ({"soft": "kl", "standardise": True}, "two classes a standardised row.*out$"),
        ({"soft": "dkd", "standardise": True}, "two classes a standardised row.*out$"),
    ],
)
def test_what_two_classes_leave_empty_is_refused(configured, loss, message):
    config = configured(2)
    student = config.students[0].model_copy(update={"loss": LossConfig.model_validate(loss)})
    config = config.model_copy(update={"students": (student,)})
    for stage in (
        stages.prepare_data,
        stages.train_teacher,
        stages.cache_logits,
        stages.train_students,
    ):
        with pytest.raises(StudentError, match=message):
            stage(config)
    assert not (config.run / "students").exists()


def test_dkd_of_two_classes_is_said_to_be_kl(configured, capsys):
    stages.train_students(configured(2, loss={"soft": "dkd"}))
    assert "with two classes dkd is kl times dkd_target_weight" in capsys.readouterr().err


def test_a_calibrated_teacher_is_learned_from_measured_and_recorded(configured, capsys):
    config = configured(calibrate=True, loss={"soft": "kl"}, twin=True)
    stages.train_students(config)
    said = capsys.readouterr().err
    assert "base: the teacher's temperature is " in said
    run = RunFolder(config.run)
    (found,) = read_json(run.student("base-seed17") / "config.json")["calibrations"]
    assert found["rows"] == 80 and found["wrong"] > 0 and found["temperature"] > 2
    assert found["nll_after"] < found["nll_before"]
    assert "calibrations" not in read_json(run.student("base-seed17-twin") / "config.json")

    report = stages.evaluate(config)
    teacher = report.models[0]
    assert f"calibrated (T = {found['temperature']:.2f})" in teacher.description
    assert sum("Calibrated: the teacher's temperature is" in note for note in report.notes) == 1
    assert teacher.metrics["validation"].nll == pytest.approx(found["nll_after"], rel=1e-5)
    # Beside the answers as they were: as accurate, and not as sure.
    rows = read_rows(run.split("test"))
    (source,) = config.logits.teachers
    given = LogitCache.open(source.folder).lookup(rows.keys).logits
    before = measure(given, rows.labels, report.data.labels, bootstrap_samples=100, seed=1)
    after = teacher.metrics["test"]
    assert after.accuracy == before.accuracy and after.nll < before.nll and after.ece < before.ece


def test_calibration_makes_students_stale_and_not_their_twins(configured):
    config = configured(twin=True)
    run, prepared = provenance.with_data(config)
    other = config.model_copy(
        update={"logits": config.logits.model_copy(update={"calibrate": True})}
    )
    student, twin = members(config)
    differences = []
    for member in (student, twin):
        stamps = [
            provenance.student_stamp(
                one, member, run, prepared, provenance.teacher_sources(one, run, NO_WISHES)
            )
            for one in (config, other)
        ]
        differences.append(stamps[1].differences(stamps[0]))
    assert differences == [["logits.calibrate: wanted True, made with False"], []]


def test_a_tiny_validation_split_is_said_to_be_too_few(configured, capsys):
    stages.train_students(configured(calibrate=True, validation=24))
    assert "on 24 labelled validation rows, too few to rely on" in capsys.readouterr().err


def test_answers_to_validation_are_needed_to_calibrate(configured):
    config = configured(calibrate=True)
    (source,) = config.logits.teachers
    run = RunFolder(config.run)
    whole = LogitCache.open(source.folder)
    rows = read_rows(run.split("train"))
    part = LogitCache.create(source.folder.parent / "part", whole.manifest)
    part.append(rows.keys, whole.lookup(rows.keys).logits)
    lacking = config.logits.model_copy(
        update={"teachers": (source.model_copy(update={"folder": part.folder}),)}
    )
    with pytest.raises(CacheError, match="80 of 80|80 rows"):
        stages.train_students(config.model_copy(update={"logits": lacking}))


NAME = "bert.embeddings.word_embeddings.weight"


@pytest.fixture
def with_teacher(
    configured: Callable[..., Config], teacher_folder: Path
) -> Callable[[str, bool], Config]:
    """Make a run whose teacher's folder is at hand, its token vectors trained or frozen."""

    def make(start: str, trains: bool) -> Config:
        config = configured(twin=True)
        run = RunFolder(config.run)
        shutil.copytree(teacher_folder, run.teacher)
        groups = [{"name": "below the pooler", "parameters": 9, "trains": trains}]
        facts = {"fine_tuned": True, "trainable": {"groups": groups}}
        (run.teacher / "teacher.json").write_text(json.dumps(facts))
        (source,) = config.logits.teachers
        matrix = load_file(run.teacher / "model.safetensors")[NAME]
        write_word_vectors(source.folder, matrix[::-1].astype(np.float16))
        if trains:
            run.base_of(run.teacher).mkdir()
            base = {NAME: np.ascontiguousarray(matrix[:, ::-1] ** 3)}
            save_file(base, run.base_of(run.teacher) / "model.safetensors")
        (student,) = config.students
        embedding = student.embedding.model_copy(update={"start": start})
        student = student.model_copy(update={"embedding": embedding})
        return config.model_copy(update={"students": (student,)})

    return make


def vectors_and_stamps(config: Config) -> tuple[list[Any], list[str]]:
    """Return start vectors and what their stamp says of these, of the student and of its twin."""
    run, prepared = provenance.with_data(config)
    sources = provenance.teacher_sources(config, run, NO_WISHES)
    lesson = prepare_lesson(config.students[0], config.logits, run, prepared, sources)
    starts = [_start(lesson, member.name, 17, member.twin) for member in members(config)]
    stamps = [
        provenance.student_stamp(config, member, run, prepared, sources)
        for member in members(config)
    ]
    return [start.vectors for start in starts if start], [
        stamp.inputs["vectors"] for stamp in stamps
    ]


def test_twins_start_from_token_vectors_that_no_task_has_trained(with_teacher):
    config = with_teacher("teacher", True)
    (student, twin), (known, twins) = vectors_and_stamps(config)
    assert not np.allclose(student, twin) and known != twins
    base = RunFolder(config.run).base_of(RunFolder(config.run).teacher)
    shutil.copy(base / "model.safetensors", base.parent)
    assert np.array_equal(vectors_and_stamps(config)[0][0], twin)


def test_of_a_teacher_whose_token_vectors_were_frozen_twins_start_as_students(with_teacher, capsys):
    (student, twin), stamps = vectors_and_stamps(with_teacher("teacher", False))
    assert np.array_equal(student, twin) and stamps[0] == stamps[1]
    assert "were trained on a task" not in capsys.readouterr().err


@pytest.mark.parametrize("trains", [False, True])
def test_twins_know_nothing_of_what_the_teacher_makes_of_words(with_teacher, trains):
    config = with_teacher("words", trains)
    (student, twin), (known, twins) = vectors_and_stamps(config)
    assert not np.allclose(student, twin) and known != twins
    (plain,) = config.students
    embedding = plain.embedding.model_copy(update={"start": "teacher"})
    other = config.model_copy(
        update={"students": (plain.model_copy(update={"embedding": embedding}),)}
    )
    assert np.array_equal(vectors_and_stamps(other)[0][1], twin)


def test_a_teacher_of_an_older_version_gives_its_trained_vectors_and_it_is_said(
    with_teacher, capsys
):
    config = with_teacher("teacher", True)
    run = RunFolder(config.run)
    shutil.rmtree(run.base_of(run.teacher))
    (student, twin), stamps = vectors_and_stamps(config)
    assert np.array_equal(student, twin) and stamps[0] == stamps[1]
    assert "base-seed17-twin: its token vectors were trained on a task" in capsys.readouterr().err


@pytest.mark.parametrize(("start", "rate"), [("teacher", 0.3), ("random", 1.0), ("file", 1.0)])
def test_given_vectors_learn_at_a_lower_rate(with_teacher, monkeypatch, tmp_path, start, rate):
    config = with_teacher("teacher", True)
    (student,) = config.students
    file = tmp_path / "vectors.txt"  # knows one word of many
    file.write_text(f"{WORDS[0]} " + " ".join(["0.5"] * student.embedding.size) + "\n")
    embedding = student.embedding.model_copy(
        update={"start": start, "file": file if start == "file" else None}
    )
    student = student.model_copy(update={"embedding": embedding, "twin": False})
    rates = []

    def note(config: StudentConfig, *_: object, **__: object) -> None:
        rates.append(config.training.embedding_rate)
        raise StudentError("enough is known")

    monkeypatch.setattr(lesson_module, "train", note)
    with pytest.raises(StudentError, match="enough"):
        stages.train_students(config.model_copy(update={"students": (student,)}))
    assert rates == [rate]


@pytest.mark.parametrize("place", ["bert_kd.provenance.RECIPE", "bert_kd.logits.linear.FORMAT"])
def test_what_training_itself_does_is_part_of_a_students_stamp(configured, monkeypatch, place):
    config = configured(must_beat_linear=True)
    run, prepared = provenance.with_data(config)
    sources = provenance.teacher_sources(config, run, NO_WISHES)
    (member,) = members(config)
    before = provenance.student_stamp(config, member, run, prepared, sources)
    monkeypatch.setattr(place, 99)
    after = provenance.student_stamp(config, member, run, prepared, sources)
    assert len(after.differences(before)) == 1 and "wanted 99" in after.differences(before)[0]


def test_labels_are_smoothed_for_twins_too(configured, monkeypatch, tmp_path):
    config = configured(loss={"label_smoothing": 0.2}, twin=True)
    run, prepared = provenance.with_data(config)
    sources = provenance.teacher_sources(config, run, NO_WISHES)
    lesson = prepare_lesson(config.students[0], config.logits, run, prepared, sources)
    losses = []

    def note(config: StudentConfig, *_: object, **__: object) -> None:
        losses.append(config.loss)
        raise StudentError("enough is known")

    monkeypatch.setattr(lesson_module, "train", note)
    for twin in (False, True):
        with pytest.raises(StudentError, match="enough"):
            teach(lesson, tmp_path, name="x", seed=17, twin=twin, fingerprint="f")
    student, twins = losses
    assert student == config.students[0].loss and student.distils
    assert twins == LossConfig(hard_weight=1.0, soft_weight=0.0, label_smoothing=0.2)


@pytest.mark.parametrize("soft_weight", [0.0, 1.0])
def test_labels_are_smoothed_beside_a_linear_model_too(soft_weight):
    loss = LossConfig(soft_weight=soft_weight, feature_weight=1.0, label_smoothing=0.2)
    assert _follow_linear(StudentConfig(name="base", loss=loss)).loss.label_smoothing == 0.2


def test_a_checkpoint_stays_until_it_is_to_be_forgotten(configured, tmp_path, monkeypatch):
    """A kill between the saving of a student and its stamp costs no second training."""
    config = configured()
    run, prepared = provenance.with_data(config)
    sources = provenance.teacher_sources(config, run, NO_WISHES)
    lesson = prepare_lesson(config.students[0], config.logits, run, prepared, sources)
    folder = tmp_path / "student"
    given = {"name": "x", "seed": 17, "twin": False, "fingerprint": "f"}
    metrics = teach(lesson, folder, **given)
    before = (folder / "model.safetensors").read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(
            "bert_kd.student.losses.DistillationLoss.forward",
            lambda *_: pytest.fail("a finished student is trained again"),
        )
        assert teach(lesson, folder, **given) == metrics
    assert (folder / "model.safetensors").read_bytes() == before

    for name in ("checkpoint.other", "checkpoint.damaged", ".left.tmp"):
        (folder / name).touch()
    kept = {path.name for path in folder.iterdir()} - {CHECKPOINT}
    forget_checkpoint(folder)
    assert {path.name for path in folder.iterdir()} == {
        name for name in kept if "checkpoint." not in name and not name.endswith(".tmp")
    }
    assert not (folder / CHECKPOINT).exists() and (folder / "model.safetensors").exists()
    forget_checkpoint(folder)

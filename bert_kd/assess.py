"""Stage 05 put together: answers of teacher, students and twins, their metrics, and their speed.

Here the rooms meet: `evaluate` measures and writes, and knows neither teacher nor runtime; this
file gives it their answers. The teacher's answers come from the logit cache; its model is loaded
for the speed measurement alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bert_kd.config import Config, TeacherSource
from bert_kd.data.prepare import Prepared
from bert_kd.data.rows import Rows, read_rows
from bert_kd.errors import CacheError, StageError
from bert_kd.evaluate.comparisons import compare
from bert_kd.evaluate.findings import (
    DataFacts,
    EnsembleMember,
    Model,
    Report,
    WorstErrors,
    best_student,
    machine_facts,
)
from bert_kd.evaluate.format import percent
from bert_kd.evaluate.metrics import measure, worst_errors
from bert_kd.logits.calibration import Calibration
from bert_kd.logits.panel import Panel, open_panel
from bert_kd.progress import progress, say
from bert_kd.store import RunFolder, Stamp, read_json
from bert_kd.teacher.card import was_tried
from bert_kd.timing import with_speed

if TYPE_CHECKING:
    from bert_kd.provenance import Member
    from bert_kd.student.model import Student

Logits = npt.NDArray[np.float32]
TEACHER = "teacher"


@dataclass(frozen=True)
class _Split:
    """One split with the teacher's answers (None: there is no teacher, or the cache lacks them)."""

    rows: Rows
    teacher: Logits | None


def assess(
    config: Config,
    run: RunFolder,
    prepared: Prepared,
    members: Sequence[Member],
    sources: Sequence[TeacherSource],
) -> Report:
    """Return the report of all members (and the teacher, where there are `sources`) on the
    configured splits.
    """
    from bert_kd.student.model import load_student

    settings = config.evaluate
    notes: list[str] = []
    if not sources:
        notes.append("There is no teacher: every student learned from the gold labels alone.")
    panel = open_panel(config.logits, sources, prepared.labels, run.split("validation"))
    notes.extend(_about_calibration(calibration) for calibration in panel.calibrations)
    splits: dict[str, _Split] = {}
    for name in settings.splits:
        rows = read_rows(run.split(name))
        teacher = _teacher_logits(panel, rows, name, notes)
        splits[name] = _Split(rows, teacher)
    shown = "test" if "test" in settings.splits else settings.splits[-1]
    students = {member.name: load_student(run.student(member.name)) for member in members}
    for trained, student in students.items():
        if (student.labels, student.shape.pair) != (prepared.labels, prepared.pair):
            raise StageError(
                f"{trained} was trained for the labels {', '.join(student.labels)}; the data has "
                f"{', '.join(prepared.labels)}: run train-students --force"
            )
    answers = _answers(splits, students)

    models = (
        [_teacher_model(config, run, panel, splits)]
        if all(split.teacher is not None for split in splits.values())
        else []
    )
    if models and panel.calibrations:
        fitted = ", ".join(f"T = {found.temperature:.2f}" for found in panel.calibrations)
        about = f"{models[0].description}, calibrated ({fitted})"
        models[0] = replace(models[0], description=about)
    for member in members:
        models.append(_student_model(config, run, member, students[member.name], splits, answers))
    doubts = {
        str(student.facts["doubt"])
        for student in students.values()
        if "doubt" in student.facts and student.facts.get("distilled", True)
    }
    notes.extend(
        f"The teacher was not followed: {doubt}. Students learned from that linear model instead."
        for doubt in doubts
    )
    if doubts and was_tried(run.teacher):
        notes.append(
            "The teacher can't read over a third of the texts' wordpieces, so it was tried with "
            "few examples and trained no longer."
        )
    if models[0].ensemble:
        notes.append(_about_ensemble(models[0], shown))
    if settings.speed_rounds:
        rows = next(iter(splits.values())).rows
        models = with_speed(config, run, models, students, rows, notes)

    comparisons = tuple(
        _compare(config, student.name, name, members, splits[name], answers[name])
        for name in settings.splits
        for student in config.students
    )
    return Report(
        run=config.run.name,
        split=shown,
        data=_data_facts(prepared),
        models=tuple(models),
        machine=machine_facts(settings.threads),
        comparisons=comparisons,
        worst=_worst(config, models, splits[shown], answers[shown], shown, prepared.labels),
        notes=tuple(notes),
    )


def _about_calibration(calibration: Calibration) -> str:
    """Return the sentence of the report that goes with the teacher's NLL and calibration error."""
    about = calibration.describe()
    return f"Calibrated: {about}. Its NLL and calibration error are those after it."


def _teacher_logits(panel: Panel, rows: Rows, split: str, notes: list[str]) -> Logits | None:
    """Return the teachers' answers to a split, or None where there are no teachers or an imported
    cache lacks them.
    """
    if not panel.sources:
        return None
    try:
        return panel.answers(rows.keys).logits
    except CacheError as error:
        if not panel.config.teachers:
            raise
        say(f"evaluate: no teacher on {split}: {error}")
        notes.append(f"The caches hold no teacher's answers to all of {split}.")
        return None


def _answers(
    splits: dict[str, _Split], students: dict[str, Student]
) -> dict[str, dict[str, Logits]]:
    """Return the logits of every student on every split, by split and student."""
    from bert_kd.data.batches import encode
    from bert_kd.student.train import Examples, predict

    answers: dict[str, dict[str, Logits]] = {name: {} for name in splits}
    total = len(students) * sum(len(split.rows) for split in splits.values())
    with progress("evaluate", total, "texts") as advance:
        for name, split in splits.items():
            rows = split.rows
            encoded: dict[str, Examples] = {}  # the latest, by tokenizer: seeds follow each other
            for student_name, student in students.items():
                tokenizer = student.tokenizer.to_str()
                if tokenizer not in encoded:
                    other = encode(student.tokenizer, rows.texts_b) if rows.texts_b else None
                    tokens = encode(student.tokenizer, rows.texts)
                    encoded = {tokenizer: Examples(tokens, other, rows.labels)}
                answers[name][student_name] = predict(student.model, encoded[tokenizer])
                advance(len(rows))
    return answers


def _teacher_model(
    config: Config, run: RunFolder, panel: Panel, splits: dict[str, _Split]
) -> Model:
    """Return the teacher's row; its size is known where the model is this run's own. That of an
    ensemble is the size of all its members.
    """
    settings = config.evaluate
    metrics = {
        name: measure(
            split.teacher,
            split.rows.labels,
            panel.labels,
            bootstrap_samples=settings.bootstrap_samples,
            seed=settings.seed,
        )
        for name, split in splits.items()
        if split.teacher is not None
    }
    if config.logits.teachers:
        caches = ", ".join(source.folder.name for source in config.logits.teachers)
        about = f"answers read from {caches}"
        return Model(TEACHER, TEACHER, "teacher", None, metrics, description=about)
    if config.teacher.linear:
        about = "linear model of n-grams, train answered by models of its other parts"
        return Model(TEACHER, TEACHER, "teacher", None, metrics, description=about)
    folders = run.teachers(len(panel.sources))
    facts = read_json(run.teacher_facts)
    weights = [path for folder in folders for path in sorted(folder.glob("*.safetensors"))]
    total, embedding = _tensor_sizes(weights)
    model = Model(
        TEACHER,
        TEACHER,
        "teacher",
        _seed_of(run.teacher),
        metrics,
        parameters=total,
        parameters_without_embedding=total - embedding,
        bytes=sum(path.stat().st_size for path in weights),
        description=str(facts["base"]),
    )
    if len(folders) == 1:
        return replace(model, history=tuple(_as_student_history(row) for row in facts["history"]))
    alone = []
    for folder, source in zip(folders, panel.sources, strict=True):
        accuracy = {
            name: _alone(replace(panel, sources=(source,), calibrations=()), split.rows)
            for name, split in splits.items()
        }
        alone.append(EnsembleMember(folder.name, accuracy))
    about = f"{len(folders)} × {facts['base']}, mean of their {config.logits.combine}"
    return replace(model, seed=None, description=about, ensemble=tuple(alone))


def _seed_of(teacher: Path) -> int | None:
    """Return the seed that a teacher was made with: one that was kept may be of other settings."""
    stamp = Stamp.read(teacher)
    return None if stamp is None else int(stamp.identity["teacher"]["seed"])


def _alone(teacher: Panel, rows: Rows) -> float:
    """Return the accuracy of one teacher of an ensemble on a split."""
    return float((teacher.answers(rows.keys).logits.argmax(axis=1) == rows.labels).mean())


def _about_ensemble(model: Model, split: str) -> str:
    """Return a sentence about the members of an ensemble, by their accuracy on a split."""
    alone = ", ".join(
        f"{percent(member.accuracy[split])} ({member.name})" for member in model.ensemble
    )
    return (
        f"The teacher is the mean of {len(model.ensemble)} teachers, and its size and speed are "
        f"those of all of them together. Their accuracies on {split} in per cent, each alone: "
        f"{alone}."
    )


def _as_student_history(row: dict[str, float]) -> dict[str, float]:
    """Return one of the teacher's evaluations under the names that students' epochs have."""
    renamed = {"train_loss": "loss"} | {
        name: f"validation_{name}" for name in ("accuracy", "macro_f1", "nll")
    }
    return {renamed.get(key, key): value for key, value in row.items()}


def _tensor_sizes(files: Sequence[Path]) -> tuple[int, int]:
    """Return how many values these safetensors files hold, and how many of them are embeddings."""
    from safetensors import safe_open

    total = embedding = 0
    for path in files:
        with safe_open(path, framework="np") as tensors:
            for name in tensors.keys():
                count = int(np.prod(tensors.get_slice(name).get_shape()))
                total += count
                embedding += count if "embeddings." in name else 0
    return total, embedding


def _student_model(
    config: Config,
    run: RunFolder,
    member: Member,
    student: Student,
    splits: dict[str, _Split],
    answers: dict[str, dict[str, Logits]],
) -> Model:
    from bert_kd.student.model import count_parameters
    from bert_kd.student.train import read_history

    settings = config.evaluate
    folder = run.student(member.name)
    metrics = {
        name: measure(
            answers[name][member.name],
            split.rows.labels,
            student.labels,
            teacher_logits=split.teacher,
            bootstrap_samples=settings.bootstrap_samples,
            seed=settings.seed,
        )
        for name, split in splits.items()
    }
    total, without_embedding = count_parameters(student.model)
    shape = student.shape
    return Model(
        member.name,
        member.config.name,
        "twin" if member.twin else "student",
        member.seed,
        metrics,
        parameters=total,
        parameters_without_embedding=without_embedding,
        bytes=(folder / "model.safetensors").stat().st_size,
        description=f"BiLSTM {shape.layers} × {shape.hidden} a direction, {shape.pooling} pooling",
        history=tuple(read_history(folder)),
    )


def _compare(
    config: Config,
    student: str,
    name: str,
    members: Sequence[Member],
    split: _Split,
    answers: dict[str, Logits],
) -> Any:
    """Return one student (all seeds) beside its twin and teacher on a split."""
    mine = [member for member in members if member.config.name == student]

    def predicted(twin: bool) -> npt.NDArray[np.int64] | None:
        found = [answers[member.name].argmax(axis=1) for member in mine if member.twin is twin]
        return np.stack(found) if found else None

    own = predicted(twin=False)
    assert own is not None  # every student has at least one seed
    return compare(
        student,
        name,
        split.rows.labels,
        student=own,
        twin=predicted(twin=True),
        teacher=split.teacher.argmax(axis=1) if split.teacher is not None else None,
        samples=config.evaluate.bootstrap_samples,
        seed=config.evaluate.seed,
    )


def _worst(
    config: Config,
    models: Sequence[Model],
    split: _Split,
    answers: dict[str, Logits],
    name: str,
    labels: Sequence[str],
) -> WorstErrors | None:
    best = best_student(models, name)
    if best is None or not config.evaluate.worst_errors:
        return None
    errors = worst_errors(
        split.rows.texts,
        split.rows.texts_b,
        answers[best.name],
        split.rows.labels,
        labels,
        teacher_logits=split.teacher,
        count=config.evaluate.worst_errors,
    )
    return WorstErrors(best.name, name, errors)


def _data_facts(prepared: Prepared) -> DataFacts:
    counts = prepared.report["label_counts"]
    return DataFacts(
        source=str(prepared.report["source"]),
        labels=prepared.labels,
        rows=dict(prepared.rows),
        counts={
            split: tuple(found.get(label, 0) for label in prepared.labels)
            for split, found in counts.items()
        },
        pair=prepared.pair,
    )

"""What made an output, and whether it still stands.

Here: the students that a configuration asks for, the stamp of each stage's output, and the rules by
which output is current, stale or refused. Not here: the stages themselves (`stages.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bert_kd.config import Config, StudentConfig, TeacherSource
from bert_kd.errors import StageError
from bert_kd.progress import say
from bert_kd.store import RunFolder, Stamp, fingerprint, fingerprint_files

if TYPE_CHECKING:
    from bert_kd.data.prepare import Prepared


@dataclass(frozen=True)
class Wishes:
    """Which stages to make again (`force`), and whose output to keep though its settings changed
    (`keep`).
    """

    force: Collection[str] = field(default_factory=frozenset)
    keep: Collection[str] = field(default_factory=frozenset)


NO_WISHES = Wishes()


@dataclass(frozen=True)
class Member:
    """One student to train: a configuration and a seed, or its twin that sees gold labels only."""

    config: StudentConfig
    seed: int
    twin: bool

    @property
    def name(self) -> str:
        return f"{self.config.name}-seed{self.seed}" + ("-twin" if self.twin else "")


def members(config: Config) -> list[Member]:
    """Return all students of the configuration, each followed by its twin."""
    return [
        Member(student, seed, twin)
        for student in config.students
        for seed in student.seeds
        for twin in ((False, True) if student.twin else (False,))
    ]


def teacher_stamp(config: Config, prepared: Prepared) -> Stamp:
    """Return the stamp of the teacher that this configuration asks for, on this data."""
    inputs = {name: prepared.fingerprints[name] for name in ("train", "validation")}
    return Stamp(
        "train-teacher",
        sections_of(config, "data", "teacher"),
        {"teacher": config.teacher.model_dump(mode="json")},
        inputs | {"labels": fingerprint(prepared.labels)},
    )


def cache_stamp(config: Config, run: RunFolder, teacher: str) -> Stamp:
    """Return the stamp of the logits of the teacher in `run`, whose fingerprint is `teacher`."""
    return Stamp(
        "cache-logits",
        sections_of(config, "data", "teacher", "logits"),
        {"logits.precision": config.logits.precision},
        {"teacher": teacher, "weights": _fingerprint_teacher_files(run, "*.safetensors")},
    )


def student_stamp(
    config: Config,
    member: Member,
    run: RunFolder,
    prepared: Prepared,
    sources: Sequence[TeacherSource],
) -> Stamp:
    """Return the stamp of one student or twin: its settings and all that it learns from."""
    student = member.config
    alone = student.model_copy(update={"seeds": (member.seed,)}).model_dump(mode="json")
    telling = {key: value for key, value in alone.items() if key not in ("name", "twin")}
    if member.twin:  # what a twin is does not depend on the soft loss
        telling["loss"] = {"label_smoothing": student.loss.label_smoothing}
    inputs = {name: prepared.fingerprints[name] for name in ("train", "validation")}
    inputs["labels"] = fingerprint(prepared.labels)
    # A twin does not learn from transfer rows, but its vocabulary is built from them too.
    inputs["transfer"] = prepared.fingerprints.get("transfer", "none")
    if student.vocabulary.kind == "wordpiece":
        inputs["vocabulary"] = _fingerprint_teacher_files(run, "tokenizer.json")
    if student.embedding.start == "teacher":
        inputs["vectors"] = _fingerprint_teacher_files(run, "*.safetensors")
    if student.embedding.file is not None and student.embedding.file.is_file():
        inputs["vectors"] = fingerprint_files([student.embedding.file])
    if not member.twin:
        inputs["teachers"] = fingerprint(
            [(identify_cache(source, run), source.weight) for source in sources],
            config.logits.combine,
        )
    return Stamp(
        "train-students",
        sections_of(config, "data", "teacher", "logits")
        | {"students": [alone | {"twin": member.twin or student.twin}]},
        telling,
        inputs,
    )


def teacher_sources(config: Config, run: RunFolder, wishes: Wishes) -> tuple[TeacherSource, ...]:
    """Return the caches to learn from: those configured, else this run's own, which must be of its
    present teacher.
    """
    if config.logits.teachers:
        return config.logits.teachers
    stamp = Stamp.read(run.logits)
    if stamp is None:
        raise StageError(f"{run.logits} holds no cached logits: run cache-logits first")
    teacher = stamp.inputs["teacher"]
    differences = cache_stamp(config, run, teacher).differences(stamp)
    if differences and "cache-logits" not in wishes.keep:
        raise StageError(
            f"{run.logits} holds the answers of another teacher ({'; '.join(differences)}): run "
            "cache-logits again; to go on with these as they are: --keep cache-logits"
        )
    return (TeacherSource(folder=run.cache(teacher)),)


def identify_cache(source: TeacherSource, run: RunFolder) -> str:
    """Return what tells a cache's answers from another's; this run's are named by teacher."""
    if source.folder.parent == run.logits:
        return source.folder.name
    shards = sorted(source.folder.glob("part-*.parquet"))
    named = fingerprint([(shard.name, shard.stat().st_size) for shard in shards])
    return fingerprint_files(sorted(source.folder.glob("manifest.json"))) + named


def _fingerprint_teacher_files(run: RunFolder, pattern: str) -> str:
    """Return a fingerprint of these files of the teacher's folder, by content."""
    return fingerprint_files(sorted(run.teacher.glob(pattern)))


def fingerprint_student(run: RunFolder, member: Member) -> str:
    """Return the fingerprint of a trained student's weights."""
    return fingerprint_files([run.student(member.name) / "model.safetensors"])


def sections_of(config: Config, *names: str) -> dict[str, Any]:
    """Return the run folder and these sections as plain values."""
    return config.model_dump(mode="json", include={"run", *names})


def with_data(config: Config) -> tuple[RunFolder, Prepared]:
    """Return the run folder and its prepared data, which must be of the present `data` section."""
    from bert_kd.data.prepare import load_prepared

    run = RunFolder(config.run)
    prepared = load_prepared(run)
    stamp = Stamp.read(run.data)
    wanted = sections_of(config, "data")["data"]
    if stamp is None or stamp.config.get("data") != wanted:
        raise StageError(
            f"{run.data} was prepared with other settings: run prepare-data again "
            "(rows whose logits are cached keep them)"
        )
    return run, prepared


def is_current(folder: Path, stamp: Stamp) -> bool:
    """Whether the output in `folder` is that of `stamp`."""
    found = Stamp.read(folder)
    return found is not None and not stamp.differences(found)


def stands(folder: Path, stamp: Stamp, wishes: Wishes) -> bool:
    """Whether the output in `folder` stands; raises StageError where it is another's."""
    if stamp.stage in wishes.force:
        return False
    found = Stamp.read(folder)
    if found is None:
        return False
    differences = stamp.differences(found)
    if not differences:
        say(f"{stamp.stage}: {folder} is current")
        return True
    _refuse_unless_kept(folder, stamp, wishes, differences)
    return True


def require(folder: Path, stamp: Stamp, wishes: Wishes) -> None:
    """Raise StageError where `folder` does not hold the finished output that `stamp` stands for."""
    found = Stamp.read(folder)
    if found is None:
        raise StageError(f"{folder} is not finished: run {stamp.stage} first")
    differences = stamp.differences(found)
    if differences:
        _refuse_unless_kept(folder, stamp, wishes, differences)


def _refuse_unless_kept(
    folder: Path, stamp: Stamp, wishes: Wishes, differences: Sequence[str]
) -> None:
    shown = "; ".join(differences[:5]) + ("; …" if len(differences) > 5 else "")
    if stamp.stage in wishes.keep:
        say(f"{stamp.stage}: {folder} is kept, though it was made otherwise ({shown})")
        return
    raise StageError(
        f"{folder} was made otherwise ({shown}). To make it again: bert-kd {stamp.stage} --force "
        f"(or bert-kd run --force {stamp.stage}); to go on with it as it is: --keep {stamp.stage}"
    )

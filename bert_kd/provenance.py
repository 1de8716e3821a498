"""What makes an output: the students that a configuration asks for, and the stamp of each stage's
output.

Not here: whether output of such a stamp stands (`standing.py`), the stages (`stages.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bert_kd.config import Config, LogitsConfig, StudentConfig, TeacherSource, is_linear
from bert_kd.errors import StageError
from bert_kd.standing import Wishes, require
from bert_kd.store import RunFolder, Stamp, fingerprint, fingerprint_files

if TYPE_CHECKING:
    from bert_kd.data.prepare import Prepared


@dataclass(frozen=True)
class Member:
    """One student to train: a configuration and a seed, or its twin that sees gold labels only."""

    config: StudentConfig
    seed: int
    twin: bool

    @property
    def name(self) -> str:
        return f"{self.config.name}-seed{self.seed}" + ("-twin" if self.twin else "")


def needs_teacher(config: Config) -> bool:
    """Whether caches are named to learn from, or any student takes answers, vocabulary or start
    vectors from a teacher.
    """
    return bool(config.logits.teachers) or any(
        student.loss.distils
        or student.vocabulary.kind == "wordpiece"
        or student.embedding.start in ("teacher", "words")
        for student in config.students
    )


def members(config: Config) -> list[Member]:
    """Return all students of the configuration, each followed by its twin; that of a student which
    learns from gold labels alone would be the same student again.
    """
    return [
        Member(student, seed, twin)
        for student in config.students
        for seed in student.seeds
        for twin in ((False, True) if student.twin and student.loss.distils else (False,))
    ]


def teacher_stamps(config: Config, run: RunFolder, prepared: Prepared) -> dict[Path, Stamp]:
    """Return the stamp of each teacher that this configuration asks for, on this data, by folder.

    It does not depend on how many there are: a larger ensemble keeps the teachers that are there.
    A linear model has no folder.
    """
    if config.teacher.linear:
        return {}
    from bert_kd.teacher.base import fingerprint_base

    inputs = {name: prepared.fingerprints[name] for name in ("train", "validation")}
    inputs["labels"] = fingerprint(prepared.labels)
    base = fingerprint_base(config.teacher.model)
    folders = run.teachers(config.teacher.ensemble)
    return {
        folder: Stamp(
            "train-teacher",
            sections_of(config, "data", "teacher"),
            {"teacher": member.telling},
            inputs | _base_of(folder, base),
        )
        for folder, member in zip(folders, config.teacher.members, strict=True)
    }


def _base_of(teacher: Path, found: str | None) -> dict[str, str]:
    """Return the input that says what a teacher is made from. Of one that is there, it is left to
    its own account where there is nothing to compare: no weights of the base, or none noted.
    """
    stamp = Stamp.read(teacher)
    noted = {} if stamp is None else {k: v for k, v in stamp.inputs.items() if k == "base"}
    if found is None or (stamp is not None and not noted):
        return noted
    return {"base": found}


def cache_stamp(config: Config, run: RunFolder, teachers: Sequence[str]) -> Stamp:
    """Return the stamp of the logits of the teachers in `run`, given their fingerprints in order.

    Its inputs are named after the folders: `teacher` and `weights`, `teacher-2` and `weights-2`, …
    """
    inputs = {}
    for folder, teacher in zip(run.teachers(len(teachers)), teachers, strict=True):
        inputs[folder.name] = teacher
        if is_linear(teacher):
            continue
        weights = fingerprint_files(sorted(folder.glob("*.safetensors")))
        inputs[folder.name.replace("teacher", "weights")] = weights
    return Stamp(
        "cache-logits",
        sections_of(config, "data", "teacher", "logits"),
        {"logits.precision": config.logits.precision},
        inputs,
    )


def _cached_teachers(stamp: Stamp) -> tuple[str, ...]:
    """Return the fingerprints of the teachers whose answers a stamp of cached logits stands for."""
    return tuple(value for key, value in stamp.inputs.items() if key.startswith("teacher"))


def cached_folders(run: RunFolder) -> list[Path]:
    """Return the caches of the teachers that stage 03 asked last; none where it has not run."""
    stamp = Stamp.read(run.logits)
    return [] if stamp is None else [run.cache(teacher) for teacher in _cached_teachers(stamp)]


RECIPE = 2
"""Of the training of students: counted up when the same settings come to train other weights."""


def _telling_logits(logits: LogitsConfig) -> dict[str, Any]:
    """Return what a student depends on of how teachers' answers are read."""
    found: dict[str, Any] = {"calibrate": logits.calibrate, "must_beat_linear": False}
    if logits.must_beat_linear:
        from bert_kd.logits.linear import FORMAT

        found["must_beat_linear"] = FORMAT  # of the model that teaches where it is not beaten
    return found


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
    taught = bool(sources) and student.loss.distils and not member.twin
    telling = _telling_student(member, alone, taught)
    rows = _learned_rows(prepared, student, taught)
    telling["training"]["batch_size"] = student.training.batch_over(rows)
    inputs = {name: prepared.fingerprints[name] for name in ("train", "validation")}
    inputs["labels"] = fingerprint(prepared.labels)
    # A twin learns from neither, but its vocabulary is built from them too.
    unlabelled = prepared.fingerprints if sources else {}
    inputs["transfer"] = unlabelled.get("transfer", "none")
    inputs["views"] = unlabelled.get("views", "none")
    if student.vocabulary.kind in ("auto", "wordpiece") and not config.teacher.linear:
        inputs["vocabulary"] = _fingerprint_teacher_files(run, "tokenizer.json")
    if student.embedding.start == "words" and not member.twin:
        inputs["vectors"] = identify_cache(sources[0], run)
    elif student.embedding.start in ("teacher", "words"):
        base = run.base_of(run.teacher)  # what twins start from, where the teacher changed it
        folder = base if member.twin and base.exists() else run.teacher
        inputs["vectors"] = fingerprint_files(sorted(folder.glob("*.safetensors")))
    if student.embedding.file is not None and student.embedding.file.is_file():
        inputs["vectors"] = fingerprint_files([student.embedding.file])
    if student.start_from is not None:
        inputs["start"] = fingerprint_files(sorted(student.start_from.glob("model.safetensors")))
    if taught:
        inputs["teachers"] = fingerprint(_telling_sources(config, run, sources))
        telling["logits"] = _telling_logits(config.logits)
    return Stamp(
        "train-students",
        sections_of(config, "data", "teacher", "logits")
        | {"students": [alone | {"twin": member.twin or student.twin}]},
        telling,
        inputs,
    )


def _telling_student(member: Member, values: dict[str, Any], taught: bool) -> dict[str, Any]:
    """Return what of a student's configuration, here as plain values, its weights depend on."""
    found: dict[str, Any] = {"recipe": RECIPE}
    found |= {key: value for key, value in values.items() if key not in ("name", "twin")}
    unread = ("checkpoint_seconds", "epochs" if member.twin else "twin_epochs")
    found["training"] = {key: of for key, of in values["training"].items() if key not in unread}
    if not taught:
        del found["rows"]
    if member.twin:  # what a twin is does not depend on the soft loss
        found["loss"] = {"label_smoothing": member.config.loss.label_smoothing}
    return found


def _telling_sources(config: Config, run: RunFolder, sources: Sequence[TeacherSource]) -> list[Any]:
    """Return what teachers' answers depend on: whose they are, and of several how they are put
    together, where it is the weights' ratio that counts.
    """
    names = [identify_cache(source, run) for source in sources]
    if len(sources) == 1:
        return names
    total = sum(source.weight for source in sources)
    return [names, [f"{source.weight / total:.6f}" for source in sources], config.logits.combine]


def _learned_rows(prepared: Prepared, student: StudentConfig, taught: bool) -> int:
    """Return how many rows a student or twin learns from, as its batches go by it."""
    rows = prepared.rows
    if not taught:
        return rows["train"]
    others = rows.get("transfer", 0) + rows.get("views", 0)
    most = student.rows.maximum
    return rows["train"] + (others if most is None else min(others, most))


def teacher_sources(config: Config, run: RunFolder, wishes: Wishes) -> tuple[TeacherSource, ...]:
    """Return the caches to learn from: those configured, else this run's own, which must be of its
    present teachers, and these of the present settings and data; none where no student needs one.
    """
    if not needs_teacher(config):
        return ()
    if config.logits.teachers:
        return config.logits.teachers
    stamp = Stamp.read(run.logits)
    if stamp is None:
        raise StageError(f"{run.logits} holds no cached logits: run cache-logits first")
    from bert_kd.data.prepare import load_prepared

    prepared = load_prepared(run)
    if "cache-logits" not in wishes.keep:
        # Rows that one of other data was trained on may be among those to be judged by now.
        for folder, wanted in teacher_stamps(config, run, prepared).items():
            require(folder, wanted, wishes)
    teachers = _cached_teachers(stamp)
    differences = cache_stamp(config, run, teachers).differences(stamp)
    differences += _other_teachers(config, prepared, teachers)
    if differences and "cache-logits" not in wishes.keep:
        raise StageError(
            f"{run.logits} holds the answers of another teacher ({'; '.join(differences)}): run "
            "cache-logits again; to go on with these as they are: --keep cache-logits"
        )
    return tuple(TeacherSource(folder=run.cache(teacher)) for teacher in teachers)


def _other_teachers(config: Config, prepared: Prepared, cached: Sequence[str]) -> list[str]:
    """Return, a line for each, how the cached teachers are not those that are asked for."""
    names = ", ".join(cached)
    if config.teacher.linear:
        from bert_kd.logits.linear import identify

        fitted = identify(prepared)
        return [] if tuple(cached) == (fitted,) else [f"teacher: wanted {fitted}, cached {names}"]
    if any(is_linear(teacher) for teacher in cached):
        return [f"teacher: wanted {config.teacher.model}, cached {names}"]
    if len(cached) != config.teacher.ensemble:
        return [f"teachers: wanted {config.teacher.ensemble}, cached {len(cached)}"]
    return []


def report_stamp(
    config: Config, run: RunFolder, prepared: Prepared, sources: Sequence[TeacherSource]
) -> Stamp:
    """Return the stamp of the report on these students; with speeds, it is of bundles as they would
    be exported.
    """
    identity: dict[str, Any] = {"evaluate": config.evaluate.model_dump(mode="json")}
    inputs: dict[str, str] = {
        name: prepared.fingerprints.get(name, "none") for name in config.evaluate.splits
    }
    inputs["teachers"] = fingerprint(
        _telling_sources(config, run, sources), config.logits.calibrate
    )
    inputs |= {member.name: fingerprint_student(run, member) for member in members(config)}
    if config.evaluate.speed_rounds:
        identity["export"] = config.export.model_dump(mode="json")
        identity["tokens_per_batch"] = config.logits.tokens_per_batch
        inputs["native"] = _native()
    return Stamp(
        "evaluate",
        sections_of(config, "data", "teacher", "logits", "students", "evaluate", "export"),
        identity,
        inputs,
    )


def bundle_stamp(config: Config, run: RunFolder, member: Member, metrics: dict[str, Any]) -> Stamp:
    """Return the stamp of the bundle of this student, which tells these metrics."""
    return Stamp(
        "export",
        sections_of(config, "data", "teacher", "logits", "export")
        | {"students": [member.config.model_dump(mode="json")]},
        {"export": config.export.model_dump(mode="json")},
        {
            "student": fingerprint_student(run, member),
            "tokenizer": fingerprint_files([run.student(member.name) / "tokenizer.json"]),
            "metrics": fingerprint(metrics),
            "native": _native(),
        },
    )


def _native() -> str:
    """Return whether the native runtime is there: installed later, it gives bundles a model that
    they lacked.
    """
    from bert_kd.runtime.native.engine import missing

    return "missing" if missing() else "installed"


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


def wants_views(config: Config) -> bool:
    """Whether views of train are to be made: somebody must be there to label them."""
    if config.augment.views == "auto":
        return needs_teacher(config) and not config.logits.teachers
    return config.augment.views > 0 and needs_teacher(config)


def views_identity(config: Config) -> dict[str, Any]:
    """Return what the views of train go by; nothing where none are made, as without a teacher to
    label them.
    """
    if not wants_views(config):
        return {}
    model = {"model": config.teacher.model, "revision": config.teacher.revision}
    return {"augment": config.augment.model_dump(mode="json") | model}


def with_data(config: Config) -> tuple[RunFolder, Prepared]:
    """Return the run folder and its prepared data, which must be of the present `data` section."""
    from bert_kd.data.prepare import load_prepared

    run = RunFolder(config.run)
    prepared = load_prepared(run)
    stamp = Stamp.read(run.data)
    wanted = sections_of(config, "data")["data"]
    views = views_identity(config).get("augment")
    if (
        stamp is None
        or stamp.config.get("data") != wanted
        or stamp.identity.get("augment") != views
    ):
        raise StageError(
            f"{run.data} was prepared with other settings: run prepare-data again "
            "(rows whose logits are cached keep them)"
        )
    return run, prepared

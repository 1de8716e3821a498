"""The stages of a run, one public function each; the only file that knows their order.

A stage reads what earlier stages wrote, and says in a `stage.json` beside its output what made it.
Output that is current is not made again. Output of other settings or other input is never replaced
unasked: the stage refuses, names what changed and says which `--force` makes it again (or `--keep`
goes on with it). Data and reports are quick to make and follow their settings by themselves.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bert_kd.config import Config, StudentConfig, TeacherSource
from bert_kd.errors import StageError, TeacherError
from bert_kd.lock import alone_in
from bert_kd.progress import clock, say
from bert_kd.provenance import (
    Member,
    bundle_stamp,
    cache_stamp,
    cached_folders,
    fingerprint_student,
    members,
    needs_teacher,
    report_stamp,
    sections_of,
    student_stamp,
    teacher_sources,
    teacher_stamps,
    views_identity,
    with_data,
)
from bert_kd.standing import NO_WISHES, Wishes, is_current, require, stands
from bert_kd.store import RunFolder, Stamp, read_json
from bert_kd.teacher.card import was_tried

if TYPE_CHECKING:
    from bert_kd.data.prepare import Prepared
    from bert_kd.evaluate.findings import Report
    from bert_kd.runtime.bundle import Bundle
    from bert_kd.student.lesson import Instead
    from bert_kd.teacher.fill import Filled

METRICS = "metrics.json"
MASK = "[MASK]"
"""How a masked word is written where the teacher is no BERT, which would have its own way."""
STAGES = (
    "prepare-data",
    "train-teacher",
    "cache-logits",
    "train-students",
    "evaluate",
    "export",
)
KEEPABLE = ("train-teacher", "cache-logits", "train-students")


# --- 01 ----------------------------------------------------------------------------------------


def prepare_data(config: Config, wishes: Wishes = NO_WISHES) -> Prepared:
    """Read the source, check it and write `data/`; made again when source or settings changed.

    Raises StageError where another process does so in this run.
    """
    from bert_kd.data.origin import source_fingerprint
    from bert_kd.data.prepare import load_prepared, prepare

    run = RunFolder(config.run)
    views = views_identity(config)
    inputs = {"source": source_fingerprint(config.data)}
    if views:
        from bert_kd.teacher.base import fingerprint_proposals

        inputs["proposals"] = fingerprint_proposals(config.augment, config.teacher.model)
    stamp = Stamp(
        "prepare-data",
        sections_of(config, "data", *(("augment", "teacher") if views else ())),
        {"data": config.data.model_dump(mode="json")} | views,
        inputs,
    )
    done = run.prepared.exists() and is_current(run.data, stamp)
    if done and "prepare-data" not in wishes.force:
        say(f"prepare-data: {run.data} is current")
        prepared = load_prepared(run)
        _check_losses(config, run, prepared)
        return prepared
    with alone_in(run.data, "preparing data"):
        prepared = prepare(config.data, run)
        if not views and config.augment.views not in (0, "auto"):
            say("prepare-data: no views are made, as no student has a teacher to label them")
        if views:
            prepared = _write_views(config, run, prepared, inputs["proposals"])
        stamp.write(run.data)
    _check_losses(config, run, prepared)
    return prepared


def _check_losses(config: Config, run: RunFolder, prepared: Prepared) -> None:
    """Refuse what stage 04 would refuse of a loss, before a teacher is trained and asked for it."""
    from bert_kd.student.guards import check_loss

    caches = [source.folder for source in config.logits.teachers]
    teachers = len(caches) or config.teacher.ensemble
    if not caches and not config.logits.features:
        caches = cached_folders(run)  # of this or an earlier teacher: what a remedy must name
    for student in config.students:
        check_loss(student, len(prepared.labels), config.logits, caches, teachers)


def _write_views(config: Config, run: RunFolder, prepared: Prepared, identity: str) -> Prepared:
    """Make the views of train, with words that the teacher's model or a masked one proposes."""
    from bert_kd.data.views import Proposals, write_views
    from bert_kd.teacher.proposals import mask_token, open_neighbours

    augment, model, revision = config.augment, config.teacher.model, config.teacher.revision
    if config.teacher.linear:
        masked_lm = augment.masked_lm if augment.neighbours else None
        neighbours = open_neighbours(masked_lm, None, masked_lm) if masked_lm else None
        mask: str | None = MASK if augment.mask else None
    else:
        neighbours = (
            open_neighbours(model, revision, augment.masked_lm) if augment.neighbours else None
        )
        mask = mask_token(model, revision) if augment.mask else None
    proposals = Proposals(neighbours, mask, identity)
    return write_views(run, prepared, augment, proposals)


# --- 02 ----------------------------------------------------------------------------------------


def train_teacher(config: Config, wishes: Wishes = NO_WISHES) -> dict[str, Any]:
    """Fine-tune the teacher's last layers and write `teacher/`; returns the facts of its
    `teacher.json`.

    The others of an ensemble go to `teacher-2/`, …; forced, it makes again those that were made
    otherwise, or all where all are current. Raises StageError where another process trains one in
    this run.
    """
    run, prepared = with_data(config)
    _check_losses(config, run, prepared)
    if config.teacher.linear:
        say("train-teacher: nothing to do, a linear model is fitted when it is asked")
        return {}
    stamps = teacher_stamps(config, run, prepared)
    forced = "train-teacher" in wishes.force
    if forced:
        other = [folder for folder, stamp in stamps.items() if not is_current(folder, stamp)]
        due = other or list(stamps)
    else:
        due = [folder for folder, stamp in stamps.items() if not stands(folder, stamp, wishes)]
    compared = _is_compared(config)
    if not compared:  # those that are not trained in full stand for nobody
        due += [folder for folder in stamps if folder not in due and was_tried(folder)]
    if due:
        from bert_kd.teacher.finetune import finetune
        from bert_kd.teacher.trial import finetune_if_worth_it

        make = finetune_if_worth_it if compared else finetune
        with alone_in(run.root, "training a teacher"):
            for folder, member in zip(stamps, config.teacher.members, strict=True):
                made = is_current(folder, stamps[folder]) and (compared or not was_tried(folder))
                if folder not in due or (not forced and made):
                    continue  # the second: another process has made it meanwhile
                make(member, run, prepared, folder)
                # By now it has nothing of one that was there before.
                teacher_stamps(config, run, prepared)[folder].write(folder)
        _say_if_not_wordpiece(config, run)
    return dict(read_json(run.teacher_facts))


def _is_compared(config: Config) -> bool:
    """Whether the teacher is to be compared with a linear model, and not followed where that is
    better.
    """
    return config.logits.must_beat_linear and any(s.loss.distils for s in config.students)


def _refuse_tried(teachers: Sequence[Path]) -> None:
    """Refuse answers that students would follow of a teacher that was tried alone."""
    for teacher in teachers:
        if was_tried(teacher):
            raise StageError(
                f"{teacher} can't read the texts and was not trained in full, as a linear model "
                "was better: give a model of the texts' language as teacher.model, or set "
                "teacher.epochs to train this one; then run train-teacher again"
            )


def _say_if_not_wordpiece(config: Config, run: RunFolder) -> None:
    """Say, before the teacher is asked at length, which students could not share its vocabulary."""
    path = run.teacher / "tokenizer.json"
    kind = read_json(path)["model"]["type"] if path.exists() else "another one"
    lacking = [
        student.name for student in config.students if student.vocabulary.kind == "wordpiece"
    ]
    if kind != "WordPiece" and lacking:
        say(
            f"the teacher's tokenizer is {kind}, not WordPiece: stage 04 will refuse "
            f'{", ".join(lacking)} until vocabulary.kind is "words" or "bpe"'
        )


def write_untrained_bert(
    config: Config, folder: Path, layers: int, hidden_size: int, vocabulary: int
) -> None:
    """Write a BERT of random weights whose WordPiece is trained on the prepared train texts."""
    from bert_kd.data.rows import iterate_rows
    from bert_kd.teacher.untrained import write_untrained

    run, _ = with_data(config)
    texts = (
        text
        for rows in iterate_rows(run.split("train"))
        for text in (*rows.texts, *(rows.texts_b or ()))
    )
    write_untrained(folder, texts, layers=layers, hidden_size=hidden_size, vocabulary=vocabulary)


# --- 03 ----------------------------------------------------------------------------------------


def cache_logits(
    config: Config, wishes: Wishes = NO_WISHES, part: tuple[int, int] = (1, 1)
) -> Filled:
    """Answer every row that the teacher's cache lacks, of an ensemble each teacher's; `part` (i, n)
    takes the i-th of n shares, for n writers.

    Where the teacher is not worth following (`logits.must_beat_linear`), the linear model answers
    all rows in its stead, and it but those that it is measured by.
    """
    from bert_kd.teacher.fill import SPLITS, fill_cache, together

    run, prepared = with_data(config)
    _check_losses(config, run, prepared)
    stamps = teacher_stamps(config, run, prepared)
    for folder, stamp in stamps.items():
        require(folder, stamp, wishes)
    # Of an ensemble, the first one's word vectors are what embeddings start from.
    words = any(student.embedding.start == "words" for student in config.students)

    def ask(splits: Sequence[str]) -> list[Filled]:
        return [
            fill_cache(
                run,
                prepared,
                config.logits,
                folder,
                part,
                words=words and number == 0,
                splits=splits,
            )
            for number, folder in enumerate(stamps)
        ]

    if config.teacher.linear:
        from bert_kd.teacher.linear import fill_linear

        filled = [fill_linear(run, prepared, config.logits.rows_per_shard, part)]
    else:
        splits: Sequence[str] = SPLITS
        first: list[Filled] = []
        # Several writers have a share of validation each: none could tell. Nor is this teacher's
        # doubt one of the panel that it is to join.
        alone, followed = part == (1, 1) and not config.logits.teachers, True
        if alone and config.logits.must_beat_linear:
            first = ask(("validation",))
            sources = [TeacherSource(folder=one.folder) for one in first]
            followed = _doubt(config, run, prepared, sources) is None
        if not followed:
            splits = sorted({"validation", "test", *config.evaluate.splits})
        elif part == (1, 1) or not _is_compared(config):
            _refuse_tried(list(stamps))
        filled = [one.after(before) for one, before in zip_longest(ask(splits), first)]
    stamp = cache_stamp(config, run, [one.folder.name for one in filled])
    if not is_current(run.logits, stamp):  # so that a finished run can be read-only
        stamp.write(run.logits)
    return together(filled)


# --- 04 ----------------------------------------------------------------------------------------


def train_students(config: Config, wishes: Wishes = NO_WISHES) -> dict[str, dict[str, Any]]:
    """Train every student and twin from the cache, or from gold labels where no student needs a
    teacher; returns the validation metrics by student.

    The teacher is never loaded. Forced, it makes again what was made otherwise, or all where all is
    current; killed in between, it goes on without being forced again. Several processes can train
    students of one run, each its own; raises StageError where another one trains the same.
    """
    run, prepared = with_data(config)
    sources = teacher_sources(config, run, wishes)
    stamps = {
        member: student_stamp(config, member, run, prepared, sources) for member in members(config)
    }
    if "train-students" in wishes.force:
        other = [
            run.student(member.name)
            for member, stamp in stamps.items()
            if not is_current(run.student(member.name), stamp)
        ]
        for folder in other or [run.student(member.name) for member in stamps]:
            shutil.rmtree(folder, ignore_errors=True)
    ask = Wishes(keep=wishes.keep)
    due = [
        member
        for member, stamp in stamps.items()
        if not stands(run.student(member.name), stamp, ask)
    ]
    if due:
        from bert_kd.student.lesson import prepare_lesson, teach

        instead = _doubt(config, run, prepared, sources)
        distils = any(member.config.loss.distils for member in due)
        if instead is None and distils and not config.logits.teachers:
            _refuse_tried(list(teacher_stamps(config, run, prepared)))
        for student in config.students:
            mine = [member for member in due if member.config.name == student.name]
            if not mine:
                continue
            lesson = prepare_lesson(student, config.logits, run, prepared, sources, instead)
            for member in mine:
                folder = run.student(member.name)
                with alone_in(folder, f"training {member.name}"):
                    if not is_current(folder, stamps[member]):  # by another process, meanwhile
                        teach(
                            lesson,
                            folder,
                            name=member.name,
                            seed=member.seed,
                            twin=member.twin,
                            fingerprint=stamps[member].fingerprint,
                        )
                        stamps[member].write(folder)
                    forget_checkpoint(folder)
    for member in stamps.keys() - due:
        forget_checkpoint(run.student(member.name))  # left by a kill behind its stamp
    return {member.name: read_json(run.student(member.name) / METRICS) for member in stamps}


def forget_checkpoint(folder: Path) -> None:
    """Remove the checkpoint of a student's folder, with what was set aside. To be called once its
    stamp says that it is finished: without a stamp it is trained again, from its checkpoint.
    """
    for left in (*folder.glob("checkpoint.*"), *folder.glob(".*.tmp")):
        left.unlink(missing_ok=True)


def _doubt(
    config: Config,
    run: RunFolder,
    prepared: Prepared,
    sources: Sequence[TeacherSource],
) -> Instead | None:
    """Return who is followed instead of teachers that are not worth it, with all the answers, and
    say so; None where the teachers are.

    Whoever is due: a twin that is made later reads by its student's vocabulary.
    """
    linear = config.teacher.linear and not config.logits.teachers
    if not sources or linear or not _is_compared(config):
        return None
    from bert_kd.logits.panel import open_panel
    from bert_kd.logits.reference import find_doubt
    from bert_kd.student.lesson import Instead
    from bert_kd.teacher.linear import fill_linear

    panel = open_panel(config.logits, sources, prepared.labels, run.split("validation"))
    doubt = find_doubt(panel, run.split("train"), run.split("validation"))
    if doubt is None:
        return None
    try:
        filled = fill_linear(run, prepared, config.logits.rows_per_shard)
    except TeacherError:  # it was right by chance, or where validation repeats train
        return None
    say(
        f"{doubt}: students follow the linear model instead. Give a teacher that knows such texts "
        "(teacher.model), or follow this one with logits.must_beat_linear = false"
    )
    return Instead(doubt, filled.folder)


# --- 05 ----------------------------------------------------------------------------------------


def evaluate(config: Config, wishes: Wishes = NO_WISHES) -> Report:
    """Measure teacher, students and twins and write `report/`; returns what it holds."""
    from bert_kd.evaluate.report import read_report, write_report

    run, prepared = with_data(config)
    sources = _require_students(config, run, prepared, wishes)
    stamp = report_stamp(config, run, prepared, sources)
    if "evaluate" not in wishes.force and is_current(run.report, stamp):
        say(f"evaluate: {run.report} is current")
        return read_report(run.report)
    from bert_kd.assess import assess

    report = assess(config, run, prepared, members(config), sources)
    Stamp.remove(run.report)
    write_report(report, run.report)
    stamp.write(run.report)
    return report


def _require_students(
    config: Config, run: RunFolder, prepared: Prepared, wishes: Wishes
) -> tuple[TeacherSource, ...]:
    """Return the caches that the students learned from, after checking that all are finished."""
    sources = teacher_sources(config, run, wishes)
    for member in members(config):
        stamp = student_stamp(config, member, run, prepared, sources)
        require(run.student(member.name), stamp, wishes)
    return sources


# --- 06 ----------------------------------------------------------------------------------------


def best_member(config: Config, run: RunFolder, student: StudentConfig) -> Member:
    """Return the seed of this student with the best validation metric (the first of equals)."""
    metric = student.training.metric
    sign = -1.0 if metric == "nll" else 1.0

    def value(member: Member) -> float:
        facts = read_json(run.student(member.name) / METRICS)
        return sign * float(facts[f"validation_{metric}"])

    return max((Member(student, seed, False) for seed in student.seeds), key=value)


def export(config: Config, wishes: Wishes = NO_WISHES) -> list[Bundle]:
    """Export the best seed of every student to `bundles/<name>`; returns the bundles."""
    from bert_kd.data.rows import iterate_rows
    from bert_kd.runtime.bundle import read_bundle, verify
    from bert_kd.runtime.export import export_bundle

    run, prepared = with_data(config)
    _require_students(config, run, prepared, wishes)
    bundles = []
    for student in config.students:
        member = best_member(config, run, student)
        source, target = run.student(member.name), run.bundle(student.name)
        metrics = _metrics(run, prepared, member)
        stamp = bundle_stamp(config, run, member, metrics)
        if "export" not in wishes.force and is_current(target, stamp):
            say(f"export: {target} is current")
            bundles.append(read_bundle(target))
            verify(bundles[-1])
            continue
        rows = next(iterate_rows(run.split("validation"), config.export.check_rows))
        bundle = export_bundle(
            source,
            target,
            rows.texts,
            rows.texts_b,
            config.export,
            name=student.name,
            metrics=metrics,
            training={"source": prepared.report["source"], **prepared.rows},
            check_labels=rows.labels,
        )
        stamp.write(target)
        bundles.append(bundle)
    return bundles


def _metrics(run: RunFolder, prepared: Prepared, member: Member) -> dict[str, Any]:
    """Return what the report says of this student, by split; empty where it is not of these
    weights, and without splits that hold other rows by now.
    """
    stamp = Stamp.read(run.report)
    if stamp is None or stamp.inputs.get(member.name) != fingerprint_student(run, member):
        say(f"export: the report does not cover {member.name}; run evaluate to have figures in it")
        return {}
    models = read_json(run.report / "report.json")["models"]
    found = next(model["metrics"] for model in models if model["name"] == member.name)
    named = ("accuracy", "macro_f1", "agreement")
    return {
        split: {key: metrics[key] for key in named if metrics[key] is not None}
        for split, metrics in found.items()
        if stamp.inputs.get(split) == prepared.fingerprints.get(split)
    }


# --- the line ----------------------------------------------------------------------------------

_FUNCTIONS: dict[str, Callable[[Config, Wishes], Any]] = {
    "prepare-data": prepare_data,
    "train-teacher": train_teacher,
    "cache-logits": cache_logits,
    "train-students": train_students,
    "evaluate": evaluate,
    "export": export,
}


def run_stages(
    config: Config,
    first: str = STAGES[0],
    last: str = STAGES[-1],
    wishes: Wishes = NO_WISHES,
) -> dict[str, Any]:
    """Run the stages from `first` to `last`; returns what each returned.

    With `logits.teachers` in the configuration, or where no student needs a teacher, there is none
    to train and nothing to cache: these two stages are left out.
    """
    import time

    left_out = None
    if config.logits.teachers:
        left_out = "logits.teachers names caches to learn from"
    elif not needs_teacher(config):
        left_out = "all students learn from gold labels alone"
    results = {}
    for stage in STAGES[STAGES.index(first) : STAGES.index(last) + 1]:
        if left_out and stage in ("train-teacher", "cache-logits"):
            say(f"{stage}: left out, as {left_out}")
            continue
        start = time.monotonic()
        say(f"── {stage}")
        results[stage] = _FUNCTIONS[stage](config, wishes)
        say(f"   {stage} took {clock(time.monotonic() - start)}")
    return results

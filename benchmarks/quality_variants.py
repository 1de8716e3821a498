"""The runs behind an ablation or a learning curve: one for each setting of data, views and
teachers, all sharing the teachers and cached answers that are there.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from quality_suites import STUDENT, Variant

from bert_kd.config import AugmentConfig, Config, DataConfig, StudentConfig
from bert_kd.config_file import load_config
from bert_kd.data.prepare import load_prepared
from bert_kd.data.rows import Rows, read_rows, write_rows
from bert_kd.errors import UserError
from bert_kd.provenance import teacher_sources
from bert_kd.stages import run_stages
from bert_kd.standing import NO_WISHES
from bert_kd.store import STAMP, RunFolder, fingerprint, make_folder


@dataclass(frozen=True)
class Line:
    """One run: its configuration with the students that are trained in it."""

    config: Config
    share_of_train: float | None


@dataclass(frozen=True)
class Place:
    """Where a variant's student is trained: the number of the run, and its name there."""

    line: int
    student: str


def plan(
    main: Config, path: Path, overrides: Sequence[str], variants: Sequence[Variant]
) -> tuple[list[Line], dict[str, Place]]:
    """Return the runs that the variants need, each with their students, and the place of each.

    `main` is the run of the configuration `path` with `overrides`. Variants that come to the same
    settings share a student, which is that of `main` where they come to its settings. Names of
    other students and of run folders stand for their settings, so that changed settings never meet
    what was made with others.
    """
    base = STUDENT.rpartition(".")[2]
    own = next((one for one in main.students if one.name == base), None)
    if own is None:
        raise UserError(f"{path} has no student named '{base}', which the variants change")
    students: dict[Path, list[StudentConfig]] = {}
    lines: dict[Path, Line] = {}
    places: dict[str, Place] = {}
    for variant in variants:
        found = load_config(path, [*overrides, *variant.overrides])
        config = found.model_copy(update={"run": _folder(main, found, variant.share_of_train)})
        student = next(one for one in found.students if one.name == base)
        alike = config.run == main.run and _settings(student) == _settings(own)
        name = base if alike else f"variant-{fingerprint(_settings(student))}"
        update = {"name": name, "seeds": own.seeds, "twin": False}
        student = student.model_copy(update=update)
        lines.setdefault(config.run, Line(config, variant.share_of_train))
        beside = students.setdefault(config.run, [])
        if student not in beside:
            beside.append(student)
        places[variant.name] = Place(list(lines).index(config.run), student.name)
    return [
        replace(line, config=line.config.model_copy(update={"students": tuple(students[run])}))
        for run, line in lines.items()
    ], places


def make(main: Config, lines: Sequence[Line]) -> list[Config]:
    """Run the stages of `main` up to the cache, and of each line up to its students; returns the
    lines' configurations.
    """
    run_stages(main, last="cache-logits")
    made: list[Config] = []
    for line in lines:
        config = line.config
        for earlier in (main, *made):
            if earlier.run != config.run:
                _share(RunFolder(earlier.run), RunFolder(config.run))
        if line.share_of_train is not None:
            config = _subset(main, config, line.share_of_train)
        run_stages(config, last="train-students")
        made.append(config)
    return made


def _subset(main: Config, config: Config, share: float) -> Config:
    """Return `config` on this share of the train rows of `main`, without views and pool, and write
    these rows.

    Of each class the same share is taken, by key, so that larger shares hold the smaller ones. The
    answers are read from the cache of `main`.
    """
    run = RunFolder(main.run)
    prepared = load_prepared(run)
    folder = config.run / "source"
    make_folder(folder)
    write_rows(folder / "train.parquet", [_first(read_rows(run.split("train")), share)])
    for split in ("validation", "test"):
        shutil.copyfile(run.split(split), folder / f"{split}.parquet")
    shutil.copyfile(run.labels, folder / run.labels.name)
    data = DataConfig(source=str(folder), text_b="text_b" if prepared.pair else None)
    sources = teacher_sources(main, run, NO_WISHES)
    logits = main.logits.model_copy(update={"teachers": sources})
    augment = AugmentConfig(views=0)
    return config.model_copy(update={"data": data, "augment": augment, "logits": logits})


def _first(rows: Rows, share: float) -> Rows:
    """Return the first `share` of the rows of each class by key, in the order of the split."""
    order = np.argsort(rows.keys, order=("high", "low"))
    taken = [
        of_class[: max(round(share * len(of_class)), 1)]
        for of_class in (order[rows.labels[order] == label] for label in np.unique(rows.labels))
    ]
    places = np.sort(np.concatenate(taken))
    return Rows(
        rows.keys[places],
        [rows.texts[place] for place in places],
        [rows.texts_b[place] for place in places] if rows.texts_b is not None else None,
        rows.labels[places],
        rows.views[places],
    )


def _folder(main: Config, config: Config, share: float | None) -> Path:
    """Return the run folder of a variant: that of `main` where only its student differs."""
    if share is None and line_settings(config) == line_settings(main):
        return main.run
    return main.run / "variants" / fingerprint(*line_settings(config), share)


def line_settings(config: Config) -> list[object]:
    """Return the sections that stages 01 to 03 go by."""
    sections = (config.data, config.augment, config.teacher, config.logits)
    return [section.model_dump(mode="json") for section in sections]


def _settings(student: StudentConfig) -> dict[str, object]:
    return student.model_dump(mode="json", exclude={"name", "seeds", "twin"})


def _share(source: RunFolder, target: RunFolder) -> None:
    """Let `target` use the finished teachers and the cached answers of `source`, by links."""
    for teacher in sorted(source.root.glob("teacher*")):
        if (teacher / STAMP).exists():
            link(teacher, target.root / teacher.name)
    share_answers(source, target)


def share_answers(source: RunFolder, target: RunFolder) -> None:
    """Let `target` use the cached answers of `source`, by links."""
    if source.logits.is_dir():
        for cache in sorted(path for path in source.logits.iterdir() if path.is_dir()):
            link(cache, target.logits / cache.name)


def link(source: Path, target: Path) -> None:
    """Make `target` a link to the folder `source`, unless it is there; one that leads nowhere, as
    after a move of the runs, is replaced.
    """
    make_folder(target.parent)
    if target.is_symlink() and not target.exists():
        target.unlink()
    if not target.exists():
        target.symlink_to(source.resolve(), target_is_directory=True)

"""The systems of a table: teachers, students, twins and controls, with their answers, sizes, and
the call that is timed.

Students answer, are timed and weighed in bytes as what users run: the bundle, in its engine and the
precision that was chosen on validation, as stage 06 chooses it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

import controls
import numpy as np
import numpy.typing as npt

from bert_kd.config import Config
from bert_kd.data.prepare import Prepared, load_prepared
from bert_kd.data.rows import Rows, iterate_rows, read_rows
from bert_kd.errors import MissingExtra, UserError
from bert_kd.evaluate.speed import System as Answer
from bert_kd.evaluate.speed import Texts
from bert_kd.progress import say
from bert_kd.provenance import Member, members, needs_teacher, teacher_sources
from bert_kd.standing import NO_WISHES
from bert_kd.store import RunFolder, fingerprint, read_json, write_json

if TYPE_CHECKING:
    from bert_kd.runtime.predictor import Predictor

Ints = npt.NDArray[np.int64]
Role = Literal["teacher", "student", "twin", "control"]
TEACHER = "teacher"
TWIN = " twin"


@dataclass(frozen=True)
class System:
    """One row of a table."""

    name: str
    role: Role
    predictions: Mapping[str, Ints]
    """By set: the predicted classes, [seeds, rows]."""
    parameters: int
    parameters_without_embedding: int | None
    """None: not counted."""
    bytes: int
    answer: Answer | None
    """Answers texts, from raw text to probabilities or classes. None: not timed."""
    about: str
    beside: str | None = None
    """The system that it is compared with beside the teacher: a student's twin, the variant
    before."""
    part: str | None = None
    """Of a variant, the table or curve it belongs to; `x` is its place on the curve."""
    x: float | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    """Further ones, by metric."""
    engine: str | None = None
    """What it is timed in."""


def read_sets(names: Sequence[str], config: Config, folder: Path | None) -> dict[str, Rows]:
    """Return the rows of the evaluation sets by name.

    A name that is no split is a file `NAME.tsv.gz` in the data's folder; its rows are taken out of
    test by key. Raises UserError where one of them is not there.
    """
    run = RunFolder(config.run)
    found = {}
    for name in names:
        if run.split(name).exists():
            found[name] = read_rows(run.split(name))
        elif folder is not None:
            found[name] = _rows_of_file(folder / f"{name}.tsv.gz", read_rows(run.split("test")))
        else:
            raise UserError(f"the set {name!r} is no split, and the suite has no folder for it")
    return found


def _rows_of_file(path: Path, test: Rows) -> Rows:
    """Return those rows of `test` whose text stands in the TSV file `path`."""
    from bert_kd.data.keys import row_keys
    from bert_kd.data.tables import Columns
    from bert_kd.data.text_files import read_tsv

    if not path.exists():
        raise UserError(f"{path} is missing: bring it, or give another folder with --data")
    pair = test.texts_b is not None
    raw = list(read_tsv(path, Columns("text", "text_b" if pair else None, "label"), None))
    texts = [text for part in raw for text in part.texts]
    texts_b = [text for part in raw for text in part.texts_b or ()] if pair else None
    keys = row_keys(texts, texts_b)
    lacking = int((~np.isin(keys, test.keys)).sum())
    if lacking:
        raise UserError(
            f"{lacking} of {len(keys)} rows of {path} are not among those of test: the file and "
            "test.tsv.gz are of different releases of the data"
        )
    places = np.flatnonzero(np.isin(test.keys, keys))
    return Rows(
        test.keys[places],
        [test.texts[place] for place in places],
        [test.texts_b[place] for place in places] if test.texts_b is not None else None,
        test.labels[places],
        test.views[places],
    )


# --- teacher -----------------------------------------------------------------------------------


def teacher_system(config: Config, sets: Mapping[str, Rows], name: str = TEACHER) -> System:
    """Return the teacher (of an ensemble all members together) of a run whose cache is filled."""
    if config.teacher.linear:
        return _linear_system(config, sets, name)
    import torch

    from bert_kd.teacher.answer import Answering
    from bert_kd.teacher.model import open_teacher

    run = RunFolder(config.run)
    folders = run.teachers(config.teacher.ensemble)
    asked = []
    total = embedding = 0
    for folder in folders:
        teacher = open_teacher(folder)
        torch.nn.Module.to(teacher.model, "cpu")  # where the students are, too
        for key, value in teacher.model.named_parameters():
            total += value.numel()
            embedding += value.numel() if "embeddings." in key else 0
        asked.append(Answering(teacher, "fp32", config.logits.tokens_per_batch))
    base = str(read_json(run.teacher_facts)["base"])
    return System(
        name,
        "teacher",
        teacher_predictions(config, sets),
        total,
        total - embedding,
        sum(file.stat().st_size for folder in folders for file in folder.glob("*.safetensors")),
        lambda texts: [answering(*_sides(texts)) for answering in asked],
        base if len(folders) == 1 else f"{len(folders)} × {base}",
        engine="torch fp32",
    )


def _linear_system(config: Config, sets: Mapping[str, Rows], name: str) -> System:
    """Return the linear model of n-grams as the teacher, fitted to train again to be timed."""
    from bert_kd.logits.linear import fit, read_as

    run = RunFolder(config.run)
    train = read_rows(run.split("train"))
    train = train.take(np.flatnonzero(train.labels >= 0))
    classes = len(load_prepared(run).labels)
    model = fit(read_as(train.texts, train.texts_b), train.labels, classes)
    if model is None:
        raise UserError(f"the train split of {run.data} teaches a linear model nothing")
    weights = model.classifier.coef_
    return System(
        name,
        "teacher",
        teacher_predictions(config, sets),
        weights.size,
        weights.size,
        weights.nbytes,
        lambda texts: model.logits(read_as(*_sides(texts))),
        "linear model of n-grams",
        engine="scikit-learn",
    )


def teacher_predictions(config: Config, sets: Mapping[str, Rows]) -> dict[str, Ints]:
    """Return the classes [1, rows] that a run's teachers together predict, from its filled cache,
    on every set.
    """
    from bert_kd.logits.panel import open_panel

    run = RunFolder(config.run)
    prepared = load_prepared(run)
    sources = teacher_sources(config, run, NO_WISHES)
    panel = open_panel(config.logits, sources, prepared.labels, run.split("validation"))
    predictions = {}
    for name, rows in sets.items():
        predictions[name] = panel.answers(rows.keys).logits.argmax(axis=1)[None]  # [1, rows]
    return predictions


# --- students ----------------------------------------------------------------------------------


def student_systems(
    config: Config, sets: Mapping[str, Rows], bundles: ExitStack
) -> dict[tuple[str, bool], System]:
    """Return every student, and its twin where it has one, by (name, whether it is the twin).

    The predictions are those of the bundles of all its seeds; timed and weighed is that of the
    first, in a folder that lasts as long as `bundles`.
    """
    run = RunFolder(config.run)
    seeds: dict[tuple[str, bool], list[Member]] = {}
    for member in members(config):
        seeds.setdefault((member.config.name, member.twin), []).append(member)
    found = {key: _student_system(config, run, mine, sets, bundles) for key, mine in seeds.items()}
    return {
        (name, twin): replace(system, beside=name + TWIN)
        if not twin and (name, True) in found
        else system
        for (name, twin), system in found.items()
    }


def _student_system(
    config: Config,
    run: RunFolder,
    seeds: Sequence[Member],
    sets: Mapping[str, Rows],
    bundles: ExitStack,
) -> System:
    first = seeds[0]
    checked = next(iterate_rows(run.split("validation"), config.export.check_rows))
    aside = Path(bundles.enter_context(TemporaryDirectory()))
    predictor = _exported(config, run, first, checked, aside / "bundle")
    bundle = predictor.bundle
    predicted = [_predictions(predictor, sets)]
    for member in seeds[1:]:
        with TemporaryDirectory() as folder:
            other = _exported(config, run, member, checked, Path(folder) / "bundle")
            predicted.append(_predictions(other, sets))
            del other  # unmaps the files before they go
    name, loss = first.config.name, first.config.loss
    taught = not first.twin and bool(loss.soft_weight or loss.feature_weight)
    return System(
        name + (TWIN if first.twin else ""),
        "twin" if first.twin else "student",
        {key: np.stack([one[key] for one in predicted]) for key in sets},
        bundle.parameters,
        bundle.parameters_without_embeddings,
        bundle.bytes,
        lambda texts: predictor.probabilities(*_sides(texts)),
        "learned from the teacher" if taught else "gold labels alone",
        engine=f"{predictor.engine.name} {bundle.runtimes[predictor.engine.name].precision}",
    )


def _exported(
    config: Config, run: RunFolder, member: Member, checked: Rows, folder: Path
) -> Predictor:
    """Return the bundle of a student, written to `folder`; its precision is chosen on `checked`."""
    from bert_kd.runtime.export import export_bundle
    from bert_kd.runtime.predictor import load

    export_bundle(
        run.student(member.name),
        folder,
        checked.texts,
        checked.texts_b,
        config.export,
        check_labels=checked.labels,
    )
    return load(folder, threads=config.evaluate.threads)


def _predictions(predictor: Predictor, sets: Mapping[str, Rows]) -> dict[str, Ints]:
    """Return the classes [rows] that a bundle predicts on every set."""
    return {
        name: predictor.logits(rows.texts, rows.texts_b).argmax(axis=1)
        for name, rows in sets.items()
    }


def _sides(texts: Texts) -> tuple[list[str], list[str] | None]:
    """Return first texts and second texts (None for single texts)."""
    first = [text if isinstance(text, str) else text[0] for text in texts]
    second = [text[1] for text in texts if not isinstance(text, str)]
    return first, second or None


# --- controls ----------------------------------------------------------------------------------


def control_systems(
    config: Config, sets: Mapping[str, Rows], seeds: int, notes: list[str]
) -> list[System]:
    """Return the controls, with settings chosen on validation; what was left out goes to `notes`.
    Static vectors are those of the teacher's base model: without a teacher there are none.

    The choice is kept in `controls.json` of the run folder, so that a later call only fits what was
    chosen.
    """
    from bert_kd.teacher.base import locate_model

    run = RunFolder(config.run)
    prepared = load_prepared(run)
    fits = {controls.TFIDF: controls.tfidf}
    fits[controls.FASTTEXT] = controls.fasttext
    if needs_teacher(config) and not config.teacher.linear:
        fits[controls.STATIC] = lambda: controls.static(locate_model(config.teacher.model))
    found = []
    for name, make in fits.items():
        try:
            fit = make()
        except MissingExtra as missing:
            say(f"{name} is left out: {missing}")
            notes.append(f"{name} is left out: {missing}")
            continue
        # The linear models come out the same whatever the seed.
        count = seeds if name == controls.FASTTEXT else 1
        found.append(_control_system(config, run, prepared, name, fit, count, sets))
    return found


def _control_system(
    config: Config,
    run: RunFolder,
    prepared: Prepared,
    name: str,
    fit: controls.Fit,
    seeds: int,
    sets: Mapping[str, Rows],
) -> System:
    train = read_rows(run.split("train"))
    settings = _chosen(config, run, prepared, name, fit, train)
    say(f"{name}: {seeds} × {settings}")
    fitted = [fit(train, settings, seed) for seed in range(1, seeds + 1)]
    first = fitted[0]
    return System(
        name,
        "control",
        {
            key: np.stack([control.predict(rows.texts, rows.texts_b) for control in fitted])
            for key, rows in sets.items()
        },
        first.parameters,
        first.parameters_without_embedding,
        first.bytes,
        lambda texts: first.predict(*_sides(texts)),
        ", ".join(f"{key} {value}" for key, value in settings.items()),
        engine=controls.ENGINES[name],
    )


def _chosen(
    config: Config,
    run: RunFolder,
    prepared: Prepared,
    name: str,
    fit: controls.Fit,
    train: Rows,
) -> dict[str, Any]:
    """Return the settings of a control: those found before for the same data and grid, or those
    best on validation.
    """
    path = run.root / "controls.json"
    known = read_json(path) if path.exists() else {}
    grid = controls.GRIDS[name]
    rows = {split: prepared.fingerprints[split] for split in ("train", "validation")}
    identity = fingerprint(rows, grid, config.teacher.model)
    if known.get(name, {}).get("fingerprint") != identity:
        say(f"{name}: choosing among {len(grid)} settings on validation")
        choice = controls.choose(fit, grid, train, read_rows(run.split("validation")))
        known[name] = {"fingerprint": identity, **asdict(choice)}
        write_json(path, known)
    return dict(known[name]["settings"])

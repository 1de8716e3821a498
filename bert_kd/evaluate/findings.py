"""What an evaluation found, as data, and how its models belong together.

Here: the classes of a report, and `grouped`, which puts the seeds of one student together. Not
here: how the numbers come about (`metrics.py`, `speed.py`) and how they are written and shown
(`report.py`).
"""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from bert_kd.evaluate.comparisons import Comparison, Estimate
from bert_kd.evaluate.metrics import Metrics, WrongAnswer
from bert_kd.evaluate.speed import Speed
from bert_kd.store import commit, versions

Role = Literal["teacher", "student", "twin"]


@dataclass(frozen=True)
class DataFacts:
    """The data set: rows of each split, and of those that have labels also the rows per label, in
    label order.
    """

    source: str
    labels: tuple[str, ...]
    rows: dict[str, int]
    counts: dict[str, tuple[int, ...]]
    pair: bool = False


@dataclass(frozen=True)
class EnsembleMember:
    """One teacher of several, by the name of its folder, and its accuracy alone, by split."""

    name: str
    accuracy: dict[str, float]


@dataclass(frozen=True)
class Model:
    """One measured model. `group` is the configured student's name: its seeds and its twins share
    it.

    `history` holds a dict per epoch with any of `epoch`, `loss`, `learning_rate`,
    `validation_accuracy`, `validation_macro_f1`, `validation_nll`; other keys are kept but not
    drawn. What is not known (a black-box teacher's size) is None.
    """

    name: str
    group: str
    role: Role
    seed: int | None
    metrics: dict[str, Metrics]
    parameters: int | None = None
    parameters_without_embedding: int | None = None
    bytes: int | None = None
    speed: Speed | None = None
    engine: str | None = None
    """What computed the answers whose speed it is."""
    description: str = ""
    history: tuple[dict[str, Any], ...] = ()
    ensemble: tuple[EnsembleMember, ...] = ()
    """The members where the model is the mean of several; all other facts are of them together."""


@dataclass(frozen=True)
class WorstErrors:
    """The most certain wrong answers of the model called `model` on `split`."""

    model: str
    split: str
    errors: tuple[WrongAnswer, ...]


@dataclass(frozen=True)
class Machine:
    """Where the speed was measured; `threads` are those that each system had."""

    cpu: str
    cores: int
    memory_gib: float | None
    platform: str
    python: str
    threads: int


@dataclass(frozen=True)
class Report:
    """Everything of one evaluation; `split` is the one that headline and figures speak of."""

    run: str
    split: str
    data: DataFacts
    models: tuple[Model, ...]
    machine: Machine
    comparisons: tuple[Comparison, ...] = ()
    worst: WorstErrors | None = None
    notes: tuple[str, ...] = ()
    """Sentences for people: what to keep in mind with these numbers."""
    versions: dict[str, str] = field(default_factory=versions)
    commit: str | None = field(default_factory=commit)
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


@dataclass(frozen=True)
class Group:
    """All seeds of one teacher, student or twin on the report's split; numbers are means over
    seeds.
    """

    name: str
    role: Role
    models: tuple[Model, ...]
    accuracy: Estimate
    accuracies: tuple[float, ...]
    macro_f1: float
    macro_f1_std: float | None
    agreement: float | None
    nll: float
    ece: float
    speed: Speed | None
    engine: str | None

    @property
    def label(self) -> str:
        """How tables and figures call it."""
        return f"{self.name} twin" if self.role == "twin" else self.name


def machine_facts(threads: int) -> Machine:
    """Return what is known of this machine; `threads` is how many each system was given."""
    cpu = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [line.partition(":")[2] for line in lines if line.startswith("model name")]
        cpu = names[0].strip() if names else cpu
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (OSError, ValueError):  # not Linux
        memory = None
    return Machine(
        cpu=cpu,
        cores=os.cpu_count() or 1,
        memory_gib=None if memory is None else round(memory, 1),
        platform=platform.platform(),
        python=platform.python_version(),
        threads=threads,
    )


def best_student(models: Iterable[Model], split: str) -> Model | None:
    """Return the student (no twin) that figures show: the most accurate on validation, else on
    `split`.

    Chosen on validation where that was measured, so that the numbers on test stay unselected.
    """
    students = [model for model in models if model.role == "student"]
    if not students:
        return None
    chosen_on = "validation" if all("validation" in model.metrics for model in students) else split
    return max(students, key=lambda model: model.metrics[chosen_on].accuracy)


def teacher_of(models: Iterable[Model]) -> Model | None:
    """Return the first teacher among `models`, or None."""
    return next((model for model in models if model.role == "teacher"), None)


def teacher_timed(report: Report) -> bool:
    """Whether the teacher's speed is known, so that "times faster" means than the teacher."""
    return any(model.role == "teacher" and model.speed for model in report.models)


def grouped(report: Report) -> tuple[Group, ...]:
    """Return the models by group: teachers, then each student with its twin after it, in the order
    of the report.
    """
    names = list(dict.fromkeys(model.group for model in report.models))
    places = [(name, "teacher") for name in names]
    places += [(name, role) for name in names for role in ("student", "twin")]
    groups = []
    for name, role in places:
        models = [model for model in report.models if (model.group, model.role) == (name, role)]
        if models:
            groups.append(_group(report, models))
    return tuple(groups)


def _group(report: Report, models: Sequence[Model]) -> Group:
    measured = [model.metrics[report.split] for model in models]
    f1s = [metrics.macro_f1 for metrics in measured]
    agreements = [metrics.agreement for metrics in measured if metrics.agreement is not None]
    return Group(
        name=models[0].group,
        role=models[0].role,
        models=tuple(models),
        accuracy=_accuracy(report, models),
        accuracies=tuple(metrics.accuracy for metrics in measured),
        macro_f1=statistics.fmean(f1s),
        macro_f1_std=statistics.stdev(f1s) if len(f1s) > 1 else None,
        agreement=statistics.fmean(agreements) if agreements else None,
        nll=statistics.fmean(metrics.nll for metrics in measured),
        ece=statistics.fmean(metrics.ece for metrics in measured),
        speed=next((model.speed for model in models if model.speed is not None), None),
        engine=next((model.engine for model in models if model.speed is not None), None),
    )


def _accuracy(report: Report, models: Sequence[Model]) -> Estimate:
    """Return the group's accuracy: from its comparison where there is one (it knows of rows and
    seeds).
    """
    for comparison in report.comparisons:
        if (comparison.group, comparison.split) == (models[0].group, report.split):
            found = comparison.twin if models[0].role == "twin" else comparison.student
            if found is not None and models[0].role != "teacher":
                return found
    measured = [model.metrics[report.split] for model in models]
    values = [metrics.accuracy for metrics in measured]
    return Estimate(
        value=statistics.fmean(values),
        # Without the rows at hand: the mean of the seeds' own intervals.
        low=statistics.fmean(metrics.accuracy_interval[0] for metrics in measured),
        high=statistics.fmean(metrics.accuracy_interval[1] for metrics in measured),
        std=statistics.stdev(values) if len(values) > 1 else None,
        seeds=len(values),
    )

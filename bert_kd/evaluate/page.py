"""The report as one self-contained HTML page: the sentences, tables and figures that
`templates/report.html` sets.

Here: what is said and in which order numbers become text. The page refers to nothing outside
itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import Any

from bert_kd.errors import MissingExtra
from bert_kd.evaluate import format as formats
from bert_kd.evaluate.comparisons import Comparison
from bert_kd.evaluate.findings import (
    Group,
    Model,
    Report,
    best_student,
    grouped,
    teacher_of,
    teacher_timed,
)
from bert_kd.evaluate.metrics import Metrics
from bert_kd.evaluate.plots import (
    Curve,
    Look,
    accuracy_figure,
    confusion_figure,
    looks,
    reliability_figure,
    speed_figure,
    training_figure,
)

MOST_CONFUSIONS = 10
MANY_CLASSES = 20
"""With more classes than this, tables with a line a class start folded."""


@dataclass(frozen=True)
class Legend:
    """A line of a figure's legend."""

    label: str
    look: Look


@dataclass(frozen=True)
class Confusion:
    """`rows` texts of label `gold` were answered `answer`; `share` of all that have this gold
    label.
    """

    gold: str
    answer: str
    rows: int
    share: float


def render_page(report: Report) -> str:
    """Return the page's HTML. Raises MissingExtra without Jinja2 or matplotlib."""
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError:
        raise MissingExtra("jinja2", "report") from None
    source = resources.files("bert_kd.evaluate").joinpath("templates/report.html")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals["format"] = formats
    return environment.from_string(source.read_text(encoding="utf-8")).render(_context(report))


def headline(report: Report) -> str:
    """Return the result in one sentence."""
    groups = grouped(report)
    teacher = next((group for group in groups if group.role == "teacher"), None)
    student = _best_group(report, groups)
    if student is None:
        accuracy = formats.percent(groups[0].accuracy.value)
        return f"{groups[0].label} answers {accuracy}% of the {report.split} texts correctly"
    if teacher is None or not teacher.accuracy.value:
        accuracy = formats.percent(student.accuracy.value)
        return f"{student.label} answers {accuracy}% of the {report.split} texts correctly"
    kept = student.accuracy.value / teacher.accuracy.value
    sentence = (
        f"{student.label} {'keeps' if kept <= 1 else 'reaches'} {formats.percent(kept)}% "
        "of its teacher's accuracy"
    )
    if teacher.speed is not None and student.speed is not None:
        sentence += f" at {formats.significant(student.speed.times_faster)} times the speed"
    return sentence


def summary(report: Report) -> list[str]:
    """Return the sentences below the headline: accuracies, the teacher's part, size, speed."""
    groups = grouped(report)
    student = _best_group(report, groups)
    if student is None:
        return []
    rows = student.models[0].metrics[report.split].rows
    seeds = len(student.models)
    found = [
        f"Of {rows:,} {report.split} texts it answers "
        f"{formats.percent_std(student.accuracy.value, student.accuracy.std)}% correctly"
        + (f" (mean and deviation over {seeds} seeds)" if seeds > 1 else "")
    ]
    teacher = next((group for group in groups if group.role == "teacher"), None)
    if teacher is not None:
        found[0] += f", its teacher {formats.percent(teacher.accuracy.value)}%"
    found[0] += "."
    comparison = _comparison(report, student.name)
    if comparison is not None and comparison.minus_twin is not None:
        found.append(_against_twin(comparison))
    if teacher is not None and student.speed is not None and teacher.speed is not None:
        found.append(
            f"One text takes {formats.latency(student.speed.p50)} instead of "
            f"{formats.latency(teacher.speed.p50)}, tokenizing included"
            + _size_sentence(teacher.models[0], student.models[0])
        )
    elif teacher is None and student.speed is not None:
        size = student.models[0].bytes
        files = f"; its files take {formats.size(size)}." if size else "."
        found.append(
            f"One text takes {formats.latency(student.speed.p50)}, tokenizing included{files}"
        )
    return found


def _against_twin(comparison: Comparison) -> str:
    gain = comparison.minus_twin
    assert gain is not None
    more = "more" if gain.value >= 0 else "less"
    sentence = (
        f"That is {formats.percent(abs(gain.value))} points {more} than the same student "
        f"trained on the gold labels alone (95% interval {_points_interval(gain.low, gain.high)})"
    )
    if comparison.gap_closed is not None and comparison.gap_closed > 0:
        sentence += f"; it closes {100 * comparison.gap_closed:.0f}% of the gap to the teacher"
    return sentence + "."


def _size_sentence(teacher: Model, student: Model) -> str:
    if not teacher.bytes or not student.bytes:
        return "."
    return f"; its files take {formats.size(student.bytes)}, not {formats.size(teacher.bytes)}."


def _points_interval(low: float, high: float) -> str:
    return f"{formats.points(low)} to {formats.points(high)}"


def _comparison(report: Report, group: str) -> Comparison | None:
    """Return the group's comparison on the report's split."""
    for comparison in report.comparisons:
        if (comparison.group, comparison.split) == (group, report.split):
            return comparison
    return None


def _best_group(report: Report, groups: tuple[Group, ...]) -> Group | None:
    best = best_student(report.models, report.split)
    if best is None:
        return None
    return next(g for g in groups if (g.name, g.role) == (best.group, "student"))


def confusions(metrics: Metrics, most: int) -> list[Confusion]:
    """Return the wrong pairs of gold label and answer that occur most often."""
    names = [entry.label for entry in metrics.classes]
    found = [
        Confusion(names[gold], names[answer], rows, rows / sum(line))
        for gold, line in enumerate(metrics.confusion)
        for answer, rows in enumerate(line)
        if rows and gold != answer
    ]
    return sorted(found, key=lambda entry: -entry.rows)[:most]


def _context(report: Report) -> dict[str, Any]:
    """Return everything that the template shows."""
    groups = grouped(report)
    style = looks(groups)
    shown = best_student(report.models, report.split) or report.models[0]
    teacher = teacher_of(report.models)
    if teacher is shown:
        teacher = None
    metrics = shown.metrics[report.split]
    return {
        "report": report,
        "headline": headline(report),
        "summary": summary(report),
        "groups": groups,
        "look": lambda item: style[getattr(item, "group", None) or item.name, item.role],
        "rows": report.models[0].metrics[report.split].rows,
        "teacher_timed": teacher_timed(report),
        "timed": [group for group in groups if group.speed is not None],
        "with_agreement": any(group.agreement is not None for group in groups),
        "with_size": any(model.bytes or model.parameters for model in report.models),
        "with_twin": any(group.role == "twin" for group in groups),
        "comparisons": [
            entry
            for entry in report.comparisons
            if entry.split == report.split and (entry.minus_twin or entry.minus_teacher)
        ],
        "points_interval": _points_interval,
        "shown": shown,
        "teacher": teacher,
        "metrics": metrics,
        "class_rows": list(
            zip(
                metrics.classes,
                teacher.metrics[report.split].classes if teacher else metrics.classes,
                strict=True,
            )
        ),
        "folded": len(report.data.labels) > MANY_CLASSES,
        "confusions": confusions(metrics, MOST_CONFUSIONS),
        **_figures(report, groups, style, shown, teacher),
    }


def _figures(
    report: Report,
    groups: tuple[Group, ...],
    style: dict[tuple[str, str], Look],
    shown: Model,
    teacher: Model | None,
) -> dict[str, Any]:
    """Return the figures' SVG; one that would be empty is an empty text. And the legends' lines."""
    from markupsafe import Markup  # comes with Jinja2

    metrics, split = shown.metrics[report.split], report.split
    timed = [group for group in groups if group.speed is not None]
    curves = [
        Curve(
            style[model.group, model.role],
            loss=_line(model, "loss"),
            accuracy=_line(model, "validation_accuracy"),
        )
        for model in report.models
    ]
    trained = [model for model, curve in zip(report.models, curves, strict=True) if curve.drawn]
    reliable = {shown.name: (metrics, style[shown.group, shown.role])}
    if teacher is not None:
        look = style[teacher.group, teacher.role]
        reliable = {teacher.name: (teacher.metrics[split], look)} | reliable
    figures = {
        "accuracy_svg": accuracy_figure(
            groups, "accuracy", f"Accuracy on {split} with 95% intervals"
        ),
        "speed_svg": speed_figure(groups, "speed", f"Accuracy on {split} against latency")
        if len(timed) > 1
        else "",
        "training_svg": training_figure(
            [curve for curve in curves if curve.drawn], "training", "Training curves"
        )
        if trained
        else "",
        "confusion_svg": confusion_figure(
            metrics, report.data.labels, "confusion", f"Confusion matrix of {shown.name} on {split}"
        ),
        "reliability_svg": reliability_figure(
            list(reliable.values()),
            "reliability",
            f"Reliability diagram of {' and '.join(reliable)} on {split}",
        ),
    }
    in_training = {(model.group, model.role) for model in trained}
    return {name: Markup(svg) for name, svg in figures.items()} | {
        "training_legend": [
            Legend(group.label, style[group.name, group.role])
            for group in groups
            if (group.name, group.role) in in_training
        ],
        "reliability_legend": [Legend(name, look) for name, (_, look) in reliable.items()],
    }


def _line(model: Model, key: str) -> list[tuple[float, float]]:
    """Return (epoch, value) where the history has both."""
    return [
        (float(row["epoch"]), float(row[key]))
        for row in model.history
        if row.get("epoch") is not None and row.get(key) is not None
    ]

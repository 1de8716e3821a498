"""The figures of the report; every function returns one `<svg>` element.

Solid and filled is a model trained by the teacher, dashed and hollow is its twin; each student has
one colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bert_kd.evaluate.findings import Group
from bert_kd.evaluate.format import percent
from bert_kd.evaluate.metrics import Metrics
from bert_kd.evaluate.svg import (
    COLOURS,
    FONT,
    INK,
    MUTED,
    PAPER,
    SERIES,
    SMALL,
    TEACHER,
    axes_in,
    drawing,
    shorten,
    text_width,
    to_svg,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

WIDTH = 360.0
"""Points; about the width of a telephone, where a figure is shown in its own size."""
WIDE = 760.0
NUMBERED_CLASSES = 15
"""Up to this many classes the confusion matrix has numbers in its cells."""
CURVE_POINTS = 300


@dataclass(frozen=True)
class Look:
    """How a group is drawn: `css` names its colour for the page, `hollow` says it is a twin."""

    colour: str
    hollow: bool

    @property
    def css(self) -> str:
        return COLOURS[self.colour]


@dataclass(frozen=True)
class Curve:
    """One model's training, as lists of (epoch, value)."""

    look: Look
    loss: list[tuple[float, float]]
    accuracy: list[tuple[float, float]]

    @property
    def drawn(self) -> bool:
        return bool(self.loss or self.accuracy)


def looks(groups: Sequence[Group]) -> dict[tuple[str, str], Look]:
    """Return the look of each group by (name, role)."""
    students = list(dict.fromkeys(group.name for group in groups if group.role != "teacher"))
    found: dict[tuple[str, str], Look] = {}
    for group in groups:
        colour = TEACHER
        if group.role != "teacher":
            colour = SERIES[students.index(group.name) % len(SERIES)]
        found[group.name, group.role] = Look(colour, hollow=group.role == "twin")
    return found


def speed_figure(groups: Sequence[Group], name: str, title: str) -> str:
    """Accuracy in percent against median latency of one text (logarithmic), with 95 % intervals."""
    style = looks(groups)
    shown = [group for group in groups if group.speed is not None]
    with drawing(WIDTH, 280) as figure:
        axes = axes_in(figure, left=34, right=10, bottom=38, top=20)
        axes.set_xscale("log")
        lows = [100 * group.accuracy.low for group in shown]
        highs = [100 * group.accuracy.high for group in shown]
        room = max(max(highs) - min(lows), 1.0) * 0.12
        axes.set_ylim(min(lows) - room, min(max(highs) + room, 101))
        times = [group.speed.p50 for group in shown if group.speed]
        axes.set_xlim(min(times) / 2, max(times) * 2)
        _log_ticks(axes, max(times) / min(times))
        axes.set_xlabel("time for one text (median), logarithmic")
        axes.set_title("accuracy, %", loc="left", fontsize=SMALL, color=MUTED)
        points = []
        for group in shown:
            assert group.speed is not None
            look = style[group.name, group.role]
            # A twin is as fast as its student: a few points aside, so that their
            # intervals stand apart.
            aside = _aside(figure, axes, 5.0 if look.hollow else 0.0)
            x, y = group.speed.p50, 100 * group.accuracy.value
            low, high = 100 * group.accuracy.low, 100 * group.accuracy.high
            axes.plot([x, x], [low, high], color=look.colour, linewidth=1.2, transform=aside)
            _dot(axes, x, y, look, 7, transform=aside)
            points.append((x, y, group.label, look))
        _place_labels(axes, points)
        return to_svg(figure, name, title)


def accuracy_figure(groups: Sequence[Group], name: str, title: str) -> str:
    """Mean accuracy of each group with its 95 % interval, and every seed as a small stroke."""
    style = looks(groups)
    labels = [shorten(group.label, 26) for group in groups]
    left = max(text_width(label, FONT) for label in labels) + 12
    with drawing(WIDTH, 44 + 30 * len(groups)) as figure:
        axes = axes_in(figure, left=left, right=42, bottom=34, top=4)
        axes.set_ylim(len(groups) - 0.5, -0.5)
        axes.set_yticks(range(len(groups)), labels, fontsize=FONT, color=INK)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="y", visible=False)
        for place, group in enumerate(groups):
            look = style[group.name, group.role]
            found = group.accuracy
            ends = [100 * found.low, 100 * found.high]
            axes.plot(ends, [place, place], color=look.colour, linewidth=1.4)
            if len(group.models) > 1:
                seeds = [100 * value for value in group.accuracies]
                axes.plot(
                    seeds,
                    [place + 0.27] * len(seeds),
                    linestyle="none",
                    marker="|",
                    markersize=5,
                    color=look.colour,
                )
            _dot(axes, 100 * found.value, place, look, 7)
            axes.annotate(
                percent(found.value),
                (1, place),
                xycoords=("axes fraction", "data"),
                xytext=(8, 0),
                textcoords="offset points",
                va="center",
                color=INK,
            )
        axes.margins(x=0.06)
        axes.set_xlabel("accuracy, %")
        return to_svg(figure, name, title)


def training_figure(curves: Sequence[Curve], name: str, title: str) -> str:
    """Validation accuracy and training loss by epoch, a line a model."""
    panels = [
        ("validation accuracy, %", [[(x, 100 * y) for x, y in c.accuracy] for c in curves]),
        ("training loss", [curve.loss for curve in curves]),
    ]
    panels = [(heading, lines) for heading, lines in panels if any(lines)]
    with drawing(WIDTH, 34 + 145 * len(panels)) as figure:
        height = 145 * len(panels)
        for place, (heading, lines) in enumerate(panels):
            last = place == len(panels) - 1
            bottom = 34 + height - 145 * (place + 1)
            axes = axes_in(figure, left=36, right=10, bottom=bottom, top=145 * place + 24)
            for curve, line in zip(curves, lines, strict=True):
                points = thinned(line, CURVE_POINTS)
                axes.plot(
                    [x for x, _ in points],
                    [y for _, y in points],
                    color=curve.look.colour,
                    linewidth=1.4,
                    linestyle=(0, (4, 2)) if curve.look.hollow else "-",
                    marker="o" if len(points) == 1 else None,
                    markersize=4,
                )
            axes.set_title(heading, loc="left", fontsize=SMALL, color=MUTED)
            _few_ticks(axes.xaxis, 8, whole=True)
            if last:
                axes.set_xlabel("epoch")
        return to_svg(figure, name, title)


def confusion_figure(metrics: Metrics, labels: Sequence[str], name: str, title: str) -> str:
    """Gold label by answer, shaded by the share of the gold label's rows; rows in the cells while
    few classes.
    """
    classes = len(labels)
    few = classes <= NUMBERED_CLASSES
    width = WIDTH if few else WIDE
    names = [shorten(label, 20) for label in labels]
    longest = max(text_width(label, 1.0) for label in names)
    font = SMALL if few else max(min(SMALL, 0.86 * (width - 60) / classes), 5.5)
    left, right, top = longest * font + 26, 6.0, 6.0
    bottom = longest * font + 26  # the answers' names stand upright below
    cell = min((width - left - right) / classes, 40.0)
    left = width - right - cell * classes if cell < 40 else max(left, (width - cell * classes) / 2)
    height = top + cell * classes + bottom
    with drawing(width, height) as figure:
        axes = axes_in(figure, left, width - left - cell * classes, bottom, top)
        axes.grid(visible=False)
        axes.set_xlim(0, classes)
        axes.set_ylim(classes, 0)
        centres = [place + 0.5 for place in range(classes)]
        axes.set_xticks(centres, names, rotation=90, fontsize=font, color=INK)
        axes.set_yticks(centres, names, fontsize=font, color=INK)
        for side in axes.spines.values():
            side.set_visible(True)
        _cells(axes, metrics, numbers=few)
        axes.set_xlabel("answer", fontsize=SMALL, color=MUTED)
        axes.set_ylabel("gold label", fontsize=SMALL, color=MUTED)
        return to_svg(figure, name, title)


def _cells(axes: Axes, metrics: Metrics, numbers: bool) -> None:
    """Draw the cells that hold rows."""
    from matplotlib.patches import Rectangle

    for gold, line in enumerate(metrics.confusion):
        for answer, rows in enumerate(line):
            if not rows:
                continue
            share = rows / sum(line)
            right = gold == answer
            axes.add_patch(
                Rectangle(
                    (answer, gold),
                    1,
                    1,
                    facecolor=SERIES[0] if right else TEACHER,
                    alpha=0.12 + 0.8 * share,
                    linewidth=0,
                )
            )
            if numbers:
                axes.text(
                    answer + 0.5,
                    gold + 0.5,
                    f"{rows:,}",
                    ha="center",
                    va="center",
                    fontsize=SMALL if rows < 1000 else 7,
                    color=PAPER if share > 0.55 else INK,
                )


def reliability_figure(models: Sequence[tuple[Metrics, Look]], name: str, title: str) -> str:
    """Share of right answers by the probability given to them; below, how many answers there are of
    each.
    """
    with drawing(WIDTH, 330) as figure:
        upper = axes_in(figure, left=34, right=10, bottom=110, top=22)
        lower = axes_in(figure, left=34, right=10, bottom=36, top=244)
        for axes in (upper, lower):
            axes.set_xlim(0, 1)
            axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1])
        upper.set_xticklabels([])
        upper.set_ylim(0, 1.02)
        upper.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
        upper.set_title("share of right answers", loc="left", fontsize=SMALL, color=MUTED)
        lower.set_title("share of all answers", loc="left", fontsize=SMALL, color=MUTED)
        lower.set_xlabel("probability of the answer")
        for metrics, look in models:
            bins = [entry for entry in metrics.reliability if entry.rows]
            across = [entry.confidence or 0.0 for entry in bins]
            upper.plot(
                across, [entry.accuracy or 0.0 for entry in bins], color=look.colour, linewidth=1.4
            )
            for entry, x in zip(bins, across, strict=True):
                large = 3 + 7 * (entry.rows / metrics.rows) ** 0.5
                _dot(upper, x, entry.accuracy or 0.0, look, large)
            edges = [entry.low for entry in metrics.reliability] + [1.0]
            shares = [entry.rows / metrics.rows for entry in metrics.reliability]
            lower.stairs(shares, edges, color=look.colour, linewidth=1.4)
        lower.set_ylim(bottom=0)
        _few_ticks(lower.yaxis, 2)
        return to_svg(figure, name, title)


def thinned(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """Return at most `most` of the points, evenly spread, the first and the last among them."""
    if len(points) <= most:
        return list(points)
    return [points[round(place * (len(points) - 1) / (most - 1))] for place in range(most)]


def _few_ticks(axis: Axis, most: int, whole: bool = False) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=most, integer=whole))


def _log_ticks(axes: Axes, span: float) -> None:
    """Mark whole decades, and between them where there are few, as durations."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0,) if span > 30 else (1.0, 2.0, 5.0)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _round_latency(value)))


def _round_latency(microseconds: float) -> str:
    """Return a tick's duration without needless zeros: `100 µs`, `1 ms`."""
    if microseconds >= 1e6:
        return f"{microseconds / 1e6:g} s"
    return f"{microseconds / 1e3:g} ms" if microseconds >= 1e3 else f"{microseconds:g} µs"


def _aside(figure: Figure, axes: Axes, points: float) -> Any:
    from matplotlib.transforms import ScaledTranslation

    return axes.transData + ScaledTranslation(points / 72, 0, figure.dpi_scale_trans)


def _dot(axes: Axes, x: float, y: float, look: Look, large: float, **more: Any) -> None:
    axes.plot(
        [x],
        [y],
        marker="o",
        markersize=large,
        markerfacecolor=PAPER if look.hollow else look.colour,
        markeredgecolor=look.colour,
        markeredgewidth=1.4,
        linestyle="none",
        clip_on=False,
        **more,
    )


def _place_labels(axes: Axes, points: Sequence[tuple[float, float, str, Look]]) -> None:
    """Write each point's name beside it, on the side with more room, moved up where two would
    touch.
    """
    low, high = axes.get_xlim()
    taken: dict[bool, list[float]] = {True: [], False: []}
    pixels = axes.figure.dpi / 72
    for x, y, label, look in sorted(points, key=lambda point: point[1]):
        to_the_left = (x / low) > (high / low) ** 0.55
        _, height = axes.transData.transform((x, y))
        up = 0.0
        for other in taken[to_the_left]:
            up = max(up, (other - height) / pixels + 13)
        taken[to_the_left].append(height + up * pixels)
        axes.annotate(
            shorten(label, 24),
            (x, y),
            xytext=(-10 if to_the_left else 14, up),
            textcoords="offset points",
            ha="right" if to_the_left else "left",
            va="center",
            color=look.colour,
        )

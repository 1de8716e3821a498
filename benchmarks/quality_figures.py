"""The figures of `docs/results.md`, as SVG, from the JSON of the accuracy benchmark's tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from figures import as_svg, new_figure, style
from quality_rows import Json, Row, rows_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

AXES = {"data": "share of train", "epochs": "epochs", "size": "units a direction"}
COLOURS = {"teacher": "#1f6f5c", "student": "#c2410c", "twin": "#8a5a44", "control": "#57606a"}


def draw(found: Json) -> str:
    """Return the figure of a table as SVG. Raises MissingExtra without matplotlib."""
    shown = next(iter(found["config"]["sets"]))
    rows = rows_of(found)
    with new_figure(8, 4.5) as figure:
        if found["config"]["table"] == "main":
            _draw_speed(figure, rows, shown)
        elif found["config"]["table"] == "ablation":
            _draw_dots(figure, rows, shown, "the teacher")
        elif found["config"]["table"] == "teachers":
            _draw_dots(figure, rows, shown, rows[0].name)
        else:
            _draw_curves(figure, rows, shown)
        return as_svg(figure)


def _draw_speed(figure: Figure, rows: Sequence[Row], shown: str) -> None:
    """Draw accuracy against texts per second, with intervals."""
    from matplotlib.transforms import Bbox

    axes = _axes(figure, 1, 1)[0]
    names, ends = {}, []
    for row in rows:
        rate = row.values.get("texts_per_second")
        if rate is None:
            continue
        _dot(axes, row, shown, rate, vertical=True)
        names[row.name] = rate, 100 * _number(row, f"{shown}.accuracy")
        ends += [(rate, 100 * _number(row, f"{shown}.accuracy_{end}")) for end in ("low", "high")]
    axes.set_xscale("log")
    axes.margins(x=0.15)
    axes.set_xlabel("texts per second in bulk, one thread (logarithmic)")
    axes.set_ylabel(f"accuracy on {shown}, %")
    figure.draw_without_rendering()  # from here on it is known where things lie
    low_high = axes.transData.transform(ends).reshape(-1, 2, 2)  # [bars, low and high, x and y]
    _write_beside(axes, names, [Bbox(bar + [[-1, 0], [1, 0]]) for bar in low_high])


def _write_beside(
    axes: Axes, names: Mapping[str, tuple[float, float]], bars: Sequence[Bbox]
) -> None:
    """Write each name beside its dot, where it touches no bar and none of the names before it if
    there is such a place.
    """
    taken = list(bars)
    for name, dot in names.items():
        for across, up in ((6, 4), (6, -11), (-6, 4), (-6, -11), (6, 15), (6, -22)):
            text = axes.annotate(
                name,
                dot,
                (across, up),
                textcoords="offset points",
                fontsize=8,
                ha="left" if across > 0 else "right",
            )
            box = text.get_window_extent()
            if not any(box.overlaps(other) for other in taken):
                break
            text.remove()
        else:
            text = axes.annotate(name, dot, (6, 4), textcoords="offset points", fontsize=8)
            box = text.get_window_extent()
        taken.append(box)


def _draw_dots(figure: Figure, rows: Sequence[Row], shown: str, dashed: str) -> None:
    """Draw a line of dots with intervals a part; the first teacher is a vertical line, explained as
    `dashed`.
    """
    names = list(dict.fromkeys(row.part for row in rows if row.part))
    counts = [sum(row.part == name for row in rows) for name in names]
    figure.set_size_inches(8, 0.28 * sum(counts) + 0.7 * len(names) + 0.5)
    found = _axes(figure, len(names), 1, heights=counts)
    for axes, name in zip(found, names, strict=True):
        mine = [row for row in rows if row.part == name]
        for place, row in enumerate(mine):
            _dot(axes, row, shown, -place, vertical=False)
        axes.set_yticks([-place for place in range(len(mine))], [row.name for row in mine])
        axes.margins(y=0.15)
        axes.set_title(name, fontsize=9, loc="left")
        _teacher_line(rows, shown, axes.axvline)
    limits = [axes.get_xlim() for axes in found]
    for axes in found:
        axes.set_xlim(min(low for low, _ in limits), max(high for _, high in limits))
    found[-1].set_xlabel(f"accuracy on {shown}, % (dashed: {dashed})")


def _draw_curves(figure: Figure, rows: Sequence[Row], shown: str) -> None:
    """Draw a panel a learning curve; the teacher is a horizontal line."""
    names = list(dict.fromkeys(row.part for row in rows if row.part))
    found = _axes(figure, 1, len(names))
    figure.set_size_inches(3 * len(names), 3.2)
    for axes, name in zip(found, names, strict=True):
        mine = [row for row in rows if row.part == name and row.x is not None]
        values = [100 * _number(row, f"{shown}.accuracy") for row in mine]
        axes.plot([row.x or 0.0 for row in mine], values, color=COLOURS["student"], linewidth=1)
        for row in mine:
            _dot(axes, row, shown, row.x or 0.0, vertical=True)
        axes.set_xscale("log")
        ticks = [row.x or 0.0 for row in mine]
        axes.set_xticks(ticks, [f"{x:.0%}" if name == "data" else f"{x:g}" for x in ticks])
        axes.minorticks_off()
        axes.set_xlabel(AXES.get(name, name))
        _teacher_line(rows, shown, axes.axhline)
    dashed = " (dashed: the teacher)" if any(row.role == "teacher" for row in rows) else ""
    found[0].set_ylabel(f"accuracy on {shown}, %{dashed}")
    limits = [axes.get_ylim() for axes in found]
    for axes in found:
        axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))


def _axes(
    figure: Figure, down: int, across: int, heights: Sequence[int] | None = None
) -> list[Axes]:
    """Return axes without a frame, with light rules."""
    grid = figure.subplots(down, across, squeeze=False, height_ratios=heights)
    found: list[Axes] = list(grid.flat)
    for axes in found:
        style(axes)
        axes.xaxis.label.set_fontsize(9)
        axes.yaxis.label.set_fontsize(9)
    return found


def _dot(axes: Axes, row: Row, shown: str, place: float, *, vertical: bool) -> None:
    """Draw a dot with the interval of its accuracy."""
    value, low, high = (
        100 * _number(row, f"{shown}.accuracy{end}") for end in ("", "_low", "_high")
    )
    bars: dict[str, Any] = {"yerr" if vertical else "xerr": [[value - low], [high - value]]}
    x, y = (place, value) if vertical else (value, place)
    axes.errorbar(x, y, **bars, fmt="o", markersize=4, capsize=2, color=COLOURS[row.role])


def _teacher_line(rows: Sequence[Row], shown: str, draw_line: Callable[..., Any]) -> None:
    teacher = next((row for row in rows if row.role == "teacher"), None)
    if teacher is not None:
        value = 100 * _number(teacher, f"{shown}.accuracy")
        draw_line(value, color=COLOURS["teacher"], linestyle="--", linewidth=1)


def _number(row: Row, metric: str) -> float:
    value = row.values[metric]
    assert value is not None  # every accuracy is a number with bounds
    return value

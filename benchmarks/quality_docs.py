"""`docs/results.md` and its figures, from the JSON of the accuracy benchmark's tables.

No number is typed by hand: what stands there is what `benchmarks/results/quality-*.json` hold, each
table with the command, seeds, machine and commit that made it.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bert_kd.errors import MissingExtra, UserError
from bert_kd.evaluate.format import (
    NOTHING,
    count,
    latency,
    parameters,
    percent,
    points,
    significant,
    size,
    times,
)
from bert_kd.store import make_folder, read_json, write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

Json = Mapping[str, Any]
ORDER = {"main": 0, "ablation": 1, "curve": 2, "teachers": 3}
TITLES = {
    "parts": "What each part brings to the row that its difference is to",
    "losses": "Squared error against KL divergence",
    "weight of CE": "Weight of the gold labels",
    "data": "Rows of train",
    "epochs": "Epochs",
    "size": "Units a direction",
}
AXES = {"data": "share of train", "epochs": "epochs", "size": "units a direction"}
COLOURS = {"teacher": "#1f6f5c", "student": "#c2410c", "twin": "#8a5a44", "control": "#57606a"}
INTRODUCTION = """# Results

Written by `python benchmarks/quality.py --write-docs` from the tables in `benchmarks/results/`; no
number is typed by hand.

Accuracies are means over seeds. Intervals hold 95% of a bootstrap that draws test rows, the same
ones for all systems of a table, and seeds. A *twin* is its student trained on the gold labels
alone, so the share of the gap is (student − twin) / (teacher − twin). Parameters stand with those
of the embedding and without. A size is that of the files a user needs: of the teacher its weights,
of a student its bundle, of a control its weights and vocabulary. Speed is measured from raw text
to answer, one by one and in bulk, all systems of a table in interleaved rounds; in brackets it is
how many times as fast as the teacher, all members of an ensemble together. A student is timed in
the form that its bundle chose on validation.

The tables of teachers compare a suite's teacher with variants of it, without students; differences
are to the first row. What training a part of the layers saves in time, [speed.md](speed.md) has,
measured in turns.
"""


def file_name(suite: str, table: str) -> str:
    """Return what the JSON of a table is called in `benchmarks/results`."""
    return f"quality-{suite}.json" if table == "main" else f"quality-{suite}-{table}.json"


@dataclass(frozen=True)
class Row:
    """One system of a table with its figures by metric."""

    name: str
    role: str
    about: str
    beside: str | None
    part: str | None
    x: float | None
    values: Mapping[str, float | None]
    engine: str | None = None
    """What it was timed in."""


def rows_of(found: Json) -> list[Row]:
    """Return the systems of a benchmark's JSON, in its order."""
    values: dict[str, dict[str, float | None]] = {}
    for row in found["rows"]:
        values.setdefault(row["system"], {})[row["metric"]] = row["value"]
    return [Row(**system, values=values[system["name"]]) for system in found["config"]["systems"]]


# --- tables ------------------------------------------------------------------------------------


def tables(found: Json) -> list[str]:
    """Return the lines of a table's Markdown: a table a set, of an ablation one a part; of teachers
    one for all sets.
    """
    rows, sets = rows_of(found), found["config"]["sets"]
    if found["config"]["table"] == "teachers":
        head = ", ".join(f"{name} ({tested:,} rows)" for name, tested in sets.items())
        return _table(f"Teachers: {head}", rows, _teacher_columns(list(sets)))
    lines: list[str] = []
    for name, tested in sets.items():
        head = f"{name} ({tested:,} rows)"
        if found["config"]["table"] == "main":
            lines += _table(head, rows, _main_columns(name))
            continue
        for part in dict.fromkeys(row.part for row in rows if row.part):
            shown = [row for row in rows if row.part == part or row.role == "teacher"]
            lines += _table(f"{TITLES.get(part, part)}: {head}", shown, _variant_columns(name))
    return lines


def _table(
    title: str, rows: Sequence[Row], columns: Mapping[str, Callable[[Row], str]]
) -> list[str]:
    """Return a titled Markdown table; a column that is empty throughout is left out."""
    cells = {head: [cell(row) for row in rows] for head, cell in columns.items()}
    kept = [head for head, found in cells.items() if set(found) != {NOTHING}]
    lines = [f"**{title}**", "", "| " + " | ".join(kept) + " |", "| --- " * len(kept) + "|"]
    lines += [
        "| " + " | ".join(cells[head][index] for head in kept) + " |" for index in range(len(rows))
    ]
    return [*lines, ""]


def _main_columns(name: str) -> dict[str, Callable[[Row], str]]:
    return {
        "system": _named,
        **_accuracy_columns(name),
        "− teacher": lambda row: _with_interval(row, f"{name}.minus_teacher", points),
        "− twin": lambda row: _with_interval(row, f"{name}.minus_beside", points),
        "gap closed %": lambda row: _with_interval(row, f"{name}.gap_closed", _whole),
        **_size_columns(),
    }


def _variant_columns(name: str) -> dict[str, Callable[[Row], str]]:
    return {
        "student": lambda row: row.name,
        **_accuracy_columns(name),
        "difference": lambda row: _with_interval(row, f"{name}.minus_beside", points),
        "to": lambda row: row.beside or NOTHING,
        "− teacher": lambda row: _with_interval(row, f"{name}.minus_teacher", points),
        **_size_columns(),
    }


def _teacher_columns(names: Sequence[str]) -> dict[str, Callable[[Row], str]]:
    columns: dict[str, Callable[[Row], str]] = {"teacher": lambda row: row.name}
    for name in names:
        columns |= _compared_columns(name)
    return columns | {
        "seeds": lambda row: str(_integer(row, "seeds")),
        "trained parameters": lambda row: parameters(_integer(row, "trainable_parameters")),
    }


def _compared_columns(name: str) -> dict[str, Callable[[Row], str]]:
    return {
        f"{name} %": lambda row: _with_interval(row, f"{name}.accuracy", percent),
        f"{name}: difference": lambda row: _with_interval(row, f"{name}.minus_beside", points),
    }


def _accuracy_columns(name: str) -> dict[str, Callable[[Row], str]]:
    return {
        "accuracy %": lambda row: _with_interval(row, f"{name}.accuracy", percent),
        "macro-F1 %": lambda row: percent(row.values.get(f"{name}.macro_f1")),
        "seeds": lambda row: str(_integer(row, "seeds")),
    }


def _size_columns() -> dict[str, Callable[[Row], str]]:
    return {
        "parameters (without embedding)": lambda row: (
            f"{parameters(_integer(row, 'parameters'))} "
            f"({parameters(_integer(row, 'parameters_without_embedding'))})"
        ),
        "bytes": lambda row: size(_integer(row, "bytes")),
        "texts/s": lambda row: _speed(row, "texts_per_second", "times_faster_bulk", count),
        "one text": lambda row: _speed(row, "latency_p50_us", "times_faster_single", latency),
        "timed in": lambda row: row.engine or NOTHING,
    }


def _named(row: Row) -> str:
    if row.role == "student":
        return f"**{row.name}**"
    return f"{row.name} ({row.about})" if row.role == "teacher" else row.name


def _with_interval(row: Row, metric: str, show: Callable[[float | None], str]) -> str:
    """Return a value with its interval in brackets: `92.5 [90.3, 94.7]`."""
    low, high = row.values.get(f"{metric}_low"), row.values.get(f"{metric}_high")
    shown = show(row.values.get(metric))
    return shown if low is None else f"{shown} [{show(low)}, {show(high)}]"


def _whole(share: float | None) -> str:
    return percent(share, digits=0).replace("-", "−")


def _integer(row: Row, metric: str) -> int | None:
    value = row.values.get(metric)
    return None if value is None else int(value)


def _speed(row: Row, metric: str, ratio: str, show: Callable[[float | None], str]) -> str:
    if row.values.get(metric) is None:
        return NOTHING
    found = show(row.values[metric])
    faster = row.values.get(ratio)
    return found if faster is None else f"{found} ({times(faster)})"


# --- the document ------------------------------------------------------------------------------


def write_docs(results: Path, page: Path) -> None:
    """Write the page and its figures (in the folder `results` beside it) from all tables in
    `results`.

    Raises UserError where there are none.
    """
    files = sorted(results.glob("quality-*.json"))
    if not files:
        raise UserError(
            f"{results} holds no quality-*.json: make tables with "
            "'python benchmarks/quality.py --suite NAME --json FILE' first"
        )
    found = [read_json(file) for file in files]
    found.sort(key=lambda one: (one["config"]["suite"], ORDER[one["config"]["table"]]))
    lines = [INTRODUCTION]
    suite = None
    for one in found:
        if one["config"]["suite"] != suite:
            suite = one["config"]["suite"]
            lines += [f"## {suite}", ""]
        lines += _section(one, page.parent / "results")
    make_folder(page.parent)
    write_text(page, "\n".join(lines).rstrip() + "\n")


def _section(found: Json, figures: Path) -> list[str]:
    """Return the Markdown of one table, and write its figure."""
    config = found["config"]
    lines = [] if config["table"] == "main" else [f"### {config['suite']}: {config['table']}", ""]
    lines += tables(found)
    figure = figures / f"{config['suite']}-{config['table']}.svg"
    make_folder(figures)
    write_text(figure, draw(found))
    lines += [f"![{_caption(found)}]({figures.name}/{figure.name})", ""]
    lines += [*(f"{note}\n" for note in config["notes"])]
    return [*lines, _provenance(found), ""]


def _caption(found: Json) -> str:
    shown = next(iter(found["config"]["sets"]))
    suite = found["config"]["suite"]
    if found["config"]["table"] == "main":
        return f"Accuracy on {suite} {shown} against texts per second"
    return f"Accuracy on {suite} {shown} of each variant, with its interval"


def _provenance(found: Json) -> str:
    """Return what made a table: command, seeds, machine, versions, commit."""
    config, machine = found["config"], found["machine"]
    seeds = config["seeds"]
    shown = f"seeds {seeds[0]}–{seeds[-1]}" if len(seeds) > 1 else f"seed {seeds[0]}"
    versions = config["versions"]
    names = ("torch", "transformers", "onnxruntime")
    software = [f"{name} {versions[name]}" for name in names if name in versions]
    memory = machine["memory_gib"]
    on = [
        f"{machine['cpu']}, {machine['cores']} cores",
        *([f"{significant(memory)} GiB"] if memory else []),
        f"{machine['threads']} thread" + ("s" if machine["threads"] > 1 else ""),
        f"Python {machine['python']}",
        *software,
    ]
    commit = (config["commit"] or "unknown")[:10]
    return (
        f"`{config['command']}`; {shown}; {', '.join(on)}; commit {commit}, "
        f"{config['made'].partition('T')[0]}."
    )


# --- figures -----------------------------------------------------------------------------------


def draw(found: Json) -> str:
    """Return the figure of a table as SVG, the same bytes for the same table. Raises MissingExtra
    without matplotlib.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("matplotlib", "report") from None
    shown = next(iter(found["config"]["sets"]))
    rows = rows_of(found)
    with matplotlib.rc_context({"svg.hashsalt": "bert_kd", "svg.fonttype": "none"}):
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        if found["config"]["table"] == "main":
            _draw_speed(figure, rows, shown)
        elif found["config"]["table"] == "ablation":
            _draw_dots(figure, rows, shown, "the teacher")
        elif found["config"]["table"] == "teachers":
            _draw_dots(figure, rows, shown, rows[0].name)
        else:
            _draw_curves(figure, rows, shown)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None}, facecolor="white")
    # matplotlib leaves blanks at the ends of lines.
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


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
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e3e6ea", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=8)
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

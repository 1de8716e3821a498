"""`docs/results.md`, with its figures, from the JSON of the accuracy benchmark's tables.

No number is typed by hand: what stands there is what `benchmarks/results/quality-*.json` hold, each
table with the command, seeds, machine and commit that made it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from quality_figures import draw
from quality_rows import Json, Row, rows_of
from quality_suites import SUITES

from bert_kd.errors import UserError
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

ORDER = {"main": 0, "ablation": 1, "curve": 2, "teachers": 3}
TITLES = {
    "parts": "What each part brings to the row that its difference is to",
    "losses": "Squared error against KL divergence",
    "weight of CE": "Weight of the gold labels",
    "other terms": "Soft terms beyond the basic ones, and a teacher calibrated first",
    "data": "Rows of train",
    "epochs": "Epochs",
    "size": "Units a direction",
}
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
    suite = SUITES.get(config["suite"])
    if config["table"] == "curve" and suite is not None and suite.limits:
        lines += [f"{suite.limits}\n"]
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

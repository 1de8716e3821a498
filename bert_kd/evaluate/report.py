"""The report of an evaluation: `report.json` for programs, one page for people, a table for the
terminal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from rich import box
from rich.table import Table
from rich.text import Text

from bert_kd.errors import MissingExtra, UserError
from bert_kd.evaluate.findings import Group, Model, Report, grouped, teacher_timed
from bert_kd.evaluate.format import count, interval, latency, percent, percent_std, size, times
from bert_kd.evaluate.page import render_page
from bert_kd.progress import say
from bert_kd.store import read_json, write_json, write_text

JSON_NAME, PAGE_NAME = "report.json", "index.html"


def rows(report: Report) -> list[dict[str, Any]]:
    """Return one flat row per model on the report's split, for programs (`evaluate --json`)."""
    return [_row(model, report.split) for model in report.models]


def _row(model: Model, split: str) -> dict[str, Any]:
    metrics, speed = model.metrics[split], model.speed
    return {
        "name": model.name,
        "group": model.group,
        "role": model.role,
        "seed": model.seed,
        "split": split,
        "rows": metrics.rows,
        "accuracy": metrics.accuracy,
        "accuracy_interval": metrics.accuracy_interval,
        "macro_f1": metrics.macro_f1,
        "macro_f1_interval": metrics.macro_f1_interval,
        "agreement": metrics.agreement,
        "agreement_interval": metrics.agreement_interval,
        "nll": metrics.nll,
        "ece": metrics.ece,
        "parameters": model.parameters,
        "parameters_without_embedding": model.parameters_without_embedding,
        "bytes": model.bytes,
        "engine": model.engine,
        "latency_p50_us": speed.p50 if speed else None,
        "latency_p95_us": speed.p95 if speed else None,
        "latency_p99_us": speed.p99 if speed else None,
        "texts_per_second": speed.texts_per_second if speed else None,
        "times_faster": speed.times_faster if speed else None,
        "times_throughput": speed.times_throughput if speed else None,
    }


def write_report(report: Report, folder: Path) -> Path | None:
    """Write `report.json` and `index.html` into `folder` and return the page's path.

    Without the extra `report` only the JSON is written, the missing package is named, and None is
    returned.
    """
    _check(report)
    write_json(folder / JSON_NAME, {"rows": rows(report), **asdict(report)})
    try:
        page = render_page(report)
    except MissingExtra as missing:
        say(f"{folder / JSON_NAME} is written; {PAGE_NAME} is not: {missing}")
        return None
    write_text(folder / PAGE_NAME, page)
    return folder / PAGE_NAME


def read_report(folder: Path) -> Report:
    """Read the report that `write_report` left in `folder`. Raises UserError where none is."""
    values = read_json(folder / JSON_NAME)
    try:
        values.pop("rows")
        return TypeAdapter(Report).validate_python(values)
    except (AttributeError, KeyError, ValidationError):
        raise UserError(
            f"{folder / JSON_NAME} is not a report of this version: run the stage evaluate again"
        ) from None


def _check(report: Report) -> None:
    """Refuse a report that contradicts itself; this is a bug of the caller."""
    names = [model.name for model in report.models]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"a report needs models with different names, not {names}")
    lacking = [model.name for model in report.models if report.split not in model.metrics]
    if lacking:
        raise ValueError(f"not measured on {report.split}: {', '.join(lacking)}")


def results_table(report: Report) -> Table:
    """Return the results on the report's split for the terminal, one line per teacher, student and
    twin; every number is whole at 80 columns.
    """
    columns: list[tuple[str, Callable[[Group], str]]] = [
        ("accuracy\n%", lambda group: percent_std(group.accuracy.value, group.accuracy.std)),
        ("95%\ninterval", lambda group: interval(group.accuracy.low, group.accuracy.high)),
        ("macro-\nF1", lambda group: percent(group.macro_f1)),
        ("size", lambda group: size(group.models[0].bytes)),
        ("p50\nlatency", lambda group: latency(group.speed.p50 if group.speed else None)),
        ("texts/s", lambda group: count(group.speed.texts_per_second if group.speed else None)),
    ]
    if teacher_timed(report):
        columns.append(
            (
                "times\nfaster",
                lambda group: times(group.speed.times_faster if group.speed else None),
            )
        )
    groups = grouped(report)
    tested = report.models[0].metrics[report.split].rows
    captions = []
    if any(group.role == "twin" for group in groups):
        captions.append("A twin is the same student trained on the gold labels alone.")
    if members := len(report.models[0].ensemble):
        captions.append(f"The teacher is the mean of {members}; size and speed are of them all.")
    table = Table(
        title=f"{tested:,} {report.split} texts",
        title_justify="left",
        caption="\n".join(captions) or None,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("model", overflow="fold", min_width=9)
    for title, _ in columns:
        table.add_column(title, justify="right", no_wrap=True)
    for group in groups:
        # A `Text`, because rich would read brackets in a name as markup.
        style = "bold" if group.role == "student" else ""
        table.add_row(Text(group.label), *(cell(group) for _, cell in columns), style=style)
    return table

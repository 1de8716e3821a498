"""Records what a finished run measured: figures for programs, and the README's table rows.

    python benchmarks/record_run.py --run runs/sst2 --json benchmarks/results/sst2.json

Reads `report/` of the run and writes accuracy, macro-F1, latency and throughput of teacher, student
and twin, each beside its ratio to the teacher; no text of the data set is copied. Prints the rows
of a Markdown table.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bert_kd.evaluate.findings import Group, Report, grouped
from bert_kd.evaluate.format import interval, parameters, percent, size, times
from bert_kd.evaluate.report import read_report
from bert_kd.store import Stamp, write_json


def values_of(group: Group) -> dict[str, float]:
    """Return the figures of a teacher, a student or a twin, by metric."""
    found = {
        "accuracy": group.accuracy.value,
        "accuracy_low": group.accuracy.low,
        "accuracy_high": group.accuracy.high,
        "macro_f1": group.macro_f1,
        "seeds": float(len(group.models)),
    }
    model = group.models[0]
    if model.parameters and model.bytes and model.parameters_without_embedding:
        found["parameters"] = model.parameters
        found["parameters_without_embedding"] = model.parameters_without_embedding
        found["bytes"] = model.bytes
    if group.speed is not None:
        found["latency_p50_us"] = group.speed.p50
        found["latency_p99_us"] = group.speed.p99
        found["texts_per_second"] = group.speed.texts_per_second
    return found


def rows_of(report: Report) -> list[dict[str, Any]]:
    """Return a row per system and metric; the ratio is to the teacher, within the run."""
    groups = grouped(report)
    teacher = next((values_of(group) for group in groups if group.role == "teacher"), {})
    return [
        {
            "system": group.label,
            "metric": metric,
            "value": value,
            "ratio": value / teacher[metric] if teacher.get(metric) else None,
            "ratio_to": "teacher",
        }
        for group in groups
        for metric, value in values_of(group).items()
    ]


def table_rows(report: Report) -> list[str]:
    """Return a Markdown row per group: data, model, accuracy, interval, size, times as fast."""
    lines = []
    for group in grouped(report):
        model, speed = group.models[0], group.speed
        cells = [
            f"{report.run} ({report.models[0].metrics[report.split].rows:,} {report.split})",
            group.label,
            percent(group.accuracy.value),
            interval(group.accuracy.low, group.accuracy.high),
            percent(group.macro_f1),
            parameters(model.parameters),
            size(model.bytes),
            times(speed.times_faster if speed else None),
            times(speed.times_throughput if speed else None),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    """Print the table rows of a run and write its figures where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    report = read_report(options.run / "report")
    sys.stdout.write("\n".join(table_rows(report)) + "\n")
    if options.json:
        stamp = Stamp.read(options.run / "report")
        config = dict(stamp.config) if stamp else {}
        # Where run and data lay says nothing to others.
        config.pop("run", None)
        config["data"] = {k: v for k, v in config.get("data", {}).items() if k != "source"}
        config["teacher"] = config.get("teacher", {}) | {"model": report.models[0].description}
        write_json(
            options.json,
            {
                "machine": asdict(report.machine),
                "config": config
                | {"rows": report.data.rows, "split": report.split}
                | {"versions": report.versions, "commit": report.commit, "made": report.created},
                "rows": rows_of(report),
            },
        )


if __name__ == "__main__":
    main()

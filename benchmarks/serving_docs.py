"""`docs/serving.md`, from the JSON of the benchmarks of the server and of bulk prediction.

    python benchmarks/serving_docs.py

No number is typed by hand but the goals: what stands there is what `serving*.json` and `bulk*.json`
in `benchmarks/results` hold, each section with the command, machine and commit that made it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from speed_docs import Json, provenance, table
from speed_runs import REPOSITORY, Row, systems_of, user_errors, value_of

from bert_kd.errors import UserError
from bert_kd.evaluate.format import NOTHING, count, latency, percent, significant, size, times
from bert_kd.store import make_folder, read_json, write_text

INTRODUCTION = """# Serving

Written by `python benchmarks/serving_docs.py` from the tables in `benchmarks/results/`; no measured
number is typed by hand. Systems that are compared took turns in the same run, over loopback, the
load in a process of its own on the same cores. Values are medians over its rounds.
"""
SERVER = "bert-kd serve"
ORDINARY = "ONNX Runtime"
"""What the names of the ordinary ways with the same student hold."""
GOAL_CONNECTIONS = 64
GOAL_TIMES, GOAL_P99_MS, GOAL_BULK, GOAL_FILE = 12.0, 20.0, 50_000.0, 0.8


def serving(found: Json) -> Iterator[str]:
    """Yield the lines of the section on the server."""
    rows, config = found["rows"], found["config"]
    workers = f"{config['workers']} worker{'' if config['workers'] == 1 else 's'}"
    yield "## One text a request"
    yield ""
    yield (
        f"A student of H = {config['hidden']} with {config['classes']} classes; {workers}; "
        f"{config['texts']} texts of {config['set']}, {config['characters']:.0f} characters on "
        "average. The last column is the server's rate beside this system's; CPU is that of the "
        "whole server for a request."
    )
    yield ""
    for connections in config["connections"]:
        start = f"connections{connections}"
        yield f"### {connections} connection{'' if connections == 1 else 's'}"
        yield ""
        names = systems_of(rows, f"{start}.p50_ms")
        lines = [[name, *_single_cells(rows, start, name)] for name in names]
        yield from table(["", "requests/s", "p50", "p99", "CPU", "bert-kd serve"], lines)
    yield "## Lists of texts, memory, answers"
    yield ""
    yield (
        f"Lists of {config['bulk_texts']:,} texts over {config['bulk_connections']} connections. "
        "Every answer under load was compared with the bundle's own to that text alone."
    )
    yield ""
    yield from table(["", ""], list(_facts(rows, config)))
    yield from _goals(rows)


def _single_cells(rows: Sequence[Row], start: str, name: str) -> list[str]:
    def milliseconds(metric: str) -> str:
        value = value_of(rows, name, f"{start}.{metric}")
        return latency(None if value is None else 1000 * value)

    return [
        count(value_of(rows, name, f"{start}.requests_per_second")),
        milliseconds("p50_ms"),
        milliseconds("p99_ms"),
        latency(value_of(rows, name, f"{start}.cpu_us")),
        times(None if name == SERVER else _times(rows, start, name)),
    ]


def _times(rows: Sequence[Row], start: str, peer: str) -> float | None:
    """Return how many times as many requests a second the server answers as `peer`."""
    for row in rows:
        key = (row["system"], row["metric"], row["ratio_to"])
        if key == (SERVER, f"{start}.requests_per_second", peer):
            found: float | None = row["ratio"]
            return found
    return None


def _facts(rows: Sequence[Row], config: Json) -> Iterator[list[str]]:
    yield ["texts a second", count(value_of(rows, SERVER, "bulk.texts_per_second"))]
    yield ["CPU for a text", latency(value_of(rows, SERVER, "bulk.cpu_us"))]
    first, last, largest = (
        value_of(rows, SERVER, f"memory.{when}_bytes") for when in ("first", "last", "largest")
    )
    if first is not None and last is not None and largest is not None:
        minutes = significant(config["memory_minutes"])
        yield ["memory after 10 s of load", size(int(first))]
        yield [f"after {minutes} minutes", size(int(last))]
        yield ["at most", size(int(largest))]
    yield ["answers compared", count(value_of(rows, SERVER, "answers_compared"))]
    yield ["of them wrong", count(value_of(rows, SERVER, "answers_wrong"))]


def _goals(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the table of goals; of several ordinary ways the fastest counts."""
    start = f"connections{GOAL_CONNECTIONS}"
    peers = [name for name in systems_of(rows, f"{start}.p50_ms") if ORDINARY in name]
    ratios = [ratio for name in peers if (ratio := _times(rows, start, name)) is not None]
    ratio = min(ratios, default=None)
    p99 = value_of(rows, SERVER, f"{start}.p99_ms")
    bulk = value_of(rows, SERVER, "bulk.texts_per_second")
    lines = [
        [
            f"requests/s beside the ordinary way, {GOAL_CONNECTIONS} connections",
            times(ratio),
            f"≥ {times(GOAL_TIMES)}",
            _reached(ratio is not None and ratio >= GOAL_TIMES, ratio),
        ],
        [
            f"p99, {GOAL_CONNECTIONS} connections",
            latency(None if p99 is None else 1000 * p99),
            f"≤ {latency(1000 * GOAL_P99_MS)}",
            _reached(p99 is not None and p99 <= GOAL_P99_MS, p99),
        ],
        [
            "texts/s in lists",
            count(bulk),
            f"≥ {count(GOAL_BULK)}",
            _reached(bulk is not None and bulk >= GOAL_BULK, bulk),
        ],
    ]
    yield from table(["", "measured", "goal", ""], lines)


def _reached(reached: bool, value: float | None) -> str:
    return NOTHING if value is None else "yes" if reached else "no"


def bulk(found: Json) -> Iterator[str]:
    """Yield the lines of the section on files."""
    rows, config = found["rows"], found["config"]
    file = next(name for name in systems_of(rows, "peak_bytes"))
    yield "## Files"
    yield ""
    yield (
        f"`bert-kd predict`: {config['file_rows']:,} rows of Parquet with texts of "
        f"{config['characters']:.0f} characters on average, a student of H = {config['hidden']}, "
        f"threads: {config['model_threads']}. In memory: the same texts through the same predictor "
        f"alone. Goal: {percent(GOAL_FILE, 0)}% of that rate."
    )
    yield ""
    lines = [
        [
            name,
            count(value_of(rows, name, "texts_per_second")),
            times(value_of(rows, name, "texts_per_second", "ratio")),
        ]
        for name in systems_of(rows, "texts_per_second")
    ]
    yield from table(["", "texts/s", ""], lines)
    if value_of(rows, file, "long.rows") is None:
        return
    yield "A long file, killed once with SIGKILL and begun again by the same command:"
    yield ""
    facts: list[tuple[str, str, Callable[[float | None], str]]] = [
        ("rows", "long.rows", count),
        ("of them answered before the kill", "long.resumed_rows", count),
        ("seconds of the second run", "long.seconds_after_kill", significant),
        ("most memory before the kill", "long.early_bytes", _bytes),
        ("memory in the middle of the second run", "long.middle_bytes", _bytes),
        ("most memory", "long.peak_bytes", _bytes),
        ("rows missing, out of place or wrong", "long.wrong_rows", count),
    ]
    cells = [[what, show(value_of(rows, file, metric))] for what, metric, show in facts]
    yield from table(["", ""], cells)


def _bytes(value: float | None) -> str:
    return size(None if value is None else int(value))


SECTIONS: Mapping[str, Callable[[Json], Iterator[str]]] = {"serving": serving, "bulk": bulk}


def write_docs(results: Path, page: Path) -> None:
    """Write the page from what lies in `results`. Raises UserError where there is nothing."""
    lines = [INTRODUCTION]
    for kind, section in SECTIONS.items():
        for file in sorted(results.glob(f"{kind}*.json")):
            found = read_json(file)
            if found["config"].get("benchmark") == kind:
                lines += [*section(found), provenance(found), ""]
    if len(lines) == 1:
        raise UserError(
            f"{results} holds neither serving.json nor bulk.json: make them with "
            "benchmarks/serving.py and bulk.py first"
        )
    make_folder(page.parent)
    write_text(page, "\n".join(lines).rstrip() + "\n")


def main() -> None:
    """Write the page."""
    with user_errors():
        write_docs(REPOSITORY / "benchmarks" / "results", REPOSITORY / "docs" / "serving.md")
        sys.stdout.write("docs/serving.md is written\n")


if __name__ == "__main__":
    main()

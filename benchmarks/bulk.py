"""How fast `bert-kd predict` labels a Parquet file, beside the same texts in memory.

    python benchmarks/bulk.py --bundle runs/demo/bundles/base --long-rows 10000000 \
        --json benchmarks/results/bulk.json

In interleaved rounds: texts in memory through the predictor, and a Parquet file of `--rows` rows
through the command, its start-up not counted, both in processes of their own with the same threads.
Then a file of `--long-rows` rows is begun, ended by SIGKILL when `--kill-at` of it is answered, and
the same command given again: its memory is watched, and its output compared row by row with what it
was made of. Takes about (rounds + 1) × 2 × rows / rate and 1.2 × long rows / rate seconds, at
100,000 rows a second: 5 minutes as it stands.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from speed_runs import (
    REPOSITORY,
    Row,
    data_set,
    fact_row,
    facts,
    interleaved,
    lines,
    options_parser,
    rate_rows,
    read_split,
    result,
    rounds_made,
    run_alone,
    user_errors,
)

from bert_kd.errors import UserError
from bert_kd.progress import say
from bert_kd.runtime.bundle import read_bundle
from bert_kd.runtime.kept_answers import place
from bert_kd.runtime.predictor import load
from bert_kd.store import write_json

MEMORY, FILE = "in memory", "bert-kd predict, Parquet"
MEMORY_TEXTS = 131_072
"""Texts that the predictor is given in memory, several times over."""
GROUP_ROWS = 100_000
LOOK_SECONDS = 0.1
"""Between two looks at the command's memory."""
TOLERANCE = 1e-4
"""Between a score in a file and alone: texts computed together are added up in another order."""


# --- the texts -----------------------------------------------------------------------------------


def text_of(texts: Sequence[str], row: int) -> str:
    """Return the text of a row: those of the set, over and over, each time with a number."""
    lap, at = divmod(row, len(texts))
    return f"{texts[at]} {lap}"


def write_rows(path: Path, texts: Sequence[str], rows: int) -> None:
    """Write a Parquet file of numbered rows with a text and a column that is only carried."""
    kinds = pa.schema([("id", pa.int64()), ("text", pa.string()), ("source", pa.string())])
    with pq.ParquetWriter(path, kinds, compression="zstd") as file:
        for start in range(0, rows, GROUP_ROWS):
            numbers = range(start, min(start + GROUP_ROWS, rows))
            columns = {
                "id": list(numbers),
                "text": [text_of(texts, row) for row in numbers],
                "source": [f"lap {row // len(texts)}" for row in numbers],
            }
            file.write_table(pa.table(columns, schema=kinds))


def rate_in_memory(bundle: Path, threads: int | None, texts: list[str], laps: int) -> float:
    """Return texts a second of the predictor, texts being in memory."""
    predictor = load(bundle, threads=threads)
    predictor.probabilities(texts[:8192])
    started = time.perf_counter()
    for _ in range(laps):
        predictor.probabilities(texts)
    return laps * len(texts) / (time.perf_counter() - started)


# --- the command ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Told:
    """What came of a run of the command."""

    found: dict[str, Any] | None
    """What it printed; None where it was killed."""
    memory: list[int]
    """Its resident bytes over its time."""


def predict(
    options: argparse.Namespace, source: Path, output: Path, kill_bytes: int | None = None
) -> Told:
    """Run the command; with `kill_bytes`, until so many bytes of answers are kept."""
    command = [
        sys.executable,
        "-m",
        "bert_kd",
        "predict",
        "--bundle",
        str(options.bundle.resolve()),
    ]
    command += [str(source), "--output", str(output), "--json"]
    command += ["--threads", str(options.threads)] if options.threads else []
    memory = []
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            memory.append(_resident(process.pid))
            kept = place(output)
            if kill_bytes is not None and kept.exists() and kept.stat().st_size > kill_bytes:
                process.send_signal(signal.SIGKILL)
                process.wait()
                return Told(None, memory)
            time.sleep(LOOK_SECONDS)
        assert process.stdout is not None
        printed = process.stdout.read()
    if process.returncode:
        raise UserError(f"the command failed with status {process.returncode}")
    return Told(json.loads(printed), memory)


def _resident(process: int) -> int:
    try:
        found = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    except OSError:  # it has just ended
        return 0
    return next((1024 * int(line.split()[1]) for line in found if line.startswith("VmRSS")), 0)


def count_wrong(options: argparse.Namespace, output: Path, texts: Sequence[str], rows: int) -> int:
    """Return how many rows are missing, out of place, or of another score than alone, which is
    asked of every thousandth.
    """
    predictor = load(options.bundle, threads=1)
    wrong, row = 0, 0
    with pq.ParquetFile(output, buffer_size=1 << 20) as file:
        for batch in file.iter_batches(65_536, columns=["id", "text", "score"]):
            numbers, found, scores = (column.to_pylist() for column in batch.columns)
            for number, text, score in zip(numbers, found, scores, strict=True):
                right = number == row and text == text_of(texts, row)
                if right and row % 1000 == 0:
                    alone = float(predictor.probabilities([text]).max())
                    right = abs(alone - score) <= TOLERANCE
                wrong += not right
                row += 1
    return wrong + abs(rows - row)


# --- what is measured ----------------------------------------------------------------------------


def measure_rates(
    options: argparse.Namespace, folder: Path, texts: Sequence[str]
) -> tuple[list[Row], int]:
    """Return texts a second in memory and of the command, and its peak memory; and the rounds."""
    source = folder / "in.parquet"
    say(f"writing {options.rows:,} rows")
    write_rows(source, texts, options.rows)
    given = json.dumps([text_of(texts, row) for row in range(MEMORY_TEXTS)])
    laps = max(options.rows // MEMORY_TEXTS, 1)
    peaks: list[int] = []

    def in_memory() -> float:
        threads = str(options.threads or 0)
        place = str(options.bundle.resolve())
        return float(run_alone(__file__, "memory", place, threads, str(laps), given=given))

    def in_file() -> float:
        output = folder / "out.parquet"
        output.unlink(missing_ok=True)
        told = predict(options, source, output)
        assert told.found is not None
        peaks.append(max(told.memory))
        return float(told.found["rows_per_second"])

    turns: dict[str, Callable[[], float]] = {MEMORY: in_memory, FILE: in_file}
    found = interleaved(turns, options.rounds, minutes=options.minutes, what="bulk")
    rows = rate_rows(found, "texts_per_second", MEMORY)
    rows.append(fact_row(FILE, "peak_bytes", statistics.median(peaks[1:] or peaks)))
    return rows, rounds_made(found)


def measure_long(options: argparse.Namespace, folder: Path, texts: Sequence[str]) -> Iterator[Row]:
    """Yield what a long file took that was killed once, and what was wrong with its output.

    Raises UserError where the command was done before it could be killed.
    """
    rows, source, output = options.long_rows, folder / "long.parquet", folder / "long-out.parquet"
    say(f"writing {rows:,} rows")
    write_rows(source, texts, rows)
    classes = len(read_bundle(options.bundle).labels)
    killed = predict(options, source, output, int(4 * classes * rows * options.kill_at))
    if killed.found is not None:
        raise UserError(
            f"the command was done with {rows:,} rows before it could be killed: give more "
            "--long-rows, or a smaller --kill-at"
        )
    told = predict(options, source, output)
    assert told.found is not None
    yield fact_row(FILE, "long.rows", told.found["rows"])
    yield fact_row(FILE, "long.resumed_rows", told.found["resumed"])
    again = told.found["seconds"]
    yield fact_row(FILE, "long.seconds_after_kill", again)
    quarter = len(told.memory) // 4
    yield fact_row(FILE, "long.early_bytes", max(killed.memory))
    yield fact_row(FILE, "long.middle_bytes", statistics.median(told.memory[quarter : 3 * quarter]))
    yield fact_row(FILE, "long.peak_bytes", max(told.memory))
    say("comparing")
    yield fact_row(FILE, "long.wrong_rows", count_wrong(options, output, texts, rows))


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = options_parser(__doc__)
    parser.add_argument("--bundle", type=Path, default=Path("runs/demo/bundles/base"))
    parser.add_argument("--threads", type=int, help="of the model; none given: all")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the file of the rounds")
    parser.add_argument("--long-rows", type=int, default=0, help="of the long file; 0: none")
    parser.add_argument("--kill-at", type=float, default=0.4, help="share of the long file")
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the benchmark's JSON after each part, with all rows so far."""
    if not (options.bundle / "bundle.json").is_file():
        raise UserError(f"{options.bundle} is no bundle: make demo makes one, or give --bundle")
    bundle = read_bundle(options.bundle)
    name, source = data_set(options.data, options.set or "helpdesk", "helpdesk")
    texts = read_split(source, "train").texts
    made = facts(
        options,
        options.threads or 0,
        benchmark="bulk",
        set=name,
        hidden=bundle.shape["hidden"],
        file_rows=options.rows,
        long_rows=options.long_rows,
        characters=statistics.mean(map(len, texts)),
        model_threads=options.threads or "all",
    )
    with tempfile.TemporaryDirectory() as aside:
        rows, rounds = measure_rates(options, Path(aside), texts)
        yield result(made, rows, rounds)
        if options.long_rows:
            rows += measure_long(options, Path(aside), texts)
            yield result(made, rows, rounds)


def main() -> None:
    """Measure, print a line a value, and write the JSON where asked to."""
    with user_errors():
        options = parse()
        found: dict[str, Any] = {"rows": []}
        for found in measure(options):
            if options.json:
                write_json(options.json, found)
        sys.stdout.writelines(f"{line}\n" for line in lines(found["rows"]))


if __name__ == "__main__":
    if sys.argv[1:2] == ["memory"]:
        _, _, given, threads, laps = sys.argv
        rate = rate_in_memory(Path(given), int(threads) or None, json.load(sys.stdin), int(laps))
        sys.stdout.write(json.dumps(rate))
    else:
        main()

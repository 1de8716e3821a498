"""How many requests a second the server answers, and how soon, beside the ordinary ways to serve.

    python benchmarks/serving.py --bundle runs/demo/bundles/base \
        --json benchmarks/results/serving.json

Starts everything itself: `bert-kd serve`, FastAPI with ONNX Runtime on the same student, FastAPI
with transformers' pipeline on a MiniLM, and the load, in a process of its own on loopback. In
interleaved rounds each is asked one text a request over 1, 16, 64 and 256 connections; the server
alone also gets lists of texts, and then load over 64 connections while its memory is watched. Every
answer of the server is compared with the bundle's own to that text alone.

Takes about (connections × (rounds + 1) × systems × seconds) and the memory's minutes: 9 minutes
as it stands. Server and load share the machine's cores.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import serving_load
import serving_peers
from serving_load import Load, Told
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
    run_alone,
    user_errors,
)

from bert_kd.errors import UserError
from bert_kd.progress import say
from bert_kd.runtime.bundle import read_bundle
from bert_kd.runtime.predictor import Predictor, load
from bert_kd.store import write_json

SERVER = "bert-kd serve"
POOL = "FastAPI, ONNX Runtime, same student"
LOOP = f"{POOL}, on the event loop"
PIPELINE = "FastAPI, transformers' pipeline, MiniLM-L6"
SYSTEMS = (SERVER, POOL, LOOP, PIPELINE)
TOLERANCE = 1e-4
"""Between the score of a text under load and alone: texts computed together are added up in
another order.
"""
START_SECONDS = 120.0
MEMORY_CONNECTIONS = 64
MEMORY_WINDOW = 10.0
"""Seconds of load between two looks at the server's memory."""
MIB = 2**20


@dataclass(frozen=True)
class Server:
    """A server in a process of its own."""

    process: subprocess.Popen[str]
    port: int

    def resident_bytes(self) -> int:
        """Return what it and its children hold in memory."""
        return sum(_resident(process) for process in _family(self.process.pid))

    def cpu_seconds(self) -> float:
        """Return the CPU time that it and its children have used."""
        return sum(_cpu(process) for process in _family(self.process.pid))


def _family(process: int) -> Iterator[int]:
    yield process
    children = Path(f"/proc/{process}/task/{process}/children").read_text(encoding="utf-8")
    for child in children.split():
        yield from _family(int(child))


def _resident(process: int) -> int:
    found = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in found if line.startswith("VmRSS"))


def _cpu(process: int) -> float:
    # Behind the name, which may hold anything: user and system time are the fields 14 and 15.
    fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def served(*command: str) -> Iterator[Server]:
    """Run a server that tells its address on standard error. Raises UserError where it does not."""
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, *command],
            stdout=subprocess.DEVNULL,
            stderr=errors,
            text=True,
            cwd=REPOSITORY,
        )
        try:
            yield Server(process, _port(process, errors))
        finally:
            process.terminate()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _port(process: subprocess.Popen[str], errors: Any) -> int:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        errors.seek(0)
        if found := re.search(r"serving .*at http://127\.0\.0\.1:(\d+)/", errors.read()):
            return int(found[1])
        time.sleep(0.05)
    errors.seek(0)
    raise UserError(f"a server did not start: {errors.read()[-2000:]}")


def command_of(system: str, bundle: Path, minilm: Path, workers: int) -> tuple[str, ...]:
    """Return what starts a system."""
    peers = serving_peers.__file__
    given = ("--port", "0", "--no-log-requests", "--workers", str(workers))
    return {
        SERVER: ("-m", "bert_kd", "serve", "--bundle", str(bundle.resolve()), *given),
        POOL: (peers, "student", str(bundle.resolve())),
        LOOP: (peers, "student", str(bundle.resolve()), "loop"),
        PIPELINE: (peers, "pipeline", str(minilm.resolve())),
    }[system]


def make_minilm(folder: Path, base: str, classes: int) -> None:
    """Save the model `base` with a new head, and its tokenizer."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from bert_kd.teacher.base import locate_model
    from bert_kd.teacher.model import quiet

    place = locate_model(base)
    with quiet():
        model = AutoModelForSequenceClassification.from_pretrained(place, num_labels=classes)
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(place).save_pretrained(folder)


def ask(load: Load) -> Told:
    """Put a load on a server, from a process of its own."""
    told = Told(**run_alone(serving_load.__file__, given=json.dumps(asdict(load))))
    if told.others:
        raise UserError(f"of {told.answered} requests, some were refused: {told.others}")
    return told


# --- every answer compared with that computed alone ----------------------------------------------


@dataclass
class Compared:
    """The server's answers beside the bundle's own to each text alone."""

    alone: list[dict[str, float]]
    """Each text's scores by label."""
    answers: int = 0
    wrong: int = 0
    largest_difference: float = 0.0
    example: str = ""

    @staticmethod
    def of(predictor: Predictor, texts: Sequence[str]) -> Compared:
        """Let the bundle answer each text alone."""
        ranked = [predictor(text, top_k=None) for text in texts]
        return Compared([{one["label"]: one["score"] for one in labels} for labels in ranked])

    def add(self, told: Told, asked: Sequence[Sequence[int]]) -> None:
        """Compare; `asked` are the positions of the texts of each body."""
        for place, body, times in told.answers:
            rows, answers = asked[place], json.loads(body)
            self.answers += times * len(rows)
            if len(answers) != len(rows):
                self._miss(times * len(rows), f"{len(answers)} answers to {len(rows)} texts")
                continue
            for row, answer in zip(rows, answers, strict=True):
                self._add_one(row, answer, times)

    def _add_one(self, row: int, answer: Mapping[str, Any], times: int) -> None:
        scores = self.alone[row]
        alone = scores.get(answer["label"], -1.0)
        difference = abs(answer["score"] - alone)
        # Of two labels that are as good as equal either may be the best one.
        if difference > TOLERANCE or alone < max(scores.values()) - TOLERANCE:
            self._miss(times, f"text {row}: {dict(answer)}, alone {scores}")
        else:
            self.largest_difference = max(self.largest_difference, difference)

    def _miss(self, count: int, why: str) -> None:
        self.wrong += count
        self.example = self.example or why

    def rows(self) -> list[Row]:
        return [
            fact_row(SERVER, "answers_compared", self.answers),
            fact_row(SERVER, "answers_wrong", self.wrong),
            fact_row(SERVER, "largest_difference", self.largest_difference),
        ]


# --- what is measured ----------------------------------------------------------------------------


def measure_single(
    servers: Mapping[str, Server],
    texts: Sequence[str],
    compared: Compared,
    connections: int,
    options: argparse.Namespace,
) -> list[Row]:
    """Return requests a second and the time of an answer over so many connections."""
    bodies = [json.dumps({"inputs": text}) for text in texts]
    asked = [[row] for row in range(len(texts))]
    told: dict[str, list[Told]] = {name: [] for name in servers}
    cpu: dict[str, list[float]] = {name: [] for name in servers}

    def turn(name: str) -> float:
        used = servers[name].cpu_seconds()
        found = ask(Load(servers[name].port, connections, options.seconds, bodies))
        cpu[name].append(1e6 * (servers[name].cpu_seconds() - used) / max(found.answered, 1))
        told[name].append(found)
        if name == SERVER:
            compared.add(found, asked)
        return found.answered / found.seconds

    turns = {name: partial(turn, name) for name in servers}
    found = interleaved(turns, options.rounds, what=f"{connections} connections")
    rows = []
    for peer in servers:
        rates = rate_rows(found, f"connections{connections}.requests_per_second", peer)
        rows += [row for row in rates if row["system"] == peer or row["system"] == SERVER != peer]
    for name in servers:
        counted = told[name][1:]  # the first was the warm-up
        for metric in ("p50_ms", "p99_ms"):
            value = statistics.median(getattr(one, metric) for one in counted)
            rows.append(fact_row(name, f"connections{connections}.{metric}", value))
        used = statistics.median(cpu[name][1:])
        rows.append(fact_row(name, f"connections{connections}.cpu_us", used))
        share = statistics.median(one.cpu_share for one in counted)
        rows.append(fact_row(name, f"connections{connections}.load_cpu_share", share))
    return rows


def measure_bulk(
    server: Server, texts: Sequence[str], compared: Compared, options: argparse.Namespace
) -> list[Row]:
    """Return texts a second through lists of texts, and the time of an answer to such a list."""
    size = options.bulk_texts
    asked = [[(start + at) % len(texts) for at in range(size)] for start in range(0, 8 * 97, 97)]
    bodies = [json.dumps({"inputs": [texts[row] for row in rows]}) for rows in asked]
    rates, times, cpu = [], [], []
    for turn in range(options.rounds + 1):
        used = server.cpu_seconds()
        found = ask(Load(server.port, options.bulk_connections, options.seconds, bodies))
        used = server.cpu_seconds() - used
        compared.add(found, asked)
        if turn:  # the first was the warm-up
            rates.append(size * found.answered / found.seconds)
            times.append(found.p50_ms)
            cpu.append(1e6 * used / max(size * found.answered, 1))
    return [
        fact_row(SERVER, "bulk.texts_per_second", statistics.median(rates)),
        fact_row(SERVER, "bulk.p50_ms", statistics.median(times)),
        fact_row(SERVER, "bulk.cpu_us", statistics.median(cpu)),
    ]


def measure_memory(
    server: Server, texts: Sequence[str], compared: Compared, minutes: float
) -> list[Row]:
    """Return the server's memory after the first window of load, at the end, and the largest."""
    bodies = [json.dumps({"inputs": text}) for text in texts]
    asked = [[row] for row in range(len(texts))]
    seen: list[int] = []
    end = time.monotonic() + 60 * minutes
    while time.monotonic() < end or len(seen) < 2:
        found = ask(Load(server.port, MEMORY_CONNECTIONS, MEMORY_WINDOW, bodies))
        compared.add(found, asked)
        seen.append(server.resident_bytes())
        say(f"memory: {seen[-1] / MIB:.1f} MiB")
    return [
        fact_row(SERVER, "memory.first_bytes", seen[0]),
        fact_row(SERVER, "memory.last_bytes", seen[-1]),
        fact_row(SERVER, "memory.largest_bytes", max(seen)),
        fact_row(SERVER, "memory.windows", len(seen)),
    ]


# --- the command ---------------------------------------------------------------------------------


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = options_parser(__doc__, without=("--minutes",))
    parser.add_argument("--bundle", type=Path, default=Path("runs/demo/bundles/base"))
    parser.add_argument("--model", default="offline", help="the MiniLM of the pipeline")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--seconds", type=float, default=4.0, help="a system's turn")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--workers", type=int, default=1, help="of the server")
    parser.add_argument("--texts", type=int, default=500, help="different ones that are asked")
    parser.add_argument("--bulk-texts", type=int, default=1024, help="in a list")
    parser.add_argument("--bulk-connections", type=int, default=4)
    parser.add_argument("--memory-minutes", type=float, default=2.0, help="0: not watched")
    options = parser.parse_args(arguments)
    if SERVER not in options.systems:
        parser.error(f"--systems needs {SERVER!r}, which the others are compared with")
    return options


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the benchmark's JSON after each part, with all rows so far."""
    if not (options.bundle / "bundle.json").is_file():
        raise UserError(f"{options.bundle} is no bundle: make demo makes one, or give --bundle")
    bundle = read_bundle(options.bundle)
    if bundle.pair:
        raise UserError(f"{options.bundle} compares pairs: give a bundle of single texts")
    name, folder = data_set(options.data, options.set or "helpdesk", "helpdesk")
    texts = read_split(folder, "validation").texts[: options.texts]
    compared = Compared.of(load(options.bundle, threads=1), texts)
    with tempfile.TemporaryDirectory() as aside, ExitStack() as running:
        minilm = Path(aside) / "minilm"
        if PIPELINE in options.systems:
            make_minilm(minilm, options.model, len(bundle.labels))
        servers = {}
        for system in options.systems:
            say(f"starting {system}")
            command = command_of(system, options.bundle, minilm, options.workers)
            servers[system] = running.enter_context(served(*command))
        made = facts(
            options,
            0,
            benchmark="serving",
            set=name,
            hidden=bundle.shape["hidden"],
            classes=len(bundle.labels),
            texts=len(texts),
            characters=statistics.mean(map(len, texts)),
            systems=options.systems,
            connections=options.connections,
            seconds_a_turn=options.seconds,
            workers=options.workers,
            bulk_texts=options.bulk_texts,
            bulk_connections=options.bulk_connections,
            memory_minutes=options.memory_minutes,
        )
        rows: list[Row] = []
        for connections in options.connections:
            rows += measure_single(servers, texts, compared, connections, options)
            yield made | {"rows": rows + compared.rows()}
        rows += measure_bulk(servers[SERVER], texts, compared, options)
        yield made | {"rows": rows + compared.rows()}
        if options.memory_minutes:
            rows += measure_memory(servers[SERVER], texts, compared, options.memory_minutes)
        rows += compared.rows()
        yield made | {"rows": rows}
        if compared.wrong:
            raise UserError(f"{compared.wrong} answers were wrong, first {compared.example}")


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
    main()

"""How fast students answer, beside BERTs and simpler models: raw text to probabilities.

    python benchmarks/inference.py --data FOLDER --work FOLDER --minutes 60 \
        --json benchmarks/results/inference.json

All systems answer the same texts in interleaved rounds, one by one and in bulk, each in the same
number of threads (of the model, of tokenizing and of BLAS): short texts (the validation split of
the set) and long ones (several of them joined), both cut at 256 tokens. BERTs and students have
random weights, which changes nothing of their speed, real WordPiece tokenizers, and are run in
torch and ONNX Runtime (graph optimised; int8 by dynamic quantisation); with `--bundle` the student
is a real one. Also measured: what the time of a student's answers is made of, beside what the core
can do at most (`inference_parts.py`), and, in processes of their own that take turns as well,
memory and time to load. What is made is kept in `--work`; `--minutes` bounds the rounds' time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import controls
import inference_make as make
import inference_systems
import numpy as np
from inference_parts import measure_kernel, measure_parts, measure_tokenizing
from inference_systems import Answer, Spec, open_system
from speed_runs import (
    Labelled,
    Row,
    data_set,
    fact_row,
    facts,
    interleaved,
    lines,
    options_parser,
    read_split,
    run_alone,
    tokenizing_threads,
    torch_threads,
    user_errors,
)

from bert_kd.data.keys import row_keys
from bert_kd.data.rows import Rows
from bert_kd.evaluate.speed import Timings, time_systems
from bert_kd.progress import say
from bert_kd.store import write_json
from bert_kd.teacher.base import locate_model

PARTS = ("speed", "kernel", "processes")
JOINED = 8
"""Texts that make a long one."""
FITTED_ROWS = 10_000
"""Rows of train that the linear models and fastText learn from."""
SERVED_TEXTS = 64
PROCESSES = 3
"""Of each system, at most."""
P99_TEXTS = 100
"""Of fewer texts timed one by one, a 99th percentile is little else than the slowest."""
SECONDS = 2.0
"""A system's turn, one by one or in bulk, takes about so long at most."""


@dataclass(frozen=True)
class Case:
    """Texts and threads; its name begins the metrics."""

    kind: str
    threads: int
    texts: list[str]

    @property
    def name(self) -> str:
        return f"{self.kind}.threads{self.threads}"


def joined(texts: Sequence[str], count: int = JOINED) -> list[str]:
    """Return long texts, each of `count` texts (the last one may have fewer)."""
    return [" ".join(texts[start : start + count]) for start in range(0, len(texts), count)]


# --- speed -------------------------------------------------------------------------------------


def measure_case(
    case: Case, systems: Mapping[str, Answer], options: argparse.Namespace, seconds: float
) -> list[Row]:
    """Return latency and throughput of all systems, compared with the reference (the first one),
    and how many times as fast as every other system each native one is.
    """
    from threadpoolctl import threadpool_limits

    count = case.threads
    with (
        torch_threads(count),
        tokenizing_threads(count),
        threadpool_limits(count, user_api="blas"),
    ):
        found = time_systems(
            systems,  # type: ignore[arg-type]
            case.texts,
            single_texts=options.single_texts,
            bulk_texts=options.bulk_texts,
            rounds=options.rounds,
            seconds=seconds,
        )
    return [*_speed_rows(case, found), *_comparisons(case, found)]


def _speed_rows(case: Case, found: Timings) -> Iterator[Row]:
    names = list(found.rate)
    for name in names:
        speed = found.speed(name, names[0])
        for metric, value, ratio in (
            ("latency_p50_us", speed.p50, speed.times_faster),
            ("latency_p99_us", speed.p99 if speed.single_texts >= P99_TEXTS else None, None),
            ("texts_per_second", speed.texts_per_second, speed.times_throughput),
            ("single_texts", speed.single_texts, None),
            ("bulk_texts", speed.bulk_texts, None),
        ):
            beside = None if ratio is None else names[0]
            yield {
                "system": name,
                "metric": f"{case.name}.{metric}",
                "value": value,
                "ratio": ratio,
                "ratio_to": beside,
            }


def _comparisons(case: Case, found: Timings) -> Iterator[Row]:
    for name in found.rate:
        if ", native " not in name:
            continue
        for other in found.rate:
            if other == name:
                continue
            speed = found.speed(name, other)
            for metric, ratio in (
                ("times_single", speed.times_faster),
                ("times_bulk", speed.times_throughput),
            ):
                yield {
                    "system": name,
                    "metric": f"{case.name}.{metric}",
                    "value": ratio,
                    "ratio": ratio,
                    "ratio_to": other,
                }


# --- what is measured --------------------------------------------------------------------------


def make_systems(
    options: argparse.Namespace, work: Path, train: Labelled, check: list[str]
) -> dict[str, Spec]:
    """Make all systems that lie on disk, the reference first."""
    specs: dict[str, Spec] = {}
    for name in options.peers:
        specs |= make.make_bert(name, work / name, options.model, train.classes)
    if options.bundle:
        specs |= make.take_student(options.bundle, work / "bundle", check)
    else:
        for hidden in options.hidden:
            folder = work / f"student-{hidden}"
            specs |= make.make_student(hidden, folder, options.model, train, check)
    return specs | make.make_fasttext(work / "fasttext", some(train))


def some(train: Labelled) -> Labelled:
    """Return the first rows that simple models learn from."""
    return Labelled(train.texts[:FITTED_ROWS], train.labels[:FITTED_ROWS])


def linear_systems(train: Labelled, base: str) -> dict[str, Answer]:
    """Fit TF-IDF and static vectors, each with logistic regression."""
    chosen = some(train)
    views = np.zeros(len(chosen), dtype=np.int16)
    rows = Rows(row_keys(chosen.texts, None), chosen.texts, None, chosen.labels, views)
    fits = {
        controls.TFIDF: (controls.tfidf(), {"characters": False, "C": 3.0}),
        controls.STATIC: (controls.static(locate_model(base)), {"weighted": True, "C": 0.1}),
    }
    found: dict[str, Answer] = {}
    for name, (fit, settings) in fits.items():
        say(f"fitting {name}")
        control = fit(rows, settings, 1)
        found[name] = lambda texts, control=control: control.predict(texts, None)
    return found


def measure_processes(specs: Mapping[str, Spec], texts: Sequence[str], rounds: int) -> list[Row]:
    """Return memory and time to load of each system, medians over rounds in which each has a
    process of its own.
    """
    given = json.dumps(list(texts))
    turns: dict[str, Callable[[], dict[str, float | None]]] = {
        name: partial(run_alone, inference_systems.__file__, spec.to_json(), given=given)
        for name, spec in specs.items()
    }
    with tokenizing_threads(1):
        found = interleaved(turns, rounds, what="processes")
    rows = []
    for name, told in found.items():
        for metric in told[0]:
            values = [one[metric] for one in told]
            known = [value for value in values if value is not None]
            rows.append(fact_row(name, metric, statistics.median(known) if known else None))
    return rows


# --- the command -------------------------------------------------------------------------------


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = options_parser(__doc__)
    parser.add_argument("--work", type=Path, help="folder that keeps what is made; else it goes")
    parser.add_argument("--hidden", type=int, nargs="+", default=[64, 128, 256], metavar="H")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], metavar="N")
    parser.add_argument("--peers", nargs="+", choices=make.SHAPES, default=list(make.SHAPES))
    parser.add_argument("--bundle", type=Path, help="a real student in place of random ones")
    parser.add_argument("--model", default="offline", help="whose WordPiece is used")
    parser.add_argument("--single-texts", type=int, default=256, help="one by one, a round")
    parser.add_argument("--bulk-texts", type=int, default=2048, help="of a bulk call")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--no-long", action="store_true", help="short texts alone")
    options = parser.parse_args(arguments)
    if next(iter(make.SHAPES)) not in options.peers:
        parser.error(f"--peers needs {next(iter(make.SHAPES))}, which others are compared with")
    if len({count for count in options.threads if count > 1}) > 1:
        parser.error("--threads takes 1 and one other number: tokenizers keeps its threads")
    return options


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the benchmark's JSON after each part, with all rows so far."""
    name, folder = data_set(options.data, options.set, "sst2")
    train, texts = read_split(folder, "train"), read_split(folder, "validation").texts
    most = max(options.threads)
    made = facts(options, most, benchmark="inference", set=name)
    processes = min(options.rounds, PROCESSES)
    with tempfile.TemporaryDirectory() as aside, tokenizing_threads(most):
        work = options.work or Path(aside)
        specs = make_systems(options, work, train, texts[:SERVED_TEXTS])
        short = texts * -(-options.bulk_texts // len(texts))
        kinds = {"short": short} if options.no_long else {"short": short, "long": joined(short)}
        cases = [
            Case(kind, threads, given)
            for kind, given in kinds.items()
            for threads in options.threads
        ]
        linear = linear_systems(train, options.model) if "speed" in options.parts else {}
        seconds = SECONDS
        if options.minutes is not None:
            turns = 2 * len(cases) * (len(specs) + len(linear)) * (options.rounds + 1)
            seconds = min(seconds, 60 * options.minutes / turns)
        made["config"] |= {
            "cases": {case.name: len(case.texts) for case in cases},
            "characters": {case.name: float(np.mean([*map(len, case.texts)])) for case in cases},
            "systems": make.facts_of(specs) | {key: {"kind": "linear"} for key in linear},
            "weights": "of a bundle" if options.bundle else "random",
            "seconds_a_turn": seconds,
            "threads_of": ["model", "tokenizing", "BLAS"],
            "process_rounds": processes,
        }
        rows: list[Row] = []
        bulk = short[: options.bulk_texts]
        for case in cases if "speed" in options.parts else ():
            systems = {key: open_system(spec, case.threads) for key, spec in specs.items()}
            rows += measure_case(case, systems | linear, options, seconds)
            yield made | {"rows": rows}
        if "kernel" in options.parts:
            for measure_part in (measure_kernel, measure_tokenizing, measure_parts):
                rows += measure_part(specs, bulk, options.rounds)
            yield made | {"rows": rows}
        if "processes" in options.parts:
            rows += measure_processes(specs, texts[:SERVED_TEXTS], processes)
            yield made | {"rows": rows}


def main() -> None:
    """Measure, print a line per value, and write the JSON file where asked, after each part."""
    options = parse()
    printed = 0
    with user_errors():
        for found in measure(options):
            sys.stdout.write("".join(f"{line}\n" for line in lines(found["rows"][printed:])))
            sys.stdout.flush()
            printed = len(found["rows"])
            if options.json:
                write_json(options.json, found)


if __name__ == "__main__":
    main()

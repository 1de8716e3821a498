"""What a second student saves: the teacher's answers read from the cache, beside a fresh teacher
pass.

    python benchmarks/cache_reuse.py --run runs/demo --json benchmarks/results/cache_reuse.json

Reads a finished run (stages 01 to 03). In interleaved rounds it takes the answers to
all rows of train and transfer from the logit cache, and those to a random sample of them from the
teacher, in the cache's precision, and prints the ratio of the rows per second.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from bert_kd.data.keys import Keys, join_keys
from bert_kd.data.prepare import load_prepared
from bert_kd.data.rows import read_rows
from bert_kd.evaluate.findings import machine_facts
from bert_kd.logits.cache import LogitCache
from bert_kd.store import RunFolder, Stamp, commit, versions, write_json
from bert_kd.teacher.answer import Answering
from bert_kd.teacher.model import open_teacher


@dataclass(frozen=True)
class Question:
    """All rows to be answered, and a random sample of them for the teacher."""

    keys: Keys
    texts: list[str]
    texts_b: list[str] | None


def read_question(run: RunFolder, sample: int) -> Question:
    """Return the keys of all rows of train and transfer, and the texts of `sample` of them."""
    prepared = load_prepared(run)
    splits = [read_rows(run.split(name)) for name in ("train", "transfer") if name in prepared.rows]
    keys = join_keys([rows.keys for rows in splits])
    chosen = np.random.default_rng(17).permutation(len(keys))[:sample]

    def pick(texts: list[str]) -> list[str]:
        return [texts[row] for row in chosen]

    texts = pick([text for rows in splits for text in rows.texts])
    texts_b = None
    if prepared.pair:
        texts_b = pick([text for rows in splits for text in rows.texts_b or []])
    return Question(keys, texts, texts_b)


def measure(systems: dict[str, Callable[[], int]], rounds: int) -> list[dict[str, Any]]:
    """Return the median rows per second of each system, and its ratio to the first, by round."""
    rates: dict[str, list[float]] = {name: [] for name in systems}
    for answer in systems.values():
        answer()  # warm-up
    for _ in range(rounds):
        for name, answer in systems.items():
            start = time.perf_counter()
            count = answer()
            rates[name].append(count / (time.perf_counter() - start))
    first = next(iter(systems))
    return [
        {
            "system": name,
            "metric": "rows_per_second",
            "value": statistics.median(found),
            "ratio": statistics.median(a / b for a, b in zip(found, rates[first], strict=True)),
            "ratio_to": first,
        }
        for name, found in rates.items()
    ]


def main() -> None:
    """Measure, print a line per system, and write the JSON file where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"))
    parser.add_argument("--rows", type=int, default=512, help="rows of a teacher pass")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    run = RunFolder(options.run)
    stamp = Stamp.read(run.logits)
    if stamp is None:
        sys.exit(f"{run.logits} holds no cached logits: run cache-logits first")
    folder = run.cache(stamp.inputs["teacher"])
    question = read_question(run, options.rows)
    precision = LogitCache.open(folder).manifest.precision
    answering = Answering(
        open_teacher(run.teacher), "bf16" if precision == "bf16" else "fp32", tokens_per_batch=2048
    )
    rows = measure(
        {
            "teacher": lambda: len(answering(question.texts, question.texts_b).logits),
            "cache": lambda: len(LogitCache.open(folder).lookup(question.keys).logits),
        },
        options.rounds,
    )
    for row in rows:
        line = f"{row['system']}: {row['value']:,.0f} rows/s, {row['ratio']:,.1f} × the teacher"
        Console().print(line, highlight=False)
    if options.json:
        config = {
            "run": options.run.name,
            "rows_cache": len(question.keys),
            "rows_teacher": len(question.texts),
            "rounds": options.rounds,
            "precision": precision,
            "versions": versions(),
            "commit": commit(),
        }
        machine = asdict(machine_facts(torch.get_num_threads()))
        write_json(options.json, {"machine": machine, "config": config, "rows": rows})


if __name__ == "__main__":
    main()

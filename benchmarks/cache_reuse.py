"""What a second student saves: the teacher's answers read from the cache, beside a fresh teacher
pass.

    python benchmarks/cache_reuse.py --run runs/demo --json benchmarks/results/cache_reuse.json

Reads a finished run (stages 01 to 03). In interleaved rounds it takes the answers to
all rows of train and transfer from the logit cache, and those to a random sample of them from the
teacher, in the cache's precision, and prints the ratio of the rows per second.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from speed_runs import (
    facts,
    interleaved,
    options_parser,
    rate_rows,
    report,
    result,
    rounds_made,
    user_errors,
)

from bert_kd.data.keys import Keys, join_keys
from bert_kd.data.prepare import load_prepared
from bert_kd.data.rows import read_rows
from bert_kd.errors import UserError
from bert_kd.logits.cache import LogitCache
from bert_kd.store import RunFolder, Stamp
from bert_kd.teacher.answer import Answering
from bert_kd.teacher.model import open_teacher

TEACHER, CACHE = "teacher", "cache"


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


def rate(answer: Callable[[], int]) -> float:
    """Return rows a second of `answer`, which returns how many rows it answered."""
    started = time.perf_counter()
    count = answer()
    return count / (time.perf_counter() - started)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = options_parser(__doc__, without=("--data", "--set"))
    parser.add_argument("--run", type=Path, default=Path("runs/demo"))
    parser.add_argument("--rows", type=int, default=512, help="rows of a teacher pass")
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return the benchmark's JSON. Raises UserError where the run has no cached logits."""
    run = RunFolder(options.run)
    stamp = Stamp.read(run.logits)
    if stamp is None:
        raise UserError(f"{run.logits} holds no cached logits: run bert-kd cache-logits first")
    folder = run.cache(stamp.inputs["teacher"])
    question = read_question(run, options.rows)
    precision = LogitCache.open(folder).manifest.precision
    made = facts(
        options,
        torch.get_num_threads(),
        benchmark="cache-reuse",
        run=options.run.name,
        rows_cache=len(question.keys),
        rows_teacher=len(question.texts),
        precision=precision,
    )
    answering = Answering(
        open_teacher(run.teacher), "bf16" if precision == "bf16" else "fp32", tokens_per_batch=2048
    )
    systems: dict[str, Callable[[], int]] = {
        TEACHER: lambda: len(answering(question.texts, question.texts_b).logits),
        CACHE: lambda: len(LogitCache.open(folder).lookup(question.keys).logits),
    }
    turns = {name: partial(rate, answer) for name, answer in systems.items()}
    found = interleaved(turns, options.rounds, minutes=options.minutes, what="cache reuse")
    return result(made, rate_rows(found, "rows_per_second", TEACHER), rounds_made(found))


def main() -> None:
    """Measure, print a line per system, and write the JSON file where asked."""
    options = parse()
    with user_errors():
        report(measure(options), options.json)


if __name__ == "__main__":
    main()

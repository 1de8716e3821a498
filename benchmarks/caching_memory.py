"""The peak memory of filling a logit cache, by number of rows.

Synthetic rows of distinct texts are written as a prepared split, and a BERT of one layer and random
weights answers them (`bert_kd.teacher.fill`); each number of rows in a process of its own, which
this module is when it is run: `caching_memory.py RUN`.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from speed_runs import Row, fact_row, run_alone, value_of

from bert_kd.config import LogitsConfig, TeacherConfig
from bert_kd.data.keys import row_keys
from bert_kd.data.prepare import Prepared
from bert_kd.data.rows import Rows, write_rows
from bert_kd.progress import say
from bert_kd.store import RunFolder

LABELS = ("no", "yes")
WORDS = 2000
ROWS_AT_ONCE = 8192


def synthetic_rows(count: int) -> Iterator[Rows]:
    """Yield `count` rows of distinct texts, 4 to 8 words each."""
    generator = np.random.default_rng(17)
    words = np.array([f"w{number}" for number in range(WORDS)])
    for start in range(0, count, ROWS_AT_ONCE):
        size = min(ROWS_AT_ONCE, count - start)
        drawn = generator.integers(0, WORDS, (size, 8))
        lengths = generator.integers(4, 9, size)
        texts = [
            f"{start + row} " + " ".join(words[drawn[row, : lengths[row]]]) for row in range(size)
        ]
        labels = generator.integers(0, 2, size)
        yield Rows(row_keys(texts, None), texts, None, labels, np.zeros(size, dtype=np.int16))


def peak_bytes() -> int:
    """Return the most memory that this process has held so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def measure(counts: Sequence[int]) -> list[Row]:
    """Return peak memory, and the part of it that came with the work, for each number of rows."""
    found: list[Row] = []
    for count in counts:
        with tempfile.TemporaryDirectory() as aside:
            run = RunFolder(Path(aside) / "run")
            say(f"writing {count:,} synthetic rows")
            write_rows(run.split("train"), synthetic_rows(count))
            values = run_alone(__file__, str(run.root), str(count))
        name = f"{count:,} rows"
        for metric, value in values.items():
            found.append(fact_row(name, metric, value))
    first = found[0]["system"]
    least = value_of(found, first, "peak_bytes")
    for row in found:
        if row["metric"] == "peak_bytes" and least:
            row["ratio"], row["ratio_to"] = row["value"] / least, first
    return found


def fill(run: RunFolder, count: int) -> dict[str, float]:
    """Fill the cache of a run and return what memory it took."""
    from bert_kd.teacher.card import Card
    from bert_kd.teacher.fill import fill_cache
    from bert_kd.teacher.model import load_base, open_teacher, save_teacher
    from bert_kd.teacher.untrained import write_untrained

    words = [f"w{number}" for number in range(WORDS)]
    base = run.root / "base"
    write_untrained(base, words, layers=1, hidden_size=32, vocabulary=3000, positions=64)
    teacher = load_base(TeacherConfig(model=str(base), max_length=32), LABELS)
    save_teacher(run.teacher, teacher, Card(LABELS, False, 32), {"base": "random weights"})
    prepared = Prepared(LABELS, False, {"train": count}, {"train": ""}, {})
    open_teacher(run.teacher)
    before = peak_bytes()
    filled = fill_cache(run, prepared, LogitsConfig(), run.teacher)
    return {
        "peak_bytes": float(peak_bytes()),
        "bytes_before": float(before),
        "bytes_a_row": (peak_bytes() - before) / count,
        "rows_per_second": filled.computed / filled.seconds,
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(fill(RunFolder(Path(sys.argv[1])), int(sys.argv[2]))))

"""What the speed benchmarks share: texts, interleaved rounds, options, and the JSON of a run.

Systems take turns in rounds, each round begun by another one, so that a machine that slows down for
a while slows all of them. Values are medians over rounds; a ratio is the median of the ratios
within each round.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from bert_kd.data.text_files import open_text, tsv_records
from bert_kd.errors import UserError
from bert_kd.evaluate.findings import machine_facts
from bert_kd.evaluate.format import significant
from bert_kd.evaluate.speed import tokenizing
from bert_kd.progress import progress, say
from bert_kd.runtime.engine import usable_cores
from bert_kd.store import commit, read_json, versions, write_json

REPOSITORY = Path(__file__).resolve().parents[1]
HELPDESK = REPOSITORY / "data" / "helpdesk"
DATA = "BERT_KD_DATA"
TASKS = Path("/proc/self/task")
"""A folder for each thread of this process, on Linux."""
ROUNDS = 5
FEW_ROUNDS = 3
"""Fewer have no median to speak of."""
FOLDERS = ("--data", "--work")
"""Options whose value is told as FOLDER."""

Row = dict[str, Any]
"""One measured value: system, metric, value, ratio, ratio_to."""
Clock = Callable[[], float]
Value = TypeVar("Value")


# --- texts -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Labelled:
    """Texts and their classes."""

    texts: list[str]
    labels: npt.NDArray[np.int64]  # [texts]

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def classes(self) -> int:
        return int(self.labels.max()) + 1

    def take(self, rows: npt.NDArray[np.int64]) -> Labelled:
        """Return these rows alone, in the given order."""
        return Labelled([self.texts[row] for row in rows], self.labels[rows])


def data_folder(above: Path | None, name: str) -> Path:
    """Return the folder of the data set `name` in the folder `above` (None: of the environment
    variable BERT_KD_DATA); the bundled helpdesk set lies in the checkout.

    Raises UserError where there is none.
    """
    if name == HELPDESK.name:
        return HELPDESK
    if above is None and DATA in os.environ:
        above = Path(os.environ[DATA])
    if above is None or not (above / name).is_dir():
        raise UserError(
            f"the data set {name!r} is not at hand: say with --data FOLDER (or {DATA} in the "
            f"environment) in which folder it lies, or take --set {HELPDESK.name}"
        )
    return above / name


def data_set(above: Path | None, name: str | None, usual: str) -> tuple[str, Path]:
    """Return the name and folder of the data set to measure on: `name`; where none is given, the
    `usual` one or, without a folder of data sets, the bundled one.
    """
    if name is None and above is None and DATA not in os.environ:
        say(f"no --data FOLDER with {usual!r} in it: measuring on the bundled {HELPDESK.name!r}")
        name = HELPDESK.name
    name = name or usual
    return name, data_folder(above, name)


def read_split(folder: Path, split: str) -> Labelled:
    """Return a split of a folder of TSV files with a header, plain or gzipped.

    Raises UserError where there is no such file.
    """
    names = [f"{split}.tsv", f"{split}.tsv.gz"]
    path = next((folder / name for name in names if (folder / name).exists()), None)
    if path is None:
        raise UserError(f"{folder} holds neither {' nor '.join(names)}: give another folder")
    with open_text(path, newline="\n") as file:
        (_, header), *records = tsv_records(file)
    text, label = header.index("text"), header.index("label")
    known = read_json(folder / "labels.json")
    numbers = {name: number for number, name in enumerate(known)} if isinstance(known, list) else {}
    labels = [
        numbers.get(found[label], -1) if numbers else int(found[label]) for _, found in records
    ]
    return Labelled([found[text] for _, found in records], np.array(labels, dtype=np.int64))


# --- rounds ------------------------------------------------------------------------------------


def interleaved(
    turns: Mapping[str, Callable[[], Value]],
    rounds: int,
    *,
    minutes: float | None = None,
    what: str = "rounds",
    clock: Clock = time.monotonic,
) -> dict[str, list[Value]]:
    """Return what each of `turns` returned (a rate, a duration) in each round, by name.

    A turn each is taken first and not counted: the warm-up. With `minutes`, no round is begun that
    would end later than that after it; one round is always made. Few rounds are warned of.
    """
    found: dict[str, list[Value]] = {name: [] for name in turns}
    names = list(turns)
    if not names:
        return found
    with progress(what, len(names) * (rounds + 1), "turns") as advance:
        for name in names:
            turns[name]()
            advance(1, f"warm-up of {name}")
        longest = 0.0
        end = None if minutes is None else clock() + 60 * minutes
        for turn in range(rounds):
            started = clock()
            if end is not None and turn and started + longest > end:
                break
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                found[name].append(turns[name]())
                advance(1, f"round {turn + 1} of {rounds}")
            longest = max(longest, clock() - started)
    made = rounds_made(found)
    if made < FEW_ROUNDS:
        cut = "" if made == rounds else f" of the {rounds} asked for: give more --minutes"
        say(f"WARNING: {what}: the values are of {made} round{'s' * (made != 1)} alone{cut}")
    return found


def rounds_made(found: Mapping[str, Sequence[object]]) -> int:
    """Return how many rounds every system has a value of."""
    return min(map(len, found.values()), default=0)


def rate_rows(
    found: Mapping[str, Sequence[float]], metric: str, reference: str | None = None
) -> list[Row]:
    """Return a row a system: the median over rounds, and the median of the ratios to `reference`
    (None: the first system) within each round.
    """
    reference = reference or next(iter(found))
    return [
        {
            "system": name,
            "metric": metric,
            "value": statistics.median(values),
            "ratio": statistics.median(
                mine / theirs for mine, theirs in zip(values, found[reference], strict=True)
            ),
            "ratio_to": reference,
        }
        for name, values in found.items()
    ]


def fact_row(system: str, metric: str, value: float | None) -> Row:
    """Return the row of a value that is compared with nothing."""
    return {"system": system, "metric": metric, "value": value, "ratio": None, "ratio_to": None}


def systems_of(rows: Sequence[Row], metric: str) -> list[str]:
    """Return the systems that have this metric, in order."""
    return list(dict.fromkeys(row["system"] for row in rows if row["metric"] == metric))


def metrics_of(rows: Sequence[Row], ending: str) -> list[str]:
    """Return the beginnings of the metrics with this ending, in order."""
    end = f".{ending}"
    found = (row["metric"] for row in rows if row["metric"].endswith(end))
    return list(dict.fromkeys(metric.removesuffix(end) for metric in found))


def value_of(rows: Sequence[Row], system: str, metric: str, key: str = "value") -> float | None:
    """Return a value (or its `ratio`) out of a benchmark's rows; None where it was not measured."""
    for row in rows:
        if row["system"] == system and row["metric"] == metric:
            found: float | None = row[key]
            return found
    return None


def lines(rows: Sequence[Row]) -> Iterator[str]:
    """Yield a line a value, for people."""
    for row in rows:
        beside = ""
        if row["ratio"] is not None and row["system"] != row["ratio_to"]:
            beside = f" ({significant(row['ratio'])} times {row['ratio_to']})"
        yield f"{row['metric']}  {row['system']}: {significant(row['value'])}{beside}"


# --- the command -------------------------------------------------------------------------------


def options_parser(
    description: str | None, without: Collection[str] = ()
) -> argparse.ArgumentParser:
    """Return a parser with the options that the speed benchmarks have, except those in `without`,
    which one of them has no use for.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options: Mapping[str, Mapping[str, Any]] = {
        "--data": {"type": Path, "help": f"folder of the data folders; else ${DATA}"},
        "--set": {"help": f"data set to measure on; {HELPDESK.name}: the bundled one"},
        "--rounds": {"type": int, "default": ROUNDS, "help": "interleaved rounds"},
        "--minutes": {"type": float, "help": "begin no round that would end later"},
        "--json": {"type": Path, "help": "write what was measured to this file"},
    }
    for name, settings in options.items():
        if name not in without:
            parser.add_argument(name, **settings)
    return parser


def parse_rounds(
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None,
    without_rounds: Collection[str],
) -> argparse.Namespace:
    """Return the options of the command line. With one of `without_rounds` (`memory`, say) no
    rounds are made: `--rounds` and `--minutes` are refused, and `rounds` is None.
    """
    parser.set_defaults(rounds=None)
    options = parser.parse_args(arguments)
    mode = next((mode for mode in without_rounds if getattr(options, mode)), None)
    if mode is None:
        options.rounds = ROUNDS if options.rounds is None else options.rounds
        return options
    for name in ("rounds", "minutes"):
        if getattr(options, name) is not None:
            parser.error(f"--{mode} makes no rounds: leave out --{name}")
    return options


def facts(options: argparse.Namespace, threads: int, **others: Any) -> dict[str, Any]:
    """Return the machine and what made a benchmark's rows, as its JSON has them. To be called
    before the work, which would count as the machine's load.
    """
    rounds = {} if options.rounds is None else {"rounds": options.rounds}
    return {
        "machine": asdict(machine_facts(threads)) | {"busy": os.getloadavg()[0]},
        "config": {
            "command": command(sys.argv),
            **rounds,
            **others,
            "versions": versions(),
            "commit": commit(),
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    }


def result(made: Mapping[str, Any], rows: Sequence[Row], rounds: int | None) -> dict[str, Any]:
    """Return a benchmark's JSON: its `facts`, with the rounds that were really made (None: there
    are none), and its rows.
    """
    config = made["config"] | ({} if rounds is None else {"rounds": rounds})
    return {**made, "config": config, "rows": [*rows]}


def command(arguments: Sequence[str]) -> str:
    """Return a command for others to repeat: without the paths of this machine, and without where
    the result went.
    """
    program, *rest = arguments
    words = ["python", f"benchmarks/{Path(program).name}"]
    option = ""  # whose value the next word is
    for word in rest:
        name, joined, value = word.partition("=") if word.startswith("--") else (option, "", word)
        if name != "--json":
            value = "FOLDER" if name in FOLDERS and value else _without_machine(value)
            is_option = word.startswith("--")
            words.append(f"{name}{joined}{value}" if is_option else value)
        option = word if word.startswith("--") and not joined else ""
    return shlex.join(words)


def _without_machine(word: str) -> str:
    """Return a path of this machine as its name alone, anything else as it is: a path within the
    checkout is one that others have, too.
    """
    path = Path(word)
    return path.name if path.is_absolute() or word.startswith("~") or ".." in path.parts else word


def run_alone(script: str, *arguments: str, given: str = "") -> Any:
    """Run a script in a process of its own, as this one is set up, with `given` on its standard
    input, and return the JSON that it prints.
    """
    places = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, script, *arguments],
        input=given,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
    )
    return json.loads(done.stdout)


def report(found: Mapping[str, Any], path: Path | None) -> None:
    """Print a line per value and, where asked, write the benchmark's JSON to `path`."""
    sys.stdout.write("".join(f"{line}\n" for line in lines(found["rows"])))
    if path:
        write_json(path, found)


@contextmanager
def user_errors() -> Iterator[None]:
    """Show what the user can fix without a traceback, with exit status 2."""
    try:
        yield
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Give torch this many threads, for the time being."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def tokenizing_threads(count: int) -> Iterator[None]:
    """Have `tokenizers` encode lists of texts in at most `count` threads, for the time being, here
    and in processes that are started meanwhile; by itself it takes all cores, whatever torch or
    ONNX Runtime was given.

    For 1 it stays out of its pool: it reads TOKENIZERS_PARALLELISM at each call. For more it works
    in the pool of the process, which gets its size when it is first used and keeps it: enter this
    with the largest number before anything is tokenized. A pool of fewer threads will do. Raises
    UserError where it has more.
    """
    with tokenizing(in_parallel=count > 1):
        if count > 1 and (held := _tokenizing_pool(count)) > count:
            raise UserError(
                f"tokenizers already has a pool of {held} threads, which can't be made {count}: "
                f"start with RAYON_NUM_THREADS={count} in the environment"
            )
        yield


def _tokenizing_pool(count: int) -> int:
    """Return how many threads the pool of `tokenizers` has; where it has not begun, it begins with
    `count`. RAYON_NUM_THREADS says so from then on, since nothing else tells.
    """
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    name = "RAYON_NUM_THREADS"
    usual = int(os.environ.get(name) or 0) or usable_cores()
    os.environ[name] = str(count)
    if not TASKS.is_dir():  # the system does not tell how many threads there are
        return count
    before = len(list(TASKS.iterdir()))
    Tokenizer(WordLevel({"": 0}, "")).encode_batch(["", ""])
    held = (len(list(TASKS.iterdir())) - before) or usual  # none where it had begun
    os.environ[name] = str(held)
    return held

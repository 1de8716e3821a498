"""How accurate students are beside their teacher, their twins and control models, on the same rows.

    python benchmarks/quality.py --suite trec --data FOLDER --seeds 5 --json FILE
    python benchmarks/quality.py --suite trec --data FOLDER --seeds 3 --json FILE --ablation
    python benchmarks/quality.py --suite trec --data FOLDER --seeds 3 --json FILE --curve
    python benchmarks/quality.py --suite trec --data FOLDER --seeds 3 --json FILE --teachers
    python benchmarks/quality.py --write-docs

Runs the stages of the suite's configuration in `--work` (killed, the same command goes on where it
was), measures every system on the suite's test set, and writes the table: accuracy and macro-F1
(means over seeds), differences with intervals from a paired bootstrap over rows and seeds, sizes,
and speed in one thread, all systems in interleaved rounds. `--teachers` compares variants of the
suite's teacher, without students, and times nothing but their training. Further arguments are
`section.key=value` overrides of the configuration. `--write-docs` writes docs/results.md from all
tables in benchmarks/results.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import character_vectors
import quality_docs
import quality_teachers
from quality_statistics import Interval, draw_together
from quality_suites import SUITES, Suite, Variant, suite_named
from quality_systems import (
    TEACHER,
    System,
    control_systems,
    read_sets,
    student_systems,
    teacher_system,
)
from quality_variants import make, plan

from bert_kd.config import Config, EvaluateConfig
from bert_kd.config_file import load_config
from bert_kd.data.rows import Rows
from bert_kd.errors import UserError
from bert_kd.evaluate.findings import machine_facts
from bert_kd.evaluate.speed import Speed, in_threads, measure_speed
from bert_kd.progress import say
from bert_kd.provenance import needs_teacher
from bert_kd.stages import run_stages
from bert_kd.store import commit, versions, write_json

REPOSITORY = Path(__file__).resolve().parents[1]
CONFIGS = REPOSITORY / "scripts" / "configs"
ABSOLUTE = re.compile(r"""(?<=[="'])[/~][^"',\]]*""")
"""An absolute path in an override."""
DATA = "BERT_KD_DATA"
TABLES = ("main", "ablation", "curve", "teachers")


NOTES = {
    "curve": (
        "Shares of train are learned without views and pool, with the answers of a teacher that "
        "learned from all of train: what the student needs, not what the whole line does.",
    )
}
"""Of the tables of a kind."""


@dataclass(frozen=True)
class Request:
    """One table to be made: `overrides` are those of the command line."""

    suite: Suite
    table: str
    config: Path
    data: Path | None
    work: Path
    seeds: int
    overrides: tuple[str, ...]

    @property
    def all_overrides(self) -> list[str]:
        """Where the run and its data lie, the seeds, then the overrides of the command line."""
        found = [f"run={self.work}"]
        if self.data is not None:
            found.append(f"data.source={self.data}")
        seeds = list(range(1, self.seeds + 1))
        names = [student.name for student in load_config(self.config).students]
        found += [f"students.{name}.seeds={seeds}" for name in names]
        return [*found, *character_vectors.overrides(self.data, self.work), *self.overrides]


# --- what is measured --------------------------------------------------------------------------


def measure(request: Request) -> dict[str, Any]:
    """Make what the table needs, measure it, and return the benchmark's JSON."""
    overrides = request.all_overrides
    if request.table == "teachers":
        overrides += quality_teachers.TEACHERS_ALONE
    config = load_config(request.config, overrides)
    notes = [*request.suite.notes, *NOTES.get(request.table, ())]
    character_vectors.write_vectors(request.data, request.work)
    with ExitStack() as bundles:
        if request.table == "main":
            systems, sets = _main_table(request, config, bundles, notes)
        elif request.table == "teachers":
            systems, sets = _teachers_table(request, config, notes)
        else:
            systems, sets = _variant_table(request, config, _variants(request), bundles)
        speeds = _speeds(systems, sets, config.evaluate)
    taught = systems[0].role == "teacher"
    values = {
        system.name: _sizes(system)
        | _speed_values(speeds.get(system.name), ratios=taught)
        | {**system.figures}
        for system in systems
    }
    for name, rows in sets.items():
        for system, found in _accuracies(systems, name, rows, config.evaluate).items():
            values[system] |= found
    return {
        "machine": asdict(machine_facts(config.evaluate.threads)),
        "config": _facts(request, config, systems, sets, notes),
        "rows": _rows(values),
    }


def _main_table(
    request: Request, config: Config, bundles: ExitStack, notes: list[str]
) -> tuple[list[System], dict[str, Rows]]:
    run_stages(config, last="train-students")
    sets = read_sets(request.suite.sets, config, request.data)
    students = student_systems(config, sets, bundles)
    found = [*_teachers(config, sets), *students.values()]
    return found + control_systems(config, sets, request.seeds, notes), sets


def _teachers(config: Config, sets: Mapping[str, Rows]) -> list[System]:
    return [teacher_system(config, sets)] if needs_teacher(config) else []


def _variants(request: Request) -> tuple[Variant, ...]:
    variants: tuple[Variant, ...] = getattr(request.suite, request.table)
    if not variants:
        raise UserError(
            f"the suite {request.suite.name!r} has no {request.table}: name its variants in "
            "benchmarks/quality_suites.py"
        )
    return variants


def _teachers_table(
    request: Request, config: Config, notes: list[str]
) -> tuple[list[System], dict[str, Rows]]:
    candidates = quality_teachers.plan(
        request.config, request.all_overrides, _variants(request), request.seeds
    )
    quality_teachers.make(candidates)
    notes += quality_teachers.notes(candidates)
    sets = read_sets(quality_teachers.SETS, candidates[0].runs[0], request.data)
    return quality_teachers.candidate_systems(candidates, sets), sets


def _variant_table(
    request: Request, config: Config, variants: Sequence[Variant], bundles: ExitStack
) -> tuple[list[System], dict[str, Rows]]:
    lines, places = plan(config, request.config, request.all_overrides, variants)
    made = make(config, lines)
    sets = read_sets(request.suite.sets, config, request.data)
    found = _teachers(config, sets)
    others = {line.teacher.ensemble for line in made if needs_teacher(line)}
    for size in sorted(others - {config.teacher.ensemble}):
        line = next(line for line in made if needs_teacher(line) and line.teacher.ensemble == size)
        name = f"{size} teachers" if size > 1 else "1 teacher"
        found.append(teacher_system(line, sets, name))
    students = [student_systems(line, sets, bundles) for line in made]
    for variant in variants:
        place = places[variant.name]
        system = students[place.line][place.student, False]
        found.append(
            replace(
                system,
                name=variant.name,
                about=" ".join(variant.overrides),
                beside=variant.beside,
                part=variant.part,
                x=variant.x,
            )
        )
    return found, sets


def _speeds(
    systems: Sequence[System], sets: Mapping[str, Rows], settings: EvaluateConfig
) -> dict[str, Speed]:
    """Return the speed of every system, the first one being what others are compared with."""
    timed = {system.name: system.answer for system in systems if system.answer is not None}
    if not settings.speed_rounds or not timed:
        return {}
    rows = next(iter(sets.values()))
    pairs = None if rows.texts_b is None else list(zip(rows.texts, rows.texts_b, strict=True))
    with in_threads(settings.threads):
        return measure_speed(
            timed,
            pairs or rows.texts,
            single_texts=settings.speed_texts,
            bulk_texts=settings.speed_bulk_texts,
            rounds=settings.speed_rounds,
        )


# --- figures -----------------------------------------------------------------------------------


def _accuracies(
    systems: Sequence[System], name: str, rows: Rows, settings: EvaluateConfig
) -> dict[str, dict[str, float | None]]:
    """Return the figures of every system on one set, by system and metric."""
    from sklearn.metrics import f1_score

    predictions = {system.name: system.predictions[name] for system in systems}
    draws = draw_together(rows.labels, predictions, settings.bootstrap_samples, settings.seed)
    found: dict[str, dict[str, float | None]] = {}
    for system in systems:
        answers = predictions[system.name]
        scores = [f1_score(rows.labels, one, average="macro", zero_division=0) for one in answers]
        figures = _spread(f"{name}.accuracy", draws.accuracy(system.name))
        figures[f"{name}.accuracy_std"] = draws.deviation(system.name)
        figures[f"{name}.macro_f1"] = sum(map(float, scores)) / len(scores)
        if TEACHER in predictions and system.name != TEACHER:
            minus = draws.difference(system.name, TEACHER)
            figures |= _spread(f"{name}.minus_teacher", minus)
        if system.beside is not None:
            minus = draws.difference(system.name, system.beside)
            figures |= _spread(f"{name}.minus_beside", minus)
            if TEACHER in predictions and system.part is None:
                gap = draws.gap_closed(system.name, system.beside, TEACHER)
                figures |= _spread(f"{name}.gap_closed", gap) if gap else {}
        found[system.name] = figures
    return found


def _spread(metric: str, found: Interval) -> dict[str, float | None]:
    return {metric: found.value, f"{metric}_low": found.low, f"{metric}_high": found.high}


def _sizes(system: System) -> dict[str, float | None]:
    return {
        "seeds": len(next(iter(system.predictions.values()))),
        "parameters": system.parameters,
        "parameters_without_embedding": system.parameters_without_embedding,
        "bytes": system.bytes,
    }


def _speed_values(speed: Speed | None, *, ratios: bool) -> dict[str, float | None]:
    """Return the figures of speed; `ratios`: with those to the first system, a teacher."""
    if speed is None:
        return {}
    found: dict[str, float | None] = {
        "latency_p50_us": speed.p50,
        "latency_p99_us": speed.p99,
        "texts_per_second": speed.texts_per_second,
    }
    if ratios:
        found["times_faster_single"] = speed.times_faster
        found["times_faster_bulk"] = speed.times_throughput
    return found


def _rows(values: Mapping[str, Mapping[str, float | None]]) -> list[dict[str, Any]]:
    """Return a row per system and metric; the ratio is to the first system, within the table."""
    first = next(iter(values))
    rows = []
    for system, found in values.items():
        for metric, value in found.items():
            beside = values[first].get(metric)
            ratio = value / beside if value is not None and beside else None
            row = {"system": system, "metric": metric, "value": value}
            rows.append(row | {"ratio": ratio, "ratio_to": first})
    return rows


def _facts(
    request: Request,
    config: Config,
    systems: Sequence[System],
    sets: Mapping[str, Rows],
    notes: Sequence[str],
) -> dict[str, Any]:
    """Return what made the table. Where run and data lay says nothing to others."""
    settings = config.model_dump(
        mode="json", include={"data", "augment", "teacher", "logits", "students", "evaluate"}
    )
    if request.data is not None:
        settings["data"]["source"] = request.data.name
    settings["data"]["transfer"] = [Path(name).name for name in settings["data"]["transfer"]]
    if systems[0].role == "teacher":
        settings["teacher"]["model"] = systems[0].about
        if request.table == "teachers":
            del settings["teacher"]["seed"]  # these are the table's
    else:
        del settings["teacher"], settings["logits"]
    for student in settings["students"]:
        file = student["embedding"]["file"]
        student["embedding"]["file"] = file and Path(file).name
    return {
        "suite": request.suite.name,
        "table": request.table,
        "command": _command(request),
        "seeds": list(range(1, request.seeds + 1)),
        "sets": {name: len(rows) for name, rows in sets.items()},
        "systems": [
            {
                "name": system.name,
                "role": system.role,
                "about": system.about,
                "beside": system.beside,
                "part": system.part,
                "x": system.x,
                "engine": system.engine,
            }
            for system in systems
        ],
        "notes": list(notes),
        "settings": settings,
        "versions": versions(),
        "commit": commit(),
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _command(request: Request) -> str:
    """Return the command that makes the table, for others: without the paths of this machine."""
    words = ["python", "benchmarks/quality.py", "--suite", request.suite.name]
    words += ["--data", "FOLDER"] if request.data is not None else []
    words += ["--seeds", str(request.seeds)]
    words += [] if request.table == "main" else [f"--{request.table}"]
    words += [_for_others(override, request.data) for override in request.overrides]
    return shlex.join(words)


def _for_others(override: str, data: Path | None) -> str:
    """Return an override without the folders of this machine: files beside the suite's folder,
    `data`, as seen from there, of others the name.
    """

    def shown(found: re.Match[str]) -> str:
        path = Path(found[0])
        if data is not None and path.is_relative_to(data.parent):
            return os.path.relpath(path, data)
        return path.name

    return ABSOLUTE.sub(shown, override)


# --- command line ------------------------------------------------------------------------------


def requests(options: argparse.Namespace) -> list[Request]:
    """Return the tables that the command line asks for. Raises UserError where data is absent."""
    suites = list(SUITES.values()) if options.suite == "all" else [suite_named(options.suite)]
    found = []
    for suite in suites:
        if options.suite == "all" and options.table != "main" and not getattr(suite, options.table):
            say(f"{suite.name} has no {options.table}")
            continue
        config = CONFIGS / suite.config
        if not config.exists():
            raise UserError(f"{config} is missing: the suite {suite.name!r} needs it")
        found.append(
            Request(
                suite,
                options.table,
                config,
                _data_folder(suite, options.data),
                (options.work or Path("runs/quality")) / suite.name,
                options.seeds,
                tuple(options.overrides),
            )
        )
    return found


def _data_folder(suite: Suite, given: Path | None) -> Path | None:
    if suite.folder is None:
        return None
    above = given or (Path(os.environ[DATA]) if DATA in os.environ else None)
    if above is None:
        raise UserError(
            f"the suite {suite.name!r} reads the folder {suite.folder!r}: say with --data FOLDER, "
            f"or in the environment variable {DATA}, in which folder that lies"
        )
    if not (above / suite.folder).is_dir():
        raise UserError(
            f"{above} has no folder {suite.folder!r}: bring the data of the suite {suite.name!r} "
            "there (train, validation and test as TSV), or give another folder with --data"
        )
    return (above / suite.folder).resolve()


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", help=f"{', '.join(SUITES)}, or all")
    parser.add_argument(
        "--seeds", type=int, default=5, help="1 … N: of every student, or teacher with --teachers"
    )
    parser.add_argument("--data", type=Path, help=f"folder of the data folders; else ${DATA}")
    parser.add_argument("--work", type=Path, help="folder of the runs, one below it a suite")
    parser.add_argument("--json", type=Path, help="with --suite all: a folder")
    table = parser.add_mutually_exclusive_group()
    for name in TABLES[1:]:
        table.add_argument(f"--{name}", dest="table", action="store_const", const=name)
    parser.set_defaults(table="main")
    parser.add_argument("--write-docs", action="store_true", help="write docs/results.md")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    options = parser.parse_intermixed_args(arguments)
    if options.suite is None and not options.write_docs:
        parser.error("nothing to do: give --suite or --write-docs")
    if options.seeds < 1:
        parser.error("--seeds is at least 1")
    return options


def main() -> None:
    """Make the tables that were asked for, print them, and write JSON and documents."""
    options = parse()
    try:
        for request in requests(options) if options.suite else []:
            found = measure(request)
            sys.stdout.write("\n".join(quality_docs.tables(found)) + "\n")
            if options.json:
                name = quality_docs.file_name(request.suite.name, request.table)
                write_json(options.json / name if options.suite == "all" else options.json, found)
        if options.write_docs:
            quality_docs.write_docs(
                REPOSITORY / "benchmarks" / "results", REPOSITORY / "docs" / "results.md"
            )
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()

"""The study of teachers: the suite's own beside variants of it, each trained with several seeds.

Every teacher and seed has a run folder of its own, `teachers/FINGERPRINT` in the suite's run, named
after its settings: what is finished there is reused. An ensemble is put together from the runs of
its members, which are those of the single teachers where these have the same settings and seeds.
Teachers are not timed here; the main table has the speed of the suite's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from quality_suites import CONFIGURED, Overrides, Variant
from quality_systems import System, teacher_predictions
from quality_variants import line_settings, link, share_answers

from bert_kd.config import Config
from bert_kd.config_file import load_config
from bert_kd.data.rows import Rows
from bert_kd.errors import UserError
from bert_kd.progress import say
from bert_kd.stages import run_stages
from bert_kd.store import RunFolder, fingerprint, read_json

SETS = ("test", "validation")
TEACHERS_ALONE: Overrides = (
    "augment.views=0",
    "data.transfer=[]",
    "logits.teachers=[]",
    "teacher.ensemble=1",
)
"""No views, no files of a pool, no caches of others: students, who need them, are not trained. And
single teachers, unless a variant says otherwise.
"""
NOTES = (
    "All but ensembles are single teachers, also where the configuration has an ensemble. Each is "
    "trained once a seed (`teacher.seed`). Checkpoints are chosen on validation; a variant that is "
    "to be taken over is chosen there too, as the best of many on test is best partly by luck.",
)
NOTE_ON_ONE_SEED = (
    "One seed each: intervals are over rows alone, and say nothing of what another seed would give."
)
NOTE_ON_ENSEMBLES = (
    "The members of an ensemble of n have the seeds s, s + 1, …, s + n − 1, so that neighbouring "
    "seeds share members, and the interval says less of seeds than those of single teachers."
)


@dataclass(frozen=True)
class Candidate:
    """A row of the table: its variant (None: as configured) and its runs, one a seed."""

    variant: Variant | None
    runs: tuple[Config, ...]

    @property
    def name(self) -> str:
        return self.variant.name if self.variant else CONFIGURED


def plan(
    path: Path, overrides: Sequence[str], variants: Sequence[Variant], seeds: int
) -> list[Candidate]:
    """Return the teacher of the configuration `path` with `overrides`, then its variants, each with
    its runs for the seeds 1 … `seeds`.

    Variants that come to the same settings share their runs. Raises UserError for a teacher that is
    not trained.
    """
    found = []
    for variant in (None, *variants):
        changes = variant.overrides if variant else ()
        config = load_config(path, [*overrides, *TEACHERS_ALONE, *changes])
        if not config.teacher.fine_tune:
            raise UserError(
                "a study of teachers trains them: leave out teacher.fine_tune = false, or the "
                "table --teachers"
            )
        runs = (_with_seed(config, seed, config.teacher.ensemble) for seed in range(1, seeds + 1))
        found.append(Candidate(variant, tuple(_in_own_folder(run, config.run) for run in runs)))
    return found


def make(candidates: Sequence[Candidate]) -> None:
    """Run stages 01 to 03 for every candidate and seed; what is finished stands."""
    for candidate in candidates:
        for run in candidate.runs:
            say(f"── teacher {candidate.name}, seed {run.teacher.seed}: {run.run}")
            if run.teacher.ensemble > 1:
                _make_members(run)
            run_stages(run, last="cache-logits")


def _make_members(ensemble: Config) -> None:
    """Make the teachers of an ensemble in runs of their own and let it use them."""
    for number, place in enumerate(RunFolder(ensemble.run).teachers(ensemble.teacher.ensemble)):
        single = _with_seed(ensemble, ensemble.teacher.seed + number, 1)
        single = _in_own_folder(single, ensemble.run.parents[1])
        run_stages(single, last="cache-logits")
        link(RunFolder(single.run).teacher, place)
        share_answers(RunFolder(single.run), RunFolder(ensemble.run))


def candidate_systems(candidates: Sequence[Candidate], sets: Mapping[str, Rows]) -> list[System]:
    """Return the row of each candidate, whose runs are made; none of them is to be timed."""
    return [_system(candidate, sets) for candidate in candidates]


def notes(candidates: Sequence[Candidate]) -> list[str]:
    """Return what is to be said below the table."""
    if len(candidates[0].runs) == 1:
        return [*NOTES, NOTE_ON_ONE_SEED]
    ensembles = any(candidate.runs[0].teacher.ensemble > 1 for candidate in candidates)
    return [*NOTES, *([NOTE_ON_ENSEMBLES] if ensembles else [])]


def _system(candidate: Candidate, sets: Mapping[str, Rows]) -> System:
    answers = [teacher_predictions(run, sets) for run in candidate.runs]
    run = candidate.runs[0]
    folders = RunFolder(run.run).teachers(run.teacher.ensemble)
    first = [read_json(folder / "teacher.json") for folder in folders]
    variant = candidate.variant
    return System(
        candidate.name,
        "teacher",
        {name: np.concatenate([one[name] for one in answers]) for name in sets},
        sum(member["trainable"]["parameters"] for member in first),
        None,
        sum(file.stat().st_size for folder in folders for file in folder.glob("*.safetensors")),
        None,
        " ".join(variant.overrides) if variant else str(first[0]["base"]),
        beside=variant.beside if variant else None,
        part=variant.part if variant else None,
        figures={
            "trainable_parameters": sum(member["trainable"]["trainable"] for member in first),
        },
    )


def _with_seed(config: Config, seed: int, members: int) -> Config:
    changed = config.teacher.model_copy(update={"seed": seed, "ensemble": members})
    return config.model_copy(update={"teacher": changed})


def _in_own_folder(config: Config, main: Path) -> Config:
    """Return `config` with the run folder below that of `main` that stands for its settings."""
    folder = main / "teachers" / fingerprint(*line_settings(config))
    return config.model_copy(update={"run": folder})

"""The teachers that a run learns from, as one: which caches, how they are combined, how far each
was calibrated.

Students learn from these answers and are measured beside them, so both ask here. Not here: how
caches are read and combined (`combine.py`) and how a temperature is fitted (`calibration.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bert_kd.config import LogitsConfig, TeacherSource
from bert_kd.data.keys import Keys
from bert_kd.data.rows import read_rows
from bert_kd.logits.cache import Answers
from bert_kd.logits.calibration import Calibration, calibrate
from bert_kd.logits.combine import read_teachers


@dataclass(frozen=True)
class Panel:
    """One or several teachers' caches; `calibrations` is one a teacher, or empty."""

    config: LogitsConfig
    sources: tuple[TeacherSource, ...]
    labels: tuple[str, ...]
    calibrations: tuple[Calibration, ...] = ()

    def answers(self, keys: Keys, *, features: bool = False) -> Answers:
        """Return the answers to `keys`, columns in the order of `labels`; of a single teacher also
        its features, if `features`.

        Raises CacheError where a cache is missing or incomplete, or names other classes.
        """
        return read_teachers(
            self.sources,
            self.labels,
            keys,
            self.config.combine,
            features=features,
            temperatures=[calibration.temperature for calibration in self.calibrations],
        )


def open_panel(
    config: LogitsConfig,
    sources: Sequence[TeacherSource],
    labels: Sequence[str],
    validation: Path,
) -> Panel:
    """Return the panel of `sources`, calibrated on the gold labels of the split `validation` if the
    configuration asks for it.

    Raises CacheError where the caches cannot be calibrated there.
    """
    calibrations: tuple[Calibration, ...] = ()
    if config.calibrate and sources:
        rows = read_rows(validation)
        calibrations = calibrate(sources, labels, rows.keys, rows.labels)
    return Panel(config, tuple(sources), tuple(labels), calibrations)

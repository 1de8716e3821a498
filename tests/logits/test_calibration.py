"""A teacher's temperature: the best one, found on gold labels, applied to each teacher alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from known_answers import LABELS, keys

from bert_kd.config import TeacherSource
from bert_kd.errors import CacheError
from bert_kd.logits.cache import LogitCache, Manifest
from bert_kd.logits.calibration import calibrate, fit_temperature
from bert_kd.logits.combine import read_teachers, softmax


def drawn(rows: int, seed: int = 0):
    """Return logits that are calibrated, and gold labels drawn from their probabilities."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 2, (rows, 3)).astype(np.float32)
    uniform = generator.random((rows, 1))
    gold = (softmax(logits).cumsum(axis=1) < uniform).sum(axis=1)
    return logits, gold


def nll(logits, gold, temperature: float) -> float:
    probabilities = softmax(logits.astype(np.float64) / temperature)
    return float(-np.log(probabilities[np.arange(len(gold)), gold]).mean())


def source(folder: Path, logits, labels=LABELS) -> TeacherSource:
    LogitCache.create(folder, Manifest(folder.name, labels)).append(keys(len(logits)), logits)
    return TeacherSource(folder=folder)


def test_the_temperature_that_made_a_teacher_too_sure_is_found_again():
    logits, gold = drawn(20_000)
    found = fit_temperature(3 * logits, gold, "one")
    assert found.temperature == pytest.approx(3, rel=0.05)
    assert found.nll_after == pytest.approx(nll(logits, gold, 1.0), rel=0.01)
    # … and so is that of one that is not sure enough.
    assert fit_temperature(logits / 4, gold, "one").temperature == pytest.approx(1 / 4, rel=0.05)


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_no_other_temperature_has_a_smaller_nll(scale: float):
    logits, gold = drawn(40, seed=3)
    found = fit_temperature(logits * np.float32(scale), gold, "one")
    assert found.nll_before == pytest.approx(nll(logits, gold, 1 / scale), rel=1e-5)
    assert found.nll_after == pytest.approx(nll(logits * scale, gold, found.temperature), rel=1e-5)
    for factor in (0.5, 0.9, 0.99, 1.01, 1.1, 2.0):
        assert found.nll_after < nll(logits * scale, gold, found.temperature * factor)


def test_four_rows_by_hand():
    # Margin 2, right on three rows of four: the best is σ(2/T) = 3/4, T = 2 / ln 3.
    logits = np.float32([[2, 0], [2, 0], [0, 2], [0, 2]])
    found = fit_temperature(logits, np.array([0, 0, 1, 0]), "one")
    assert found.temperature == pytest.approx(2 / np.log(3), rel=1e-5)
    assert (found.rows, found.wrong) == (4, 1)
    said = found.describe()
    assert "is 1.82: NLL 0.627 -> 0.562 on 4 labelled validation rows, too few" in said


def test_an_always_right_teacher_is_left_as_it_is():
    logits = np.float32([[2, 0], [0, 3], [1, 1]])
    found = fit_temperature(logits, np.array([0, 1, 0]), "one")
    assert found.temperature == 1 and found.nll_after == found.nll_before
    assert "stays 1: all 3 labelled validation rows are answered right" in found.describe()


def test_a_teacher_that_is_worse_than_chance_is_refused():
    logits, gold = drawn(500)
    with pytest.raises(CacheError, match="no better than chance.*logits.calibrate = false"):
        fit_temperature(-logits, gold, "one")


def test_what_cannot_be_calibrated_is_refused(tmp_path: Path):
    logits, gold = drawn(30)
    teacher = source(tmp_path / "one", logits)
    with pytest.raises(CacheError, match="no validation row has a gold label"):
        calibrate([teacher], LABELS, keys(30), np.full(30, -1))
    with pytest.raises(CacheError, match="31 rows"):
        calibrate([teacher], LABELS, keys(31), np.append(gold, 0))
    broken = logits.copy()
    broken[4, 1] = np.nan
    with pytest.raises(CacheError, match="are not finite"):
        fit_temperature(broken, gold, "one")


def test_rows_without_a_gold_label_do_not_count(tmp_path: Path):
    logits, gold = drawn(60)
    teacher = source(tmp_path / "one", logits)
    some = np.where(np.arange(60) < 55, gold, -1)
    (found,) = calibrate([teacher], LABELS, keys(60), some)
    assert found == fit_temperature(logits[:55], gold[:55], "one")
    assert "too few" not in found.describe()


def test_each_teacher_has_its_own_temperature_before_they_are_combined(tmp_path: Path):
    logits, gold = drawn(400)
    other, _ = drawn(400, seed=7)
    mixed = (logits + other / 4).astype(np.float32)
    one = source(tmp_path / "one", logits * 5)
    # The second names its classes in another order.
    two = source(tmp_path / "two", mixed[:, ::-1] / 2, LABELS[::-1])
    found = calibrate([one, two], LABELS, keys(400), gold)
    assert [calibration.teacher for calibration in found] == ["one", "two"]
    assert found[0] == fit_temperature(logits * 5, gold, "one")
    assert found[1] == fit_temperature(mixed / 2, gold, "two")
    temperatures = [calibration.temperature for calibration in found]
    single = read_teachers([one], LABELS, keys(400), "logits", temperatures=temperatures[:1])
    assert single.logits == pytest.approx(logits * 5 / temperatures[0], rel=1e-5)
    assert (single.logits.argmax(axis=1) == logits.argmax(axis=1)).all()
    both = read_teachers([one, two], LABELS, keys(400), "probabilities", temperatures=temperatures)
    expected = softmax(logits * 5 / temperatures[0]) + softmax(mixed / 2 / temperatures[1])
    assert softmax(both.logits) == pytest.approx(expected / 2, abs=1e-5)

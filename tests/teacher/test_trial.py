"""Who is tried before being trained at length, and what becomes of it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from small_teachers import as_rows, settings, small_data, write_data

from bert_kd.config import TeacherConfig
from bert_kd.data.prepare import Prepared
from bert_kd.store import RunFolder
from bert_kd.teacher import finetune as finetuning
from bert_kd.teacher import trial
from bert_kd.teacher.card import TRIED
from bert_kd.teacher.finetune import finetune
from bert_kd.teacher.trainer import Plan
from bert_kd.teacher.trial import finetune_if_worth_it

SHORT = 24
"""Examples of a trial here: 3 steps of 8."""


@pytest.fixture(autouse=True)
def few_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bert_kd.teacher.trainer.TRIED_EXAMPLES", SHORT)


def auto(base, **changes: object) -> TeacherConfig:
    return settings(base, epochs="auto", **changes)


def chinese(run: RunFolder, *, telling: bool, rows: int = 48) -> Prepared:
    """Write texts that the small teacher can't read, whose words tell the class; unless `telling`,
    validation's have the other one.
    """
    gold = np.arange(rows) % 2
    words = [("好", "差")[label] for label in gold.tolist()]
    texts = [f"{word}很大 {number}" for number, word in enumerate(words)]
    judging = as_rows(texts, gold if telling else 1 - gold)
    return write_data(run, {"train": as_rows(texts, gold), "validation": judging})


def test_one_that_cannot_read_is_trained_no_longer_than_a_linear_model_needs_to_beat_it(
    base, run, capfd
):
    facts = finetune_if_worth_it(auto(base), run, chinese(run, telling=True), run.teacher)
    assert facts["steps"] == 3 and facts[TRIED]
    said = capfd.readouterr().err
    assert "it trains for 3 steps" in said and "a linear model of n-grams on 100.0%" in said
    assert "it is not trained any longer" in said
    assert json.loads((run.teacher / "teacher.json").read_text())[TRIED]


def test_one_that_a_linear_model_does_not_beat_is_trained_in_full(base, run, capfd):
    config, prepared = auto(base), chinese(run, telling=False, rows=16)
    facts = finetune_if_worth_it(config, run, prepared, run.teacher)
    assert facts["steps"] == Plan.of(config, 16).steps and TRIED not in facts
    assert "it is trained in full" in capfd.readouterr().err
    assert TRIED not in json.loads((run.teacher / "teacher.json").read_text())


def test_one_that_can_read_is_trained_as_ever(base, run, capfd, monkeypatch):
    def unasked(*given: object) -> None:
        raise AssertionError("nothing is to be compared")

    monkeypatch.setattr(trial, "compare_with_linear", unasked)
    config = auto(base)
    facts = finetune_if_worth_it(config, run, small_data(run), run.teacher)
    assert facts["steps"] == Plan.of(config, 48).steps and TRIED not in facts
    assert "linear model" not in capfd.readouterr().err


@pytest.mark.parametrize("changes", [{"epochs": 3}, {}])
def test_epochs_that_are_given_are_trained(base, run, changes):
    """And without a trial all are, whatever the texts."""
    config = settings(base, **{"epochs": "auto", **changes})
    facts = finetune(config, run, chinese(run, telling=True), trial=bool(changes))
    assert facts["steps"] == Plan.of(config, 48).steps and TRIED not in facts


@pytest.mark.parametrize(
    ("text", "tried"),
    [("好 房 大 差", True), ("the film was 好", False), ("the 好 差", True), ("房", True)],
)
def test_what_the_tokenizer_adds_is_no_text(base, run, text: str, tried: bool):
    data = as_rows([f"{text}{' ' * number}" for number in range(16)], np.arange(16) % 2)
    prepared = write_data(run, {"train": data, "validation": data})
    assert finetune(auto(base), run, prepared, trial=True).get(TRIED, False) is tried


def test_a_trial_caches_no_states(base, run, monkeypatch):
    def uncalled(*given: object, **named: object) -> None:
        raise AssertionError("states of rows that are never read")

    monkeypatch.setattr(finetuning, "cache_states", uncalled)
    config = auto(base, cache_prefix=True)
    assert finetune(config, run, chinese(run, telling=True), trial=True)[TRIED]


def test_checkpoints_of_a_trial_are_not_those_of_a_training(base, run):
    config, prepared = auto(base), chinese(run, telling=True)
    names = {finetuning._fingerprint(config, prepared, tried) for tried in (True, False)}
    assert len(names) == 2

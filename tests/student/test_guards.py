"""Losses that two classes, several teachers or caches without features leave empty."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bert_kd.config import LogitsConfig, LossConfig, StudentConfig, TeacherSource
from bert_kd.errors import StudentError
from bert_kd.logits.cache import LogitCache, Manifest
from bert_kd.student.guards import check_loss

OWN = LogitsConfig()
OWN_WITH_FEATURES = LogitsConfig(features=True)


def student(**loss: Any) -> StudentConfig:
    return StudentConfig(name="base", loss=LossConfig.model_validate(loss))


def cache(folder: Path, features: int | None) -> Path:
    LogitCache.create(folder, Manifest("one", ("a", "b"), feature_size=features))
    return folder


def refused(config: StudentConfig, logits: LogitsConfig, caches: list[Path], teachers: int) -> str:
    with pytest.raises(StudentError) as caught:
        check_loss(config, 2, logits, caches, teachers)
    return str(caught.value)


def test_the_remedies_for_two_classes_are_accepted() -> None:
    """What a message says to write is read by the configuration and passes the check."""
    given: dict[str, Any] = {"soft": "kl", "standardise": True, "temperature": 3.0}
    assert "leave loss.standardise out" in refused(student(**given), OWN, [], 1)
    del given["standardise"]
    check_loss(student(**given), 2, OWN, [], 1)
    given = {"soft": "dist", "temperature": 3.0, "dist_inter_weight": 1.0}
    assert 'set loss.soft = "kl", and leave its dist_ keys out' in refused(
        student(**given), OWN, [], 1
    )
    check_loss(student(soft="kl", temperature=3.0), 2, OWN, [], 1)


def test_three_classes_or_no_soft_term_leave_nothing_empty() -> None:
    check_loss(student(soft="dist"), 3, OWN, [], 1)
    check_loss(student(soft="dist", soft_weight=0.0), 2, OWN, [], 1)


def test_the_remedy_for_lacking_features_leads_through(tmp_path: Path) -> None:
    wanting = student(feature_weight=1.0)
    message = refused(wanting, OWN, [], 1)
    assert "set logits.features = true; or set feature_weight = 0" in message
    check_loss(wanting, 2, OWN_WITH_FEATURES, [], 1)
    # Answers that are there without features must go: stage 03 would refuse to add to them.
    folder = cache(tmp_path / "plain", None)
    message = refused(wanting, OWN, [folder], 1)
    assert f"set logits.features = true, remove {folder}, run cache-logits" in message
    assert f"remove {folder} and run cache-logits" in refused(
        wanting, OWN_WITH_FEATURES, [folder], 1
    )
    check_loss(wanting, 2, OWN, [cache(tmp_path / "whole", 4)], 1)


def test_given_caches_must_have_features_and_be_one(tmp_path: Path) -> None:
    wanting = student(feature_weight=1.0)
    folder = cache(tmp_path / "plain", None)
    given = LogitsConfig(teachers=(TeacherSource(folder=folder),))
    assert "name in logits.teachers a cache that" in refused(wanting, given, [folder], 1)
    assert "name one in logits.teachers" in refused(wanting, given, [folder, folder], 2)
    assert "set teacher.ensemble = 1" in refused(wanting, OWN_WITH_FEATURES, [], 3)
    check_loss(wanting, 2, given, [tmp_path / "not yet there"], 1)

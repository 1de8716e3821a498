from __future__ import annotations

from pathlib import Path

import pytest
from small_teachers import LABELS, small_data, write_base

from bert_kd.store import RunFolder
from bert_kd.teacher.card import Card
from bert_kd.teacher.model import Teacher, load_base, open_teacher, save_teacher


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a pretrained encoder of one layer."""
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def two_layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a pretrained encoder of two layers."""
    return write_base(tmp_path_factory.mktemp("two-layers"), layers=2)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


@pytest.fixture
def trained(base: Path, run: RunFolder) -> Teacher:
    """A teacher in `run.teacher` with a head nobody trained, and data to go with it."""
    from small_teachers import settings

    small_data(run)
    teacher = load_base(settings(base), LABELS)
    save_teacher(run.teacher, teacher, Card(LABELS, False, 16), {"base": "small"})
    return open_teacher(run.teacher)

"""Bundles of small students with random weights."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_students import make_bundle


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of single texts."""
    return make_bundle(tmp_path_factory.mktemp("single"))


@pytest.fixture(scope="session")
def pair_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of pairs."""
    return make_bundle(tmp_path_factory.mktemp("pair"), pair=True)

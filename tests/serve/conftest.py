"""Predictors and the application that serves them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

# The small students of the runtime's tests are served here.
sys.path.insert(0, str(Path(__file__).parents[1] / "runtime"))

from small_students import make_bundle

from bert_kd.runtime.predictor import load


@pytest.fixture(scope="session")
def bundle(tmp_path_factory):
    """A bundle of single texts, called `small`."""
    return make_bundle(tmp_path_factory.mktemp("single"))


@pytest.fixture(scope="session")
def pair_bundle(tmp_path_factory):
    """A bundle of pairs, called `twin`."""
    return make_bundle(tmp_path_factory.mktemp("pair"), name="twin", pair=True)


@pytest.fixture(scope="session")
def single(bundle):
    return load(bundle, threads=1)


@pytest.fixture(scope="session")
def pair(pair_bundle):
    return load(pair_bundle, threads=1)

"""Predictors, and the application that serves them, without a socket."""

from __future__ import annotations

import pytest
from servers import Harness
from small_students import make_bundle

from bert_kd.runtime.predictor import load


@pytest.fixture(scope="session")
def bundle(tmp_path_factory):
    """A bundle of single texts, called `small`."""
    return make_bundle(tmp_path_factory.mktemp("single"))


@pytest.fixture(scope="session")
def other_bundle(tmp_path_factory):
    """A bundle also called `small`, which answers otherwise."""
    return make_bundle(tmp_path_factory.mktemp("other"), hidden=9)


@pytest.fixture(scope="session")
def pair_bundle(tmp_path_factory):
    """A bundle of pairs, called `twin`."""
    return make_bundle(tmp_path_factory.mktemp("pair"), name="twin", pair=True)


@pytest.fixture(scope="session")
def single(bundle):
    return load(bundle, threads=1)


@pytest.fixture(scope="session")
def other(other_bundle):
    return load(other_bundle, threads=1)


@pytest.fixture(scope="session")
def pair(pair_bundle):
    return load(pair_bundle, threads=1)


@pytest.fixture(scope="module")
def harness(bundle, pair_bundle):
    """The application with both bundles."""
    with Harness([bundle, pair_bundle]) as harness:
        yield harness

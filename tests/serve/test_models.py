"""Replaced bundles are served, whole ones alone, and nobody notices the change."""

from __future__ import annotations

import json
import shutil

import pytest
from servers import Harness

from bert_kd.errors import BundleError
from bert_kd.serve.models import read_sources
from bert_kd.store import writing_folder


def put(source, folder):
    """Put a copy of a bundle in the place of `folder`, as the export does."""
    with writing_folder(folder) as aside:
        shutil.copytree(source, aside, dirs_exist_ok=True)


def score(predictor):
    return predictor("bad")[0]["score"]


@pytest.fixture
def place(bundle, tmp_path):
    """The folder of a bundle that can be replaced."""
    put(bundle, tmp_path / "served")
    return tmp_path / "served"


@pytest.fixture
def changing(place):
    with Harness([place]) as harness:
        yield harness


def reload(harness):
    """Look for replaced bundles; return what came of it."""
    return harness.loop.run_until_complete(harness.models.reload(harness.executor))


def asked(harness):
    answer = harness.post("/predict", {"inputs": "bad"})
    assert answer.status == 200
    return answer.json()[0]["score"]


def test_a_replaced_bundle_is_served(changing, place, other_bundle, single, other):
    assert score(single) != pytest.approx(score(other), abs=1e-3)
    assert reload(changing) == []
    assert asked(changing) == pytest.approx(score(single), abs=1e-6)
    put(other_bundle, place)
    (done,) = reload(changing)
    assert (done.name, done.refused) == ("small", None)
    assert asked(changing) == pytest.approx(score(other), abs=1e-6)
    assert reload(changing) == []


def spoil_weights(place):
    for path in place.glob("*"):
        if path.suffix in (".safetensors", ".onnx"):
            data = bytearray(path.read_bytes())
            data[-1] ^= 1
            path.write_bytes(data)


BAD = {
    "damaged weights": (spoil_weights, "checksum"),
    "no JSON": (lambda place: (place / "bundle.json").write_text("{"), "not JSON"),
    "no tokenizer": (lambda place: (place / "tokenizer.json").unlink(), "missing"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_bundle_is_refused_and_the_old_goes_on(
    changing, place, other_bundle, single, other, tmp_path, case
):
    spoil, message = BAD[case]
    shutil.copytree(other_bundle, tmp_path / "bad")
    spoil(tmp_path / "bad")
    put(tmp_path / "bad", place)
    (done,) = reload(changing)
    assert message in done.refused
    assert asked(changing) == pytest.approx(score(single), abs=1e-6)
    assert reload(changing) == []  # it is not tried again and again
    put(other_bundle, place)
    (done,) = reload(changing)
    assert done.refused is None
    assert asked(changing) == pytest.approx(score(other), abs=1e-6)


def test_a_bundle_of_another_name_is_refused(changing, place, pair_bundle, single):
    put(pair_bundle, place)
    (done,) = reload(changing)
    assert "now holds the bundle 'twin'" in done.refused
    assert asked(changing) == pytest.approx(score(single), abs=1e-6)


def test_a_bundle_under_a_given_name(place, pair_bundle, other_bundle, other, tmp_path):
    """Several runs' bundles have one name; whatever comes to lie there keeps the given one."""
    with Harness([f"mine={place}", place]) as harness:
        assert harness.models.names == ("mine", "small")
        assert harness.get("/info").json()["bundles"][0]["name"] == "mine"
        put(other_bundle, place)
        assert [(done.name, done.refused) for done in reload(harness)] == [
            ("mine", None), ("small", None),
        ]  # fmt: skip
        answer = harness.post("/models/mine", {"inputs": "bad"}).json()
        assert answer[0][0]["score"] == pytest.approx(score(other), abs=1e-6)
        put(pair_bundle, place)
        first, second = reload(harness)
        assert first.refused is None and "now holds the bundle 'twin'" in second.refused
        asked = {"inputs": {"text": "a", "text_pair": "b"}, "model": "mine"}
        assert harness.post("/predict", asked).status == 200
        assert 'model="mine"' in harness.get("/metrics").text


def test_what_names_a_source(bundle, tmp_path):
    odd = tmp_path / "a=b"
    put(bundle, odd)
    found = read_sources([str(odd), f"a.b-1={odd}"])
    assert [(one.name, one.folder, one.given) for one in found] == [
        ("small", str(odd), False), ("a.b-1", str(odd), True),
    ]  # fmt: skip
    for asked, message in (
        ([f"a b={bundle}"], "'a b' is no name"),
        ([f"={bundle}"], "'' is no name"),
        ([f"a={tmp_path}/none"], "none is not a bundle"),
        ([f"a={bundle}", f"a={odd}"], "two of the bundles are called 'a'"),
        ([], "give at least one"),
    ):
        with pytest.raises(BundleError, match=message):
            read_sources(asked)


def test_a_bundle_that_is_away_for_a_moment(changing, place, single):
    place.rename(place.with_name("away"))
    assert reload(changing) == []
    assert asked(changing) == pytest.approx(score(single), abs=1e-6)
    place.with_name("away").rename(place)
    assert reload(changing) == []


def test_what_was_asked_before_is_answered_by_the_old_one(
    changing, place, other_bundle, single, other
):
    old = changing.models["small"].batcher
    old._scheduled = True  # it waits, and is run by hand below
    _, before = changing.start(
        "POST", "/predict", b'{"inputs": "bad"}', {"content-type": "application/json"}
    )
    put(other_bundle, place)
    reload(changing)
    assert asked(changing) == pytest.approx(score(other), abs=1e-6)
    assert not before.done()
    old._run()
    found = json.loads(changing.loop.run_until_complete(before).body)
    assert found[0]["score"] == pytest.approx(score(single), abs=1e-6)


def test_a_bundle_replaced_while_it_is_loaded_is_loaded_again(
    place, other_bundle, other, monkeypatch
):
    """Facts and tokenizer of one version must not meet the weights of another."""
    from bert_kd.runtime import predictor

    read = predictor.read_bundle
    replaced = []

    def replace_after_reading(folder):
        facts = read(folder)
        if not replaced:
            replaced.append(put(other_bundle, place))
        return facts

    monkeypatch.setattr(predictor, "read_bundle", replace_after_reading)
    with Harness([place]) as harness:
        assert asked(harness) == pytest.approx(score(other), abs=1e-6)


def test_two_bundles_of_one_name(bundle, other_bundle):
    with pytest.raises(BundleError, match="two of the bundles are called 'small'"):
        Harness([bundle, other_bundle])


def test_whatever_goes_wrong_the_old_one_goes_on(changing, place, other_bundle, single):
    def broken(_folder):
        raise PermissionError("not yours")

    changing.models._open = broken
    put(other_bundle, place)
    (done,) = reload(changing)
    assert "not yours" in done.refused
    assert asked(changing) == pytest.approx(score(single), abs=1e-6)
    assert reload(changing) == []

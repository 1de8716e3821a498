"""The cache finds answers by key, in any order, and grows without losing any."""

from __future__ import annotations

import dataclasses
import json
import os
import tracemalloc

import numpy as np
import pandas
import pyarrow.parquet as pq
import pytest
from known_answers import LABELS, answers, features, keys

from bert_kd.errors import CacheError
from bert_kd.logits import shard
from bert_kd.logits.cache import LogitCache, Manifest


def test_answers_come_back_in_the_order_asked_for(filled):
    cache = filled(40, 60)
    order = np.random.default_rng(1).permutation(100)
    found = cache.lookup(keys(100)[order])
    assert (found.logits == answers(100)[order]).all()
    assert found.logits.dtype == np.float32
    assert found.features is None


def test_subsets_and_repeats_are_answered(filled):
    cache = filled(40, 60)
    rows = np.array([99, 3, 3, 57, 3, 99, 0])
    assert (cache.lookup(keys(100)[rows]).logits == answers(100)[rows]).all()
    assert cache.lookup(keys(0)).logits.shape == (0, 3)


def test_features_come_with_the_logits(folder):
    cache = LogitCache.create(folder, Manifest("f", LABELS, feature_size=4))
    cache.append(keys(10), answers(10), features(10))
    cache.append(keys(10, 10), answers(10, start=10), features(10, start=10))
    rows = np.array([15, 2, 2, 9])
    found = cache.lookup(keys(20)[rows])
    assert found.features is not None and found.features.dtype == np.float16
    assert (found.features == features(20)[rows]).all()
    assert (found.logits == answers(20)[rows]).all()
    assert cache.lookup(keys(20), features=False).features is None


def test_missing_says_which_rows_have_no_answer(filled):
    cache = filled(5, 5)
    assert cache.missing(keys(12)).tolist() == [False] * 10 + [True] * 2
    cache.append(keys(1, 11), answers(1))
    assert cache.missing(keys(12)).tolist() == [False] * 10 + [True, False]
    assert cache.missing(keys(0)).tolist() == []


def test_missing_notices_other_writers_and_removed_shards(filled):
    cache = filled(5)
    assert cache.missing(keys(8)).sum() == 3
    path = LogitCache.open(cache.folder).append(keys(2, 5), answers(2))
    assert cache.missing(keys(8)).sum() == 1
    path.unlink()
    assert cache.missing(keys(8)).sum() == 3


def test_known_keys_are_read_once(filled, monkeypatch):
    cache = filled(5, 5, 5)
    assert not cache.missing(keys(15)).any()
    monkeypatch.setattr(shard.Shard, "keys", lambda *_: pytest.fail("read again"))
    assert not cache.missing(keys(15)).any()
    cache.append(keys(5, 15), answers(5))
    assert not cache.missing(keys(20)).any()


def test_lookup_counts_what_is_missing_and_names_the_stage(filled):
    cache = filled(5)
    with pytest.raises(CacheError) as error:
        cache.lookup(np.concatenate([keys(8), keys(1, 7)]))
    assert "4 of 9 rows" in str(error.value)
    assert keys(1, 5)[0].tobytes().hex() in str(error.value)
    assert "bert-kd cache-logits" in str(error.value)


def test_the_first_of_two_answers_wins(filled):
    cache = filled(10)
    cache.append(keys(10), answers(10) + 1)
    cache.append(keys(10), answers(10) + 2)
    assert (LogitCache.open(cache.folder).lookup(keys(10)).logits == answers(10)).all()


def test_the_first_of_two_answers_in_a_shard_wins(filled):
    cache = filled(10)
    both = np.concatenate([keys(5, 20), keys(5, 20)])
    cache.append(both, np.concatenate([answers(5), answers(5) + 1]))
    assert (cache.lookup(keys(5, 20)).logits == answers(5)).all()


def test_a_second_run_opens_what_the_first_made(folder, manifest):
    LogitCache.create(folder, manifest).append(keys(3), answers(3))
    again = LogitCache.create(folder, dataclasses.replace(manifest, facts={"model": "other note"}))
    assert not again.missing(keys(3)).any()
    assert again.manifest == manifest


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"teacher": "another"}, "teacher: '0123456789abcdef', not 'another'"),
        ({"labels": ("delivery", "billing", "refund")}, "labels"),
        ({"precision": "bf16"}, "precision"),
        ({"kind": "probabilities"}, "kind"),
        ({"feature_size": 4}, "feature_size: None, not 4"),
    ],
)
def test_another_teachers_cache_is_refused(folder, manifest, change, named):
    LogitCache.create(folder, manifest)
    with pytest.raises(CacheError) as error:
        LogitCache.create(folder, dataclasses.replace(manifest, **change))
    assert named in str(error.value)
    assert str(folder) in str(error.value)


def test_opening_nothing_names_the_stage(tmp_path):
    with pytest.raises(CacheError, match="bert-kd cache-logits"):
        LogitCache.open(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 1}', '{"format": 1, "labels": ["a"]}'])
def test_an_unreadable_manifest_is_refused(filled, content):
    folder = filled(3).folder
    (folder / "manifest.json").write_text(content)
    with pytest.raises(CacheError, match=r"manifest\.json"):
        LogitCache.open(folder)


def test_a_lost_manifest_costs_no_answers(filled, manifest):
    folder = filled(3).folder
    (folder / "manifest.json").unlink()
    assert not LogitCache.create(folder, manifest).missing(keys(3)).any()


def test_a_newer_format_is_refused(filled):
    folder = filled(3).folder
    facts = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**facts, "format": 2}))
    with pytest.raises(CacheError, match="format 1"):
        LogitCache.open(folder)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39])
def test_values_that_are_not_finite_are_not_stored(filled, bad):
    cache = filled(3)
    logits = answers(4).astype(np.float64)
    logits[2, 1] = bad
    with pytest.raises(CacheError) as error:
        cache.append(keys(4, 10), logits)
    assert "1 of 4 rows" in str(error.value)
    assert keys(1, 12)[0].tobytes().hex() in str(error.value)
    assert len(list(cache.folder.glob("part-*"))) == 1


def test_features_too_large_for_float16_are_not_stored(folder):
    cache = LogitCache.create(folder, Manifest("f", LABELS, feature_size=4))
    with pytest.raises(CacheError, match="float16"):
        cache.append(keys(2), answers(2), np.full((2, 4), 1e6, dtype=np.float32))


def test_shapes_must_fit(filled):
    cache = filled(3)
    for logits, extra in [(answers(3), None), (answers(4, classes=2), None)]:
        with pytest.raises(ValueError, match="do not go with"):
            cache.append(keys(4), logits, extra)
    with pytest.raises(ValueError, match="do not go with"):
        cache.append(keys(0), answers(0))
    with pytest.raises(ValueError, match="feature size"):
        cache.append(keys(4), answers(4), features(4))


def test_pandas_reads_the_folder_as_it_is(filled):
    cache = filled(4, 6)
    frames = [pandas.read_parquet(path) for path in sorted(cache.folder.glob("part-*.parquet"))]
    table = pandas.concat(frames, ignore_index=True)
    assert [bytes(key) for key in table["key"]] == [key.tobytes() for key in keys(10)]
    assert (np.stack(table["logits"].to_list()) == answers(10)).all()


def test_shards_tell_what_they_are(filled):
    cache = filled(4)
    [path] = cache.folder.glob("part-*.parquet")
    schema = pq.read_schema(path)
    assert str(schema.field("key").type) == "fixed_size_binary[16]"
    assert schema.field("logits").type.list_size == 3
    assert json.loads(schema.metadata[b"bert_kd.labels"]) == list(LABELS)
    assert schema.metadata[b"bert_kd.teacher"] == b"0123456789abcdef"
    assert schema.metadata[b"bert_kd.format"] == b"1"


def test_memory_goes_with_the_query(folder, manifest):
    cache = LogitCache.create(folder, manifest)
    for start in range(0, 200_000, 10_000):
        numbers = np.arange(start, start + 10_000, dtype=np.uint64)
        rows = np.zeros(10_000, dtype=keys(1).dtype)
        rows["low"] = rows["high"] = numbers
        cache.append(rows, answers(10_000, start=start))
    wanted = np.zeros(5, dtype=keys(1).dtype)
    wanted["low"] = wanted["high"] = [0, 55_555, 123_456, 199_999, 7]
    fresh = LogitCache.open(folder)
    tracemalloc.start()
    found = fresh.lookup(wanted)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.logits[:, 0].astype(int).tolist() == [0, 55_555, 123_456, 199_999, 7]
    assert peak < 200_000 * 16 / 2


def test_long_shards_are_read_in_parts(filled, monkeypatch):
    monkeypatch.setattr(shard, "ROWS_PER_GROUP", 8)
    cache = filled(20, 5)
    first = sorted(cache.folder.glob("part-*"))[0]
    assert pq.ParquetFile(first).num_row_groups == 3
    assert (cache.lookup(keys(25)).logits == answers(25)).all()
    assert cache.verify().rows == cache.stats().rows == 25


def test_stats_are_those_of_the_logits(filled):
    cache = filled(40, 60)
    cache.append(keys(10), np.flip(answers(10), axis=1))
    every = np.concatenate([answers(100), np.flip(answers(10), axis=1)])
    found = cache.stats()
    assert (found.rows, found.keys, found.shards) == (110, 100, 3)
    assert found.bytes == sum(os.path.getsize(path) for path in cache.folder.glob("part-*"))
    assert found.mean == pytest.approx(every.mean(dtype=np.float64))
    assert found.deviation == pytest.approx(every.std(dtype=np.float64))
    assert (found.minimum, found.maximum) == (every.min(), every.max())
    assert found.shares == pytest.approx(
        {"billing": 10 / 110, "delivery": 0.0, "refund": 100 / 110}
    )


def test_stats_of_an_empty_cache(folder, manifest):
    found = LogitCache.create(folder, manifest).stats()
    assert (found.rows, found.keys, found.shards, found.bytes) == (0, 0, 0, 0)
    assert np.isnan(found.mean)


def test_verify_reports_duplicates_and_whether_they_disagree(filled):
    cache = filled(10)
    cache.append(keys(4), answers(4))
    cache.append(keys(3), answers(3) + np.float32([[0], [0.0005], [0.25]]))
    found = cache.verify(tolerance=0.001)
    assert (found.shards, found.rows, found.keys, found.duplicates) == (3, 17, 10, 7)
    assert found.disagreeing == 1
    assert found.largest_difference == pytest.approx(0.25)
    assert found.damaged == ()
    assert cache.verify(tolerance=0.0001).disagreeing == 2

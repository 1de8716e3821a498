"""A damaged shard is named and set aside, and only its rows count as missing."""

from __future__ import annotations

import dataclasses
import os
import shutil
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from known_answers import LABELS, answers, features, keys

from bert_kd.errors import CacheError
from bert_kd.logits import shard as shard_module
from bert_kd.logits.cache import LogitCache, Manifest
from bert_kd.logits.shard import Shard, ShardDamaged, shard_schema, write_shard


def shards(cache):
    return sorted(cache.folder.glob("part-*.parquet"))


def flip(path, place, bit=0):
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def empty(path):
    path.write_bytes(b"")


def flip_in_page(path):
    """Damage the logits, whose values are the only ones with these bytes."""
    group = pq.read_metadata(path).row_group(0)
    flip(path, group.column(1).data_page_offset + group.column(1).total_compressed_size - 3)


def flip_in_footer(path):
    footer = int.from_bytes(path.read_bytes()[-8:-4], "little")
    flip(path, path.stat().st_size - 8 - footer)


def other_labels(path):
    content = (keys(5, 5), answers(5), None)
    write_shard(path, shard_schema("0123456789abcdef", LABELS[::-1], None), *content)


def other_teacher(path):
    write_shard(path, shard_schema("another", LABELS, None), keys(5, 5), answers(5), None)


def other_classes(path):
    """The right metadata over the wrong width."""
    right = shard_schema("0123456789abcdef", LABELS, None)
    wrong = shard_schema("0123456789abcdef", LABELS[:2], None).with_metadata(right.metadata)
    write_shard(path, wrong, keys(5, 5), answers(5, classes=2), None)


def other_program(path):
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata(None), path)


def not_finite(path):
    logits = answers(5)
    logits[1, 1] = np.nan
    write_shard(path, shard_schema("0123456789abcdef", LABELS, None), keys(5, 5), logits, None)


DAMAGES = [
    truncate,
    empty,
    flip_in_page,
    flip_in_footer,
    other_labels,
    other_teacher,
    other_classes,
    other_program,
    not_finite,
]


@pytest.fixture(params=DAMAGES, ids=lambda damage: damage.__name__)
def damaged(request, filled):
    """A cache of 15 texts in three shards, of which the second is damaged; and that one's name."""
    cache = filled(5, 5, 5)
    path = shards(cache)[1]
    request.param(path)
    return cache, path.name


def test_caching_goes_on_without_it(damaged, capsys):
    cache, name = damaged
    assert cache.missing(keys(15)).tolist() == [False] * 5 + [True] * 5 + [False] * 5
    assert (cache.folder / f"{name}.damaged").exists()
    assert not (cache.folder / name).exists()
    told = capsys.readouterr().err
    assert name in told and "set aside" in told
    cache.append(keys(5, 5), answers(5, start=5))
    assert not cache.missing(keys(15)).any()
    assert (LogitCache.open(cache.folder).lookup(keys(15)).logits == answers(15)).all()


def test_training_is_refused_with_the_remedy(damaged):
    cache, name = damaged
    with pytest.raises(CacheError) as error:
        cache.lookup(keys(15))
    assert "5 of 15 rows" in str(error.value)
    assert name in str(error.value)
    assert "bert-kd cache-logits" in str(error.value)
    assert (cache.folder / f"{name}.damaged").exists()
    # What was set aside is what the next caching run computes.
    assert LogitCache.open(cache.folder).missing(keys(15)).sum() == 5


def test_verify_finds_it(damaged):
    cache, name = damaged
    found = cache.verify()
    assert [damage.shard for damage in found.damaged] == [name]
    assert found.damaged[0].reason
    assert (found.shards, found.rows) == (2, 10)
    assert cache.verify().damaged == ()
    assert cache.stats().damaged == (f"{name}.damaged",)


def test_stats_leave_it_out(damaged):
    cache, _ = damaged
    assert cache.stats().rows == 10


def test_the_reasons_are_told_in_words(filled):
    cache = filled(5, 5)
    other_labels(shards(cache)[1])
    [damage] = cache.verify().damaged
    assert "refund" in damage.reason and "labels" in damage.reason


def test_rows_that_stand_elsewhere_too_are_still_answered(filled, capsys):
    cache = filled(5, 5)
    cache.append(keys(5), answers(5))
    flip_in_page(shards(cache)[0])
    assert (LogitCache.open(cache.folder).lookup(keys(10)).logits == answers(10)).all()
    assert "set aside" in capsys.readouterr().err


def test_no_flipped_bit_changes_an_answer(tmp_path):
    """Whatever breaks, a read gives what was written or says that it cannot."""
    schema = shard_schema("t", ("a", "b"), 2)
    path = tmp_path / "part-0.parquet"
    written = (keys(6), answers(6, classes=2), features(6, size=2))
    write_shard(path, schema, *written)
    whole = path.read_bytes()
    generator = np.random.default_rng(5)
    refused = 0
    places = generator.choice(len(whole), 500, replace=False)
    for place in places:
        path.write_bytes(whole)
        flip(path, place, int(generator.integers(8)))
        try:
            with Shard(path, schema) as found:
                read = (found.keys(0), found.logits(0), found.features(0))
        except ShardDamaged:
            refused += 1
            continue
        for after, before in zip(read, written, strict=True):
            assert after.shape == before.shape and (after == before).all(), place
    assert refused > len(places) / 3


def test_page_checksums_are_in_the_file_for_other_readers(filled):
    path = shards(filled(5))[0]
    flip_in_page(path)
    with pytest.raises(OSError, match="CRC"):
        pq.ParquetFile(path, page_checksum_verification=True).read()


def test_errors_of_the_system_set_nothing_aside(filled, monkeypatch):
    cache = filled(5)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pq, "ParquetFile", refuse)
    with pytest.raises(PermissionError):
        cache.missing(keys(5))
    assert len(shards(cache)) == 1


def test_a_folder_that_cannot_be_changed_is_still_read(filled, monkeypatch, capsys):
    cache = filled(5, 5)
    flip_in_page(shards(cache)[1])

    def refuse(*_: object) -> None:
        raise PermissionError(30, "Read-only file system")

    monkeypatch.setattr(os, "replace", refuse)
    assert cache.missing(keys(10)).sum() == 5
    assert "could not be set aside" in capsys.readouterr().err


def test_a_shard_that_another_process_set_aside_is_no_error(filled, monkeypatch):
    cache = filled(5, 5)
    names = [path.name for path in shards(cache)]
    shards(cache)[1].unlink()
    monkeypatch.setattr("bert_kd.logits.folder.ShardFolder.names", lambda _: names)
    assert cache.missing(keys(10)).sum() == 5
    assert cache.verify().rows == 5


@pytest.mark.parametrize("clean", ["create", "verify"])
def test_leftovers_of_killed_writers_are_removed(filled, clean):
    cache = filled(5)
    old, new = (cache.folder / f".part-{age}.parquet.0.tmp" for age in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200, time.time() - 7200))
    if clean == "create":
        LogitCache.create(cache.folder, cache.manifest)
    else:
        assert cache.verify().leftovers == (old.name,)
    assert not old.exists()
    assert new.exists()
    assert len(shards(cache)) == 1


def test_a_damaged_part_of_a_long_shard_takes_the_shard(folder, monkeypatch):
    monkeypatch.setattr(shard_module, "ROWS_PER_GROUP", 8)
    cache = LogitCache.create(folder, Manifest("t", LABELS))
    path = cache.append(keys(20), answers(20))
    last = pq.read_metadata(path).row_group(2).column(1)
    flip(path, last.data_page_offset + last.total_compressed_size - 3)
    fresh = LogitCache.open(folder)
    assert fresh.missing(keys(20)).all()
    assert fresh.stats().rows == 0


def test_a_copied_shard_of_the_same_teacher_is_fine(filled, tmp_path):
    cache = filled(5)
    other = LogitCache.create(tmp_path / "other", cache.manifest)
    other.append(keys(5, 5), answers(5, start=5))
    shutil.copy(shards(other)[0], cache.folder)
    assert (cache.lookup(keys(10)).logits == answers(10)).all()


def test_an_import_is_refilled_by_an_import(folder, manifest):
    facts = {"imported_from": "answers.csv"}
    cache = LogitCache.create(folder, dataclasses.replace(manifest, facts=facts))
    with pytest.raises(CacheError, match="bert-kd logits import"):
        cache.lookup(keys(1))


def test_a_schema_with_nulls_is_foreign(filled):
    path = shards(filled(5))[0]
    table = pq.read_table(path)
    loose = pa.schema([field.with_nullable(True) for field in table.schema], table.schema.metadata)
    pq.write_table(table.cast(loose), path)
    with pytest.raises(ShardDamaged, match="columns"):
        Shard(path, shard_schema("0123456789abcdef", LABELS, None))


def test_running_out_of_memory_is_no_damage(tmp_path, monkeypatch):
    cache = LogitCache.create(tmp_path / "cache", Manifest("t", LABELS))
    cache.append(keys(10), answers(10))

    def exhausted(*_, **__):
        raise pa.ArrowMemoryError("malloc of size 64 failed")

    monkeypatch.setattr(shard_module.pq.ParquetFile, "read_row_group", exhausted)
    with pytest.raises(MemoryError):
        LogitCache.open(cache.folder).lookup(keys(10))
    assert len(shards(cache)) == 1 and not list(cache.folder.glob("*.damaged"))

"""Many writers at once, killed writers, full disks: what was written stays whole."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from known_answers import answers, keys

from bert_kd.errors import UserError
from bert_kd.logits.cache import LogitCache

WRITER = """
import sys
from pathlib import Path
from known_answers import LABELS, answers, keys
from bert_kd.errors import CacheError
from bert_kd.logits.cache import LogitCache, Manifest

folder, start, shards, rows, labels = sys.argv[1:]
start, shards, rows = int(start), int(shards), int(rows)
names = LABELS if labels == "same" else (*LABELS[:2], f"other {start}")
print("ready", flush=True)
sys.stdin.readline()
try:
    cache = LogitCache.create(Path(folder), Manifest("0123456789abcdef", names))
except CacheError as error:
    print("refused:", error, flush=True)
    sys.exit(0)
print("created", flush=True)
for shard in range(shards):
    at = start + shard * rows
    if cache.missing(keys(rows, at)).any():
        cache.append(keys(rows, at), answers(rows, start=at))
        print("wrote", shard, flush=True)
"""


def start_writer(folder, start, shards, rows, labels="same"):
    arguments = [str(folder), str(start), str(shards), str(rows), labels]
    places = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(places), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "ready\n"
    return writer


def finish(writers):
    """Let all writers go at the same moment; return what each printed."""
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    printed = [writer.communicate(timeout=60)[0] for writer in writers]
    assert [writer.returncode for writer in writers] == [0] * len(writers)
    return printed


def test_several_processes_fill_one_folder(folder, manifest):
    """Four writers start at once; each two overlap by half."""
    finish([start_writer(folder, number * 100, 10, 20) for number in range(4)])
    cache = LogitCache.create(folder, manifest)
    assert (cache.lookup(keys(500)).logits == answers(500)).all()
    found = cache.verify()
    assert (found.keys, found.disagreeing, found.damaged) == (500, 0, ())
    assert found.rows == 500 + found.duplicates
    assert not list(folder.glob(".*"))


def test_writers_that_differ_cannot_both_create(folder):
    """Whoever comes first decides; the others are told what differs, and write nothing."""
    printed = finish([start_writer(folder, number, 1, 5, "different") for number in range(4)])
    refused = [text for text in printed if "refused" in text]
    assert len(refused) == 3
    assert all("labels: (" in text for text in refused)
    assert len(list(folder.glob("part-*"))) == 1
    assert LogitCache.open(folder).verify().damaged == ()


def test_a_killed_writer_loses_at_most_the_shard_in_hand(folder, manifest):
    writer = start_writer(folder, 0, 1000, 50)
    writer.stdin.write("go\n")
    writer.stdin.flush()
    told = 0
    for line in writer.stdout:
        told += line.startswith("wrote")
        if told == 5:
            break
    time.sleep(0.02)
    writer.send_signal(signal.SIGKILL)
    rest, _ = writer.communicate(timeout=60)
    told += rest.count("wrote")
    assert told < 1000
    cache = LogitCache.create(folder, manifest)
    found = cache.verify()
    assert found.damaged == ()
    assert found.rows in (told * 50, (told + 1) * 50)
    # The next run writes only the rest.
    done = found.rows // 50
    [printed] = finish([start_writer(folder, 0, done + 3, 50)])
    assert printed.count("wrote") == 3
    rows = (done + 3) * 50
    assert (cache.lookup(keys(rows)).logits == answers(rows)).all()
    assert cache.verify().duplicates == 0


@pytest.mark.parametrize("place", ["writing", "flushing"])
def test_a_full_disk_is_told_and_costs_only_the_shard_in_hand(filled, monkeypatch, place):
    cache = filled(5)
    before = sorted(path.name for path in cache.folder.iterdir())

    def write_half(table, path, **_):
        Path(path).write_bytes(b"PAR1 half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        if place == "writing":
            patch.setattr(pq, "write_table", write_half)
        else:
            patch.setattr(os, "fsync", refuse)
        with pytest.raises(UserError, match="no space left"):
            cache.append(keys(5, 5), answers(5, start=5))
    assert sorted(path.name for path in cache.folder.iterdir()) == before
    assert cache.missing(keys(10)).tolist() == [False] * 5 + [True] * 5
    cache.append(keys(5, 5), answers(5, start=5))
    assert (cache.lookup(keys(10)).logits == answers(10)).all()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KiB, where the machine lets one be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    command = [str(mount), "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if mount is None or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("no file system can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_really_full(small_disk, manifest):
    cache = LogitCache.create(small_disk / "cache", manifest)
    written = 0
    with pytest.raises(UserError, match="no space left"):
        while written < 100:
            cache.append(keys(200, written * 200), answers(200, start=written * 200))
            written += 1
    assert written >= 2
    fresh = LogitCache.open(cache.folder)
    assert fresh.verify().damaged == ()
    rows = written * 200
    assert (fresh.lookup(keys(rows)).logits == answers(rows)).all()
    assert fresh.missing(keys(200, rows)).all()
    assert not list(cache.folder.glob(".*"))


def test_a_file_system_without_links_will_do(folder, manifest, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    LogitCache.create(folder, manifest).append(keys(3), answers(3))
    assert LogitCache.create(folder, manifest).manifest == manifest
    assert not list(folder.glob(".*"))

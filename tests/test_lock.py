"""One process at a time."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys

import pytest

from bert_kd import lock
from bert_kd.errors import StageError
from bert_kd.lock import alone_in

HOLD = """
import sys, time
from pathlib import Path
from bert_kd.lock import alone_in
with alone_in(Path(sys.argv[1]), "testing"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_folder_is_held_by_one_process_until_it_ends(tmp_path):
    folder = tmp_path / "run" / "data"
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(StageError, match="another process is preparing data in .*data: wait"):
            with alone_in(folder, "preparing data"):
                raise AssertionError("both hold it")
        with alone_in(folder.parent, "another thing"):
            pass
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
        other.stdout.close()
    with alone_in(folder, "preparing data"):
        pass
    with alone_in(folder, "preparing data"):  # it was given back
        pass
    assert [path.name for path in folder.iterdir()] == [lock.LOCK]


def test_a_file_system_without_locks_has_none(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    held = []
    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    with alone_in(tmp_path, "testing"):
        held.append("no locks")
    monkeypatch.setattr(lock.os, "open", refuse)
    with alone_in(tmp_path, "testing"):
        held.append("read-only")
    assert held == ["no locks", "read-only"]

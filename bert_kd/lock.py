"""Keeping two processes from making the same thing at once."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bert_kd.errors import StageError
from bert_kd.store import make_folder

LOCK = ".lock"


@contextmanager
def alone_in(folder: Path, doing: str) -> Iterator[None]:
    """Hold `folder`, made where it is missing, against other processes that hold it too, by a lock
    on the file `.lock` in it, which the end of the process and of its children gives back.

    Raises StageError, which says what the other one is `doing`, where it is held. Where no file can
    be made, or the file system has no locks, there is none.
    """
    make_folder(folder)
    try:
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:
        yield
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StageError(
                f"another process is {doing} in {folder}: wait for it, or give another run folder"
            ) from None
        except OSError:
            pass
        yield
    finally:
        os.close(handle)

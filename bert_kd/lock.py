"""Keeping two processes from making the same thing at once."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bert_kd.errors import StageError
from bert_kd.store import make_folder


@contextmanager
def alone_in(folder: Path, doing: str) -> Iterator[None]:
    """Hold `folder`, made where it is missing, against other processes that hold it too; the lock
    ends with the process.

    Raises StageError, which says what the other one is `doing`, where it is held. A file system
    that has no locks has none here.
    """
    make_folder(folder)
    handle = os.open(folder, os.O_RDONLY)
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

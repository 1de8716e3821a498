"""The answers to a long file, kept beside its output until that is whole.

A run that is killed leaves them behind, and the same command goes on after them: rows are read and
written anew, which is quick, and not computed anew, which is not. Each part's answers lie under a
key made of its texts, and the file says which model answered, so that a changed input or another
model is answered anew from there on. A part that a killed run or a power cut left half is known by
its digest.

    {"kind": …, "format": 1, "model": "…"}\\n
    rows, classes (uint32), key, digest (16 bytes each), scores (float32 [rows, classes]); repeated

Here: the file. Not here: what is asked and written (`bulk.py`).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from bert_kd.errors import DataError
from bert_kd.runtime.engine import Floats
from bert_kd.store import remove_leftovers

KIND, FORMAT = "bert_kd answers", 1
HEAD = struct.Struct("<II16s16s")
LONGEST_HEADER = 4096


def place(output: Path) -> Path:
    """Return where the answers for `output` lie until it is whole."""
    return output.with_name(f".{output.name}.answers")


def key_of(texts: Sequence[str], texts_b: Sequence[str] | None) -> bytes:
    """Return 16 bytes that stand for these texts, in this order."""
    digest = hashlib.blake2b(digest_size=16)
    for column in (texts,) if texts_b is None else (texts, texts_b):
        lengths = np.fromiter(map(len, column), dtype="<u8", count=len(column))
        digest.update(len(column).to_bytes(8, "little"))
        digest.update(lengths.tobytes())
        digest.update("".join(column).encode())
    return digest.digest()


class KeptAnswers:
    """Parts' answers in the order of the file: first read, then, from the first gap, written."""

    def __init__(self, output: Path, model: str) -> None:
        self._output = output
        self._path = place(output)
        self._model = model
        self._file: BinaryIO | None = None
        self._reading = False
        self._held: tuple[bytes, Floats] | None = None

    def find(self, key: bytes) -> Floats | None:
        """Return the scores [rows, classes] kept for the next part, None where they are of other
        texts or there are no more; then none are read any more.
        """
        if not self._reading or self._file is None:
            return None
        start = self._file.tell()
        record = self._read()
        if record is not None and record[0] == key:
            return record[1]
        self._file.seek(start)
        self._file.truncate()
        self._reading = False
        return None

    def add(self, key: bytes, scores: Floats) -> None:
        """Keep the scores of the next part. The first part's wait for the second's: a file of one
        part is answered again as soon as read.
        """
        if self._file is None:
            if self._held is None:
                self._held = key, scores
                return
            self._create()
            self._write(*self._held)
            self._held = None
        self._write(key, scores)

    def open(self) -> None:
        """Go on with what is there.

        Raises DataError where another run goes on with it just now, or it cannot be opened.
        """
        try:
            file = self._path.open("r+b")
        except FileNotFoundError:
            return
        except OSError as error:
            raise DataError(
                f"{self._path}, which keeps the answers until the output is whole, cannot be "
                f"opened ({error.strerror}): give the output another name or place"
            ) from None
        self._lock(file)
        remove_leftovers(self._output, age=0.0)  # of the run that was killed
        if file.readline(LONGEST_HEADER) != self._header():
            file.truncate(0)
            file.seek(0)
            file.write(self._header())
        self._file, self._reading = file, True

    def close(self, done: bool) -> None:
        """End; `done`: the output is whole, and what was kept for it goes."""
        if self._file is not None:
            if done:
                self._path.unlink(missing_ok=True)
            self._file.close()

    def _header(self) -> bytes:
        facts = {"kind": KIND, "format": FORMAT, "model": self._model}
        return json.dumps(facts).encode() + b"\n"

    def _create(self) -> None:
        file = os.fdopen(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        self._lock(file)
        file.truncate()
        file.write(self._header())
        self._file = file

    def _lock(self, file: BinaryIO) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise DataError(
                f"{self._path} is being written: another run makes this output; wait for it, or "
                "give the output another name"
            ) from None

    def _write(self, key: bytes, scores: Floats) -> None:
        assert self._file is not None
        payload = np.ascontiguousarray(scores, dtype="<f4").tobytes()
        self._file.write(HEAD.pack(*scores.shape, key, _digest(payload)) + payload)
        self._file.flush()

    def _read(self) -> tuple[bytes, Floats] | None:
        """Return the next part's key and scores, None where there is no whole one."""
        assert self._file is not None
        head = self._file.read(HEAD.size)
        if len(head) < HEAD.size:
            return None
        rows, classes, key, digest = HEAD.unpack(head)
        size = 4 * rows * classes
        if size > os.fstat(self._file.fileno()).st_size - self._file.tell():
            return None
        payload = self._file.read(size)
        if _digest(payload) != digest:
            return None
        return key, np.frombuffer(payload, dtype="<f4").reshape(rows, classes)


@contextmanager
def keeping(output: Path, model: str) -> Iterator[KeptAnswers]:
    """Yield the answers kept for `output` by this model; they go when the block ends well.

    Raises DataError where another run keeps its answers there just now, or they cannot be kept.
    """
    kept = KeptAnswers(output, model)
    kept.open()
    done = False
    try:
        yield kept
        done = True
    finally:
        kept.close(done)


def _digest(payload: bytes) -> bytes:
    return hashlib.blake2b(payload, digest_size=16).digest()

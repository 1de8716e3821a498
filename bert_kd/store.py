"""Every file name in a run folder, and the only way in which files are written.

Here: `RunFolder` (who lies where), `writing` (write aside, flush, rename), JSON in and out,
fingerprints, and `Stamp`, the record of what made a stage's output. Not here: the formats of the
tables and tensors, which belong to the rooms that make them. Facts are JSON, tables are Parquet,
tensors are safetensors; nothing is pickled.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import math
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from bert_kd.errors import UserError

SPLITS = ("train", "validation", "test", "transfer", "views")
STAMP = "stage.json"
TEACHER_BASE = "base"
LEFTOVER_SECONDS = 3600.0
"""A temporary file this old is no longer being written."""


@dataclass(frozen=True)
class RunFolder:
    """The places of one run's files below `root`."""

    root: Path

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def labels(self) -> Path:
        return self.data / "labels.json"

    @property
    def prepared(self) -> Path:
        return self.data / "prepared.json"

    @property
    def teacher(self) -> Path:
        return self.root / "teacher"

    @property
    def teacher_facts(self) -> Path:
        return self.teacher / "teacher.json"

    @property
    def teacher_checkpoints(self) -> Path:
        return self.checkpoints_of(self.teacher)

    @property
    def logits(self) -> Path:
        return self.root / "logits"

    @property
    def students(self) -> Path:
        return self.root / "students"

    @property
    def report(self) -> Path:
        return self.root / "report"

    @property
    def bundles(self) -> Path:
        return self.root / "bundles"

    def split(self, name: str) -> Path:
        """The Parquet file of split `name` (one of `SPLITS`)."""
        return self.data / f"{name}.parquet"

    def teachers(self, count: int) -> tuple[Path, ...]:
        """The folders of an ensemble of `count` teachers: `teacher`, `teacher-2`, …"""
        others = (self.root / f"teacher-{number}" for number in range(2, count + 1))
        return (self.teacher, *others)

    def checkpoints_of(self, teacher: Path) -> Path:
        """The folder of a teacher's checkpoints while it trains."""
        return teacher.with_name(f"{teacher.name}-checkpoints")

    def base_of(self, teacher: Path) -> Path:
        """Token vectors as they were before a teacher's training changed them; not there where they
        were frozen.
        """
        return teacher / TEACHER_BASE

    def prefix_of(self, teacher: Path) -> Path:
        """The states below a teacher's trained layers, while it trains."""
        return teacher.with_name(f"{teacher.name}-prefix")

    @property
    def view_parts(self) -> Path:
        """Views that a run has made so far."""
        return self.data / ".views"

    def cache(self, fingerprint: str) -> Path:
        """The folder of the logit cache of the teacher with this fingerprint."""
        return self.logits / fingerprint

    def student(self, name: str) -> Path:
        return self.students / name

    def bundle(self, name: str) -> Path:
        return self.bundles / name


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Yield a temporary file name beside `path`; on success flush it and rename it to `path`, on
    failure remove it.

    A reader sees the old file or the whole new one, never a part. Raises UserError where the disk
    is full or `path` cannot be made there; an error of the block about other files stays as it is.
    """
    aside = _aside(path)
    try:
        yield aside
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
        _sync_folder(path.parent)
    except Exception as error:
        _raise_if_full(error, path.parent)
        _raise_if_about(error, aside, path)
        raise
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def writing_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success it takes the place of `path`, whole.

    Raises UserError as `writing` does.
    """
    aside = _aside(path)
    try:
        aside.mkdir()
        yield aside
        for file in aside.rglob("*"):
            if file.is_file():
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        if path.exists():
            old = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.old")
            os.replace(path, old)
            os.replace(aside, path)
            shutil.rmtree(old)
        else:
            os.replace(aside, path)
        _sync_folder(path.parent)
    except Exception as error:
        _raise_if_full(error, path.parent)
        _raise_if_about(error, aside, path)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def make_folder(path: Path) -> None:
    """Make a folder and its parents. Raises UserError where that can't be done there."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _raise_if_full(error, path)
        raise UserError(
            f"the folder {path} cannot be made ({error.strerror}): choose another place"
        ) from error


def remove_leftovers(path: Path, age: float = LEFTOVER_SECONDS) -> None:
    """Remove what killed writers of `path` left beside it more than `age` seconds ago; 0 where it
    is known that nobody writes it now.
    """
    # What was moved away is kept where a writer was killed before it put the new one in its place.
    for kind in ("tmp", "old") if path.exists() else ("tmp",):
        for left in path.parent.glob(f".{glob.escape(path.name)}.????????.{kind}"):
            if time.time() - left.stat().st_mtime > age:
                shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)


def _aside(path: Path) -> Path:
    """Return a new name beside `path`; sweep away what killed writers of it left behind."""
    make_folder(path.parent)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        remove_leftovers(path)
        # Refuse before any work, and here: not every library says which file an error is about.
        aside.touch()
        aside.unlink()
    except OSError as error:
        _raise_if_full(error, path.parent)
        raise _unwritable(error, path) from error
    return aside


def _raise_if_full(error: Exception, folder: Path) -> None:
    """Raise UserError where `error` says that the disk is full (safetensors says so in words)."""
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    if full or any(f"os error {code}" in str(error) for code in (errno.ENOSPC, errno.EDQUOT)):
        raise UserError(
            f"no space left on the disk of {folder}: free some and run the same command again; "
            "everything finished before this file is kept"
        ) from error


def _raise_if_about(error: Exception, aside: Path, path: Path) -> None:
    """Raise UserError where `error` is the system's about `aside`."""
    if isinstance(error, OSError) and error.filename in (aside, str(aside)):
        raise _unwritable(error, path) from error


def _unwritable(error: OSError, path: Path) -> UserError:
    return UserError(f"{path} cannot be written ({error.strerror}): choose another name or place")


def _sync_folder(folder: Path) -> None:
    """Flush the folder's entries, so that a rename survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with writing(path) as aside:
        aside.write_text(text, encoding="utf-8")


def _no_nan(value: Any) -> Any:
    """Replace NaN and infinities by None: they are not JSON."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _no_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_no_nan(item) for item in value]
    return value


def to_json(value: Any) -> str:
    """Return `value` as readable JSON with a final line break; paths become strings, NaN becomes
    null.
    """
    return (
        json.dumps(_no_nan(value), indent=2, ensure_ascii=False, default=str, allow_nan=False)
        + "\n"
    )


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, whole or not at all."""
    write_text(path, to_json(value))


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises UserError where it is missing or is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged ({error}): remove it and run its stage again") from None


def fingerprint(*values: Any) -> str:
    """Return 16 hexadecimal digits (64 bits of BLAKE2b) over the canonical JSON of `values`."""
    text = json.dumps(
        values, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str
    )
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def fingerprint_files(paths: Iterable[Path]) -> str:
    """Return 16 hexadecimal digits over the contents of `paths`, in the given order."""
    digest = hashlib.blake2b(digest_size=8)
    for path in paths:
        with path.open("rb") as file:
            part = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32))
        digest.update(part.digest())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Return the versions of the packages that shape a result, those that are installed."""
    names = (
        "bert_kd",
        "torch",
        "transformers",
        "datasets",
        "tokenizers",
        "scikit-learn",
        "numpy",
        "pyarrow",
        "onnxruntime",
    )
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """Return the git commit of the checkout that this package runs from, or None outside one."""
    top = Path(__file__).resolve().parents[1]
    if not (top / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(top), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@dataclass(frozen=True)
class Stamp:
    """What made a stage's output: lies beside it as `stage.json` and can be given back as
    `--config`.

    `config` holds the configuration sections that the stage read. `identity` is the part of them
    that shapes the output, `inputs` are fingerprints of what was read from elsewhere: two stamps
    stand for the same output where these are equal.
    """

    stage: str
    config: dict[str, Any]
    identity: dict[str, Any]
    inputs: dict[str, str]
    versions: dict[str, str] = field(default_factory=versions)
    commit: str | None = field(default_factory=commit)
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def write(self, folder: Path) -> None:
        """Write this stamp into `folder`; done last, so that its presence says that the output is
        whole.
        """
        write_json(folder / STAMP, asdict(self))

    @staticmethod
    def remove(folder: Path) -> None:
        """Remove the stamp of `folder`: from here on its output is not whole."""
        (folder / STAMP).unlink(missing_ok=True)

    @staticmethod
    def read(folder: Path) -> Stamp | None:
        """Return the stamp of `folder`, None where there is none. Raises UserError for damage."""
        path = folder / STAMP
        if not path.exists():
            return None
        try:
            return Stamp(**read_json(path))
        except TypeError:
            raise UserError(
                f"{path} is damaged or of another version: remove it and run its stage again"
            ) from None

    @property
    def fingerprint(self) -> str:
        """A fingerprint of what `differences` compares."""
        return fingerprint(json.loads(to_json(self._telling)))

    @property
    def _telling(self) -> dict[str, Any]:
        return {**self.identity, "inputs": self.inputs}

    def differences(self, other: Stamp) -> list[str]:
        """Return what tells this output from `other`'s, a line for each key."""
        mine, theirs = (_flat(json.loads(to_json(stamp._telling))) for stamp in (self, other))
        return [
            f"{key}: wanted {mine.get(key)!r}, made with {theirs.get(key)!r}"
            for key in sorted(mine.keys() | theirs.keys())
            if mine.get(key) != theirs.get(key)
        ]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested mappings and lists as one mapping with dotted keys."""
    if isinstance(value, Mapping):
        items: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    else:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in items:
        flat |= _flat(item, f"{prefix}.{key}" if prefix else str(key))
    return flat

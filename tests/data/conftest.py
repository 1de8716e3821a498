"""Small sources on disk, and a run folder to prepare them into."""

import builtins
import errno
import gzip
import io
import os

import pytest

from bert_kd.config import DataConfig
from bert_kd.data.prepare import prepare
from bert_kd.data.rows import read_rows
from bert_kd.store import RunFolder


@pytest.fixture
def run(tmp_path):
    return RunFolder(tmp_path / "run")


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "source"
    path.mkdir()
    return path


@pytest.fixture
def write(folder):
    """Write a file of the source folder from its text or bytes, gzipped where its name ends so."""

    def write_file(name, content):
        data = content if isinstance(content, bytes) else content.encode()
        path = folder / name
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return path

    return write_file


@pytest.fixture
def closed(monkeypatch):
    """Let the system refuse to open a file or list a folder, as it does where the mode is 0 (but
    not to root).
    """

    def refusing(module, name, shut):
        allowed = getattr(module, name)

        def call(path, *given, **settings):
            if isinstance(path, str | os.PathLike) and os.fspath(path) == os.fspath(shut):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return allowed(path, *given, **settings)

        monkeypatch.setattr(module, name, call)

    def close(path):
        for module, name in ((io, "open"), (builtins, "open"), (os, "listdir"), (os, "scandir")):
            refusing(module, name, path)
        return path

    return close


@pytest.fixture
def prepared(run, folder):
    """Prepare the source folder with these settings; return what was made and the splits' rows."""

    def prepare_folder(source=None, **settings):
        made = prepare(DataConfig(source=str(source or folder), **settings), run)
        return made, {split: read_rows(run.split(split)) for split in made.rows}

    return prepare_folder

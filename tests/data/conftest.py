"""Small sources on disk, and a run folder to prepare them into."""

import gzip

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
def prepared(run, folder):
    """Prepare the source folder with these settings; return what was made and the splits' rows."""

    def prepare_folder(source=None, **settings):
        made = prepare(DataConfig(source=str(source or folder), **settings), run)
        return made, {split: read_rows(run.split(split)) for split in made.rows}

    return prepare_folder

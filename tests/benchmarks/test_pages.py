"""The pages in docs/ that are written from benchmarks/results are those of its tables."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import quality_docs
import serving_docs
import speed_docs
from places import REPOSITORY

PAGES = [
    (quality_docs, "results.md", "benchmarks/quality.py --write-docs"),
    (speed_docs, "speed.md", "benchmarks/speed_docs.py"),
    (serving_docs, "serving.md", "benchmarks/serving_docs.py"),
]


@pytest.mark.parametrize(("writer", "name", "command"), PAGES, ids=[page[1] for page in PAGES])
def test_a_page_is_that_of_the_tables(writer: ModuleType, name: str, command: str, tmp_path: Path):
    page = tmp_path / "docs" / name
    writer.write_docs(REPOSITORY / "benchmarks" / "results", page)
    there = (REPOSITORY / "docs" / name).read_text(encoding="utf-8")
    assert page.read_text(encoding="utf-8") == there, f"run python {command}"

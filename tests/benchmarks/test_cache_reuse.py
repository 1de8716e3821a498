"""The benchmark of what a cache saves, on the tiny run."""

from __future__ import annotations

from pathlib import Path

import cache_reuse
import pytest
import speed_runs

from bert_kd.config import Config
from bert_kd.errors import UserError


def test_a_second_student_reads_what_the_teacher_answered(tiny_run: Config, capfd):
    given = ["--run", str(tiny_run.run), "--rows", "8", "--rounds", "2"]
    found = cache_reuse.measure(cache_reuse.parse(given))
    config = found["config"]
    assert config["rounds"] == 2 and config["rows_teacher"] == 8 < config["rows_cache"]
    # What made it is told as every benchmark tells it.
    assert {"command", "versions", "commit", "made"} <= set(config)
    assert found["machine"]["busy"] >= 0
    assert [row["ratio_to"] for row in found["rows"]] == [cache_reuse.TEACHER] * 2
    faster = speed_runs.value_of(found["rows"], cache_reuse.CACHE, "rows_per_second", "ratio")
    assert faster is not None and faster > 0
    assert "WARNING: cache reuse" in capfd.readouterr().err


def test_a_run_without_cached_logits_is_told(tmp_path: Path):
    with pytest.raises(UserError, match="run bert-kd cache-logits first"):
        cache_reuse.measure(cache_reuse.parse(["--run", str(tmp_path)]))

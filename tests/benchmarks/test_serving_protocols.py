"""The benchmark of HTTP protocols measures every one that is installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import serving_protocols
from serving_protocols import OURS, UVICORN


@pytest.mark.slow
def test_protocols_are_measured_side_by_side(tmp_path):
    pytest.importorskip("uvicorn")
    written = tmp_path / "found.json"
    given = ("--rounds", "1", "--seconds", "0.3", "--connections", "2", "--json", str(written))
    script = Path(serving_protocols.__file__)
    done = subprocess.run(
        [sys.executable, str(script), *given], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(written.read_text())
    rows = {row["system"]: row for row in found["rows"]}
    assert {OURS, UVICORN} <= set(rows) <= set(serving_protocols.SYSTEMS)
    assert rows[OURS]["ratio"] == 1 and all(row["value"] > 0 for row in rows.values())
    assert found["config"]["connections"] == 2

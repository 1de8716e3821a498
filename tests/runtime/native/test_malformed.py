"""No file, however damaged, crashes the process that opens it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from small_students import make_bundle, needs_native

from bert_kd.config import ExportConfig

SCRIPT = Path(__file__).parent / "malformed.py"
KINDS = [
    ({}, {"precision": "fp32"}),
    (
        {"layers": 2, "pair": True, "match": True, "pooling": "attention"},
        {"precision": "int8", "table": "int8"},
    ),
]


@needs_native
@pytest.mark.parametrize(("sizes", "settings"), KINDS, ids=["plain", "everything"])
def test_every_damage_is_refused_in_words(tmp_path, sizes, settings):
    bundle = make_bundle(tmp_path, ExportConfig(**settings), **sizes)
    # In a process of its own: a crash would end it by a signal.
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(bundle)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (done.returncode, done.stderr[-3000:])
    found = json.loads(done.stdout)
    assert found["truncated"]["answered"] == 0
    for kind in ("lengths", "texts", "entries", "metadata"):
        # What is left are the few changes that mean the same: spaces, a size that is not read.
        assert found[kind]["answered"] < 0.1 * found[kind]["refused"], (kind, found)
    assert found["values"]["refused"] > 10
    assert found["flipped"]["refused"] > 100

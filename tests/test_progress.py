"""Progress: plain lines away from a terminal, with rate and time left."""

from __future__ import annotations

import pytest

from bert_kd import progress as module
from bert_kd.progress import clock, progress, say


def test_durations_read_as_clocks():
    assert [clock(s) for s in (0, 5.4, 65, 3600, 7384)] == [
        "0:00", "0:05", "1:05", "1:00:00", "2:03:04",
    ]  # fmt: skip


def test_plain_lines_tell_rate_time_left_and_the_note(capsys, monkeypatch: pytest.MonkeyPatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with progress("caching", 1000, "rows", done=200) as advance:
        now[0] += 20
        advance(400, "shard 1")
        now[0] += 1
        advance(100)  # too soon for another line
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "caching: 600/1,000 rows, 20 rows/s, 0:20 left, shard 1",
        "caching: 700/1,000 rows, 24 rows/s, took 0:21, shard 1",
    ]


def test_an_unknown_total_has_no_time_left(capsys):
    with progress("reading", None, "rows") as advance:
        advance(5)
    assert "reading: 5 rows" in capsys.readouterr().err


def test_words_in_brackets_are_no_markup(capsys):
    say("[bold] 3 rows [/]")
    assert capsys.readouterr().err == "[bold] 3 rows [/]\n"

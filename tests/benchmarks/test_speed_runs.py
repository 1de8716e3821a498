"""What the speed benchmarks share: rounds, ratios, texts, and the command told to others."""

from __future__ import annotations

import gzip

import pytest
import speed_runs
from places import HELPDESK

from bert_kd.errors import UserError


def test_systems_take_turns_and_each_begins_a_round():
    calls = []
    turns = {name: lambda name=name: calls.append(name) or float(len(calls)) for name in "abc"}
    found = speed_runs.interleaved(turns, 3)
    assert calls == [*"abc", *"abc", *"bca", *"cab"]  # first a warm-up, which is not counted
    assert found == {"a": [4.0, 9.0, 11.0], "b": [5.0, 7.0, 12.0], "c": [6.0, 8.0, 10.0]}


def test_no_round_is_begun_that_would_end_too_late():
    now = [0.0]

    def turn() -> float:
        now[0] += 60.0
        return 1.0

    turns = {"a": turn, "b": turn}
    found = speed_runs.interleaved(turns, 50, minutes=7, clock=lambda: now[0])
    assert len(found["a"]) == 2  # two minutes a round, two of them gone before the first
    assert len(speed_runs.interleaved(turns, 50, minutes=0.01, clock=lambda: now[0])["a"]) == 1


def test_ratios_are_taken_within_a_round():
    rows = speed_runs.rate_rows({"slow": [1.0, 10.0, 2.0], "fast": [3.0, 20.0, 8.0]}, "rate")
    assert rows[1] == {
        "system": "fast",
        "metric": "rate",
        "value": 8.0,
        "ratio": 3.0,
        "ratio_to": "slow",
    }
    assert speed_runs.value_of(rows, "fast", "rate", "ratio") == 3.0
    assert speed_runs.value_of(rows, "fast", "latency") is None


def test_the_command_is_one_that_others_can_give():
    given = ["/home/me/benchmarks/training.py", "--data", "/home/me/data", "--rows", "64"]
    given += ["--json", "/tmp/x.json", "--teacher", "/home/me/runs/demo/teacher"]
    assert speed_runs.command(given) == (
        "python benchmarks/training.py --data FOLDER --rows 64 --teacher teacher"
    )


def test_labels_are_read_by_number_and_by_name(tmp_path):
    bundled = speed_runs.read_split(HELPDESK, "validation")
    assert len(bundled) == 200 and bundled.classes == 8 and bundled.labels.min() == 0
    (tmp_path / "labels.json").write_text('{"0": "no", "1": "yes"}')
    with gzip.open(tmp_path / "test.tsv.gz", "wt", encoding="utf-8") as file:
        file.write('text\tlabel\nsays "so\t1\n\t0\n')
    found = speed_runs.read_split(tmp_path, "test")
    assert found.texts == ['says "so', ""] and found.labels.tolist() == [1, 0]
    with pytest.raises(UserError, match=r"train\.tsv"):
        speed_runs.read_split(tmp_path, "train")


def test_without_a_folder_the_bundled_set_is_measured(tmp_path, monkeypatch, capfd):
    monkeypatch.delenv(speed_runs.DATA, raising=False)
    assert speed_runs.data_set(None, None, "sst2") == ("helpdesk", HELPDESK)
    assert "bundled 'helpdesk'" in capfd.readouterr().err
    with pytest.raises(UserError, match="--data FOLDER"):
        speed_runs.data_set(None, "sst2", "sst2")
    (tmp_path / "sst2").mkdir()
    monkeypatch.setenv(speed_runs.DATA, str(tmp_path))
    assert speed_runs.data_set(None, None, "sst2") == ("sst2", tmp_path / "sst2")

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
    assert speed_runs.rounds_made(found) == 3  # two minutes a round; the warm-up's are not counted
    found = speed_runs.interleaved(turns, 50, minutes=0.01, clock=lambda: now[0])
    assert speed_runs.rounds_made(found) == 1


def test_few_rounds_are_told(capfd):
    turns = {"a": lambda: 1.0}
    speed_runs.interleaved(turns, 3, what="enough")
    speed_runs.interleaved(turns, 2, what="few")
    speed_runs.interleaved(turns, 50, minutes=0, what="cut")
    assert speed_runs.interleaved({}, 5, what="nothing") == {}
    warnings = [line for line in capfd.readouterr().err.splitlines() if "WARNING" in line]
    assert warnings == [
        "WARNING: few: the values are of 2 rounds alone",
        "WARNING: cut: the values are of 1 round alone of the 50 asked for: give more --minutes",
    ]


def test_the_rounds_that_are_told_are_those_made():
    options = speed_runs.options_parser(None).parse_args(["--rounds", "7"])
    made = speed_runs.facts(options, 1, benchmark="x")
    assert made["config"]["rounds"] == 7
    row = speed_runs.fact_row("a", "rate", 1.0)
    found = speed_runs.result(made, [row], rounds=2)
    assert found["config"]["rounds"] == 2 and found["rows"] == [row]
    assert {**found["config"], "rounds": 7} == made["config"]
    options.rounds = None
    none = speed_runs.result(speed_runs.facts(options, 1), [row], rounds=None)
    assert "rounds" not in none["config"]


def test_where_no_rounds_are_made_none_are_asked_for(capsys):
    def parsed(*arguments: str):
        parser = speed_runs.options_parser(None, without=("--data",))
        parser.add_argument("--memory", action="store_true")
        return speed_runs.parse_rounds(parser, arguments, ("memory",))

    assert parsed().rounds == speed_runs.ROUNDS and parsed("--rounds", "2").rounds == 2
    assert parsed("--memory").rounds is None
    for given in (["--rounds", "5"], ["--minutes", "1"]):
        with pytest.raises(SystemExit):
            parsed("--memory", *given)
        assert f"--memory makes no rounds: leave out {given[0]}" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parsed("--data", "there")
    assert "unrecognized arguments: --data" in capsys.readouterr().err


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


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("--data=/home/me/data --teacher=/home/me/run/teacher", "--data=FOLDER --teacher=teacher"),
        ("--json=/tmp/x.json --work=runs/inference --rows=64", "--work=FOLDER --rows=64"),
        ("--json x.json --work w --accuracy --rows 64", "--work FOLDER --accuracy --rows 64"),
        ("--vectors ~/me/vec.txt --model=~/me/bert", "--vectors vec.txt --model=bert"),
        ("--bundle ../../me/bundle --connections 1 16", "--bundle bundle --connections 1 16"),
        # Within the checkout it is a path that others have, too.
        ("--run runs/demo --bundle=runs/demo/bundles/base",) * 2,
    ],
)
def test_paths_of_this_machine_are_not_told(given: str, told: str):
    found = speed_runs.command(["/home/me/benchmarks/caching.py", *given.split()])
    assert found == f"python benchmarks/caching.py {told}"


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


THREADS = """
import json, sys
from pathlib import Path
from speed_runs import TASKS, tokenizing_threads
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

count = lambda: len(list(TASKS.iterdir()))
tokenizer = Tokenizer(WordLevel({"a": 0}, "a"))
encode = lambda: tokenizer.encode_batch(["a"] * 64)
first, then = map(int, sys.argv[1:])
before, found = count(), []
for threads in (first, then):
    try:
        with tokenizing_threads(threads):
            encode()
            found.append(count() - before)
    except Exception as error:
        found.append(f"{type(error).__name__}: {error}")
print(json.dumps(found))
"""


@pytest.mark.skipif(not speed_runs.TASKS.is_dir(), reason="the system does not tell its threads")
@pytest.mark.parametrize(
    ("threads", "usual", "expected"),
    [
        ((1, 3), "7", [0, 3]),  # one thread begins no pool
        ((3, 1), "7", [3, 3]),  # which then stays
        ((3, 3), "", [3, 3]),
        ((3, 5), "", [3, 3]),  # fewer will do
    ],
)
def test_tokenizers_keeps_to_the_threads_it_is_given(
    threads, usual, expected, tmp_path, monkeypatch
):
    monkeypatch.setenv("RAYON_NUM_THREADS", usual)
    script = tmp_path / "threads.py"
    script.write_text(THREADS)
    monkeypatch.setenv("PYTHONPATH", str(speed_runs.REPOSITORY / "benchmarks"))
    assert speed_runs.run_alone(str(script), *map(str, threads)) == expected


@pytest.mark.skipif(not speed_runs.TASKS.is_dir(), reason="the system does not tell its threads")
def test_a_pool_of_more_threads_is_refused(tmp_path, monkeypatch):
    script = tmp_path / "threads.py"
    begun = THREADS.replace("before, found", "encode()\nbefore, found")
    monkeypatch.setenv("RAYON_NUM_THREADS", "4")
    monkeypatch.setenv("PYTHONPATH", str(speed_runs.REPOSITORY / "benchmarks"))
    for text, threads in ((THREADS, ("4", "2")), (begun, ("2", "3"))):
        script.write_text(text)
        assert "UserError: tokenizers already has a pool of 4 threads" in str(
            speed_runs.run_alone(str(script), *threads)[1]
        )


def test_the_environment_is_as_before(monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    with speed_runs.tokenizing_threads(1):
        assert speed_runs.os.environ["TOKENIZERS_PARALLELISM"] == "false"
    assert speed_runs.os.environ["TOKENIZERS_PARALLELISM"] == "true"
    monkeypatch.delenv("TOKENIZERS_PARALLELISM")
    with speed_runs.tokenizing_threads(1):
        pass
    assert "TOKENIZERS_PARALLELISM" not in speed_runs.os.environ

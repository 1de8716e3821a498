"""The command line: exit statuses, messages, JSON, and scripts that say hello and leave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from places import CONFIGS, REPOSITORY

from bert_kd import cli, stages
from bert_kd.config import Config
from bert_kd.stages import STAGES


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run the command line in this process; return exit status, standard output and error."""
    with pytest.raises(SystemExit) as caught:
        cli.main(list(arguments))
    out, err = capsys.readouterr()
    return caught.value.code or 0, out, err


SCRIPTS = sorted((REPOSITORY / "scripts").glob("0*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_script_shows_its_help(script: Path):
    done = subprocess.run(
        [sys.executable, str(script), "--help"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        check=False,
    )
    assert done.returncode == 0 and script.name[:2] in done.stdout
    assert len(script.read_text().splitlines()) <= 20


def test_there_is_a_script_for_every_stage_and_serving():
    names = [path.stem[3:].replace("_", "-") for path in SCRIPTS]
    assert names == [*STAGES, "serve"]


def test_commands_and_version(capsys):
    status, out, _ = call(capsys, "--help")
    assert status == 0
    for command in (*STAGES, "run", "predict", "serve", "logits"):
        assert command in out
    assert call(capsys, "--version")[1].strip() == "0.1.0"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--config", "nowhere.toml"], "nowhere.toml does not exist"),
        (["run", "teacher.epoch=3"], "did you mean 'epochs'?"),
        (["run", "--from", "evaluat"], "did you mean 'evaluate'?"),
        (["run", "--from", "export", "--until", "evaluate"], "comes after"),
        (["run", "--force", "all"], "'all' is none of the stages"),
        (["run", "--force", "cache-logits"], "never made again"),
        (["run", "--keep", "evaluate"], "none of the stages train-teacher, cache-logits"),
        (["prepare-data", "run=README.md/x"], "cannot be made"),
        (["cache-logits", "--part", "3/2"], "expected i/n"),
        (["predict", "--bundle", "nowhere", "--text", "x"], "nowhere"),
        (["predict", "--bundle", "nowhere"], "give INPUT and --output FILE, or --text TEXT"),
        (["logits", "stats", "nowhere"], "nowhere"),
        (["logits", "import", "x", "y.csv"], "either --run DIR or --labels"),
    ],
)
def test_what_a_user_can_fix_exits_with_2_and_one_message(
    capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
):
    monkeypatch.chdir(tmp_path)
    Path("README.md").write_text("a file\n")
    status, out, err = call(capsys, *arguments)
    assert status == 2 and message in err and not out
    assert err.startswith("error: ") and "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(stages, "prepare_data", broken)
    with pytest.raises(ZeroDivisionError):
        cli.main(["prepare-data"])


def test_an_interrupt_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, capsys):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stages, "prepare_data", interrupted)
    status, _, err = call(capsys, "prepare-data")
    assert status == 130 and "run the same command again" in err


def options(config: Config) -> list[str]:
    return ["--config", str(config.run / "options.json")]


@pytest.fixture
def finished(tiny_run: Config) -> Config:
    (tiny_run.run / "options.json").write_text(tiny_run.model_dump_json())
    return tiny_run


def test_json_of_the_stages(finished: Config, capsys):
    _, out, _ = call(capsys, "cache-logits", *options(finished), "--json")
    found = json.loads(out)
    assert found["computed"] == 0 and found["rows"] == found["reused"] > 2000
    assert found["shards"] == 0
    _, out, _ = call(capsys, "prepare-data", *options(finished), "--json")
    assert json.loads(out)["rows"]["train"] == 800
    _, out, _ = call(capsys, "train-students", *options(finished), "--json")
    assert json.loads(out)["base-seed17"]["best_epoch"] >= 1
    _, out, _ = call(capsys, "export", *options(finished), "--json")
    assert json.loads(out)[0]["labels"][0] == "account"


def test_predict_single_texts(finished: Config, capsys):
    bundle = str(finished.run / "bundles" / "base")
    _, out, _ = call(capsys, "predict", "-b", bundle, "--text", "no [b] parcel", "--json")
    answers = json.loads(out)
    assert len(answers) == 1 and len(answers[0]) == 3
    _, out, _ = call(capsys, "predict", "-b", bundle, "--text", "a", "--text", "b", "--top-k", "0")
    assert out.count("→") == 2 and out.count(",") == 2 * 7


def test_predict_a_file(finished: Config, capsys, tmp_path: Path):
    bundle = str(finished.run / "bundles" / "base")
    target = tmp_path / "out.jsonl"
    source = REPOSITORY / "data" / "helpdesk" / "test.tsv"
    arguments = ["predict", "-b", bundle, str(source), "--output", str(target)]
    status, out, _ = call(capsys, *arguments)
    rows = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
    assert status == 0 and len(rows) == 200 and "200 rows" in out
    assert set(rows[0]) == {"text", "label", "hard", "predicted_label", "score"}
    status, _, err = call(capsys, *arguments)
    assert status == 2 and "--overwrite" in err


def test_logits_commands(finished: Config, capsys, tmp_path: Path):
    cache = next(path for path in (finished.run / "logits").iterdir() if path.is_dir())
    status, out, _ = call(capsys, "logits", "stats", str(cache))
    assert status == 0 and "delivery" in out
    _, out, _ = call(capsys, "logits", "verify", str(cache), "--json")
    assert json.loads(out)["damaged"] == []
    file, other = tmp_path / "out.csv", tmp_path / "stranger"
    run = ["--run", str(finished.run)]
    call(capsys, "logits", "export", str(cache), str(file), *run, "--split", "test")
    assert len(file.read_text(encoding="utf-8").splitlines()) == 201
    status, out, _ = call(capsys, "logits", "import", str(other), str(file), *run)
    assert status == 0 and "200 stored" in out
    shard = next(other.glob("part-*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-20])
    status, _, err = call(capsys, "logits", "verify", str(other))
    assert status == 2 and shard.name in err


def test_an_untrained_bert_for_the_prepared_texts(finished: Config, capsys, tmp_path: Path):
    folder = tmp_path / "bert"
    arguments = ["untrained-bert", str(folder), *options(finished), "--hidden-size", "32"]
    status, out, _ = call(capsys, *arguments, "--layers", "1", "--vocabulary", "500")
    assert status == 0 and str(folder) in out and (folder / "model.safetensors").exists()
    status, _, err = call(capsys, *arguments)
    assert status == 2 and "exists" in err


def test_a_missing_extra_is_named_with_its_install_line(capsys, finished: Config):
    code = (
        "import sys\n"
        "sys.modules['onnxruntime'] = None\n"
        "from bert_kd.cli import main\n"
        f"main(['predict', '-b', {str(finished.run / 'bundles' / 'base')!r}, '--text', 'x', "
        "'--engine', 'onnx'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'bert_kd[runtime]'" in done.stderr and "Traceback" not in done.stderr


def test_shipped_configs_are_named_after_their_run():
    from bert_kd.config_file import load_config

    for path in CONFIGS.glob("*.toml"):
        assert load_config(path).run == Path("runs") / path.stem

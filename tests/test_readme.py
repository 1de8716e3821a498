"""The README tells the truth: its commands parse, its configuration loads, its Python runs."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import typer
from places import CONFIGS, REPOSITORY

import bert_kd
from bert_kd import cli
from bert_kd.config import Config
from bert_kd.config_file import load_config

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[str]:
    lines = [
        line.split("  #")[0].strip() for block in blocks("bash") for line in block.splitlines()
    ]
    return [line for line in lines if line.startswith("bert-kd")]


@pytest.mark.parametrize("line", commands())
def test_every_command_parses(line: str):
    words = shlex.split(line)[1:]
    group = typer.main.get_command(cli.app)
    command = group.commands[words[0]]
    context = command.make_context(words[0], words[1:])
    config = context.params.get("config")
    if config is not None:
        overrides = [word for word in words if "=" in word]
        load_config(REPOSITORY / str(config), overrides)


def test_the_readme_names_commands():
    named = {line.split()[1] for line in commands()}
    assert {"run", "predict", "serve", "prepare-data", "untrained-bert"} <= named


def test_the_configuration_in_it_is_valid():
    configs = [Config.model_validate(tomllib.loads(block)) for block in blocks("toml")]
    assert [student.name for student in configs[0].students] == ["base", "small"]


def test_the_python_in_it_runs(tiny_run: Config, monkeypatch: pytest.MonkeyPatch):
    load = bert_kd.load
    monkeypatch.setattr(bert_kd, "load", lambda _: load(tiny_run.run / "bundles" / "base"))
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), {})


def test_every_place_in_the_file_map_is_there():
    table = README.split("## File map")[1].split("##")[0]
    places = re.findall(r"`([^`]+)`", table)
    assert len(places) > 12
    for place in places:
        if place.startswith("bert-kd"):
            continue
        assert any(
            (folder / place).exists() for folder in (REPOSITORY, REPOSITORY / "bert_kd",
                                                     REPOSITORY / "scripts", REPOSITORY / "tests")
        ), place  # fmt: skip


def test_make_targets_are_those_of_the_readme():
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"make (\w+)", README):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_every_config_is_named_and_every_script_is_in_the_table():
    for script in (REPOSITORY / "scripts").glob("0*.py"):
        assert f"scripts/{script.name}" in README
    for path in CONFIGS.glob("*.toml"):
        named = path.name in README or path.name in (REPOSITORY / "Makefile").read_text()
        assert named or path.stem == "tiny", path


def test_links_lead_somewhere():
    for document in [REPOSITORY / "README.md", *REPOSITORY.glob("data/**/README.md")]:
        text = document.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (document.parent / Path(target)).exists(), f"{document}: {target}"

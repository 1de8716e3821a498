"""What a wheel holds: all packages, page, templates, typing marker and bundled data."""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from places import REPOSITORY

from bert_kd.runtime.native.engine import missing


def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(REPOSITORY / "setup.cfg", encoding="utf-8")
    return parser


def test_every_package_is_listed():
    listed = set(setup_cfg()["options"]["packages"].split())
    found = {
        ".".join(path.parent.relative_to(REPOSITORY).parts)
        for path in (REPOSITORY / "bert_kd").rglob("__init__.py")
    }
    assert listed == found | {"bert_kd.bundled"}


def test_the_extras_are_there():
    extras = setup_cfg()["options.extras_require"]
    assert set(extras) == {
        "runtime", "serve", "otel", "report", "bench", "offline", "dev", "all",
    }  # fmt: skip
    for name in set(extras) - {"all"}:
        assert name in extras["all"]


def test_the_version_is_one():
    import bert_kd

    assert setup_cfg()["metadata"]["version"] == bert_kd.__version__


def test_what_is_required_is_pinned():
    pins = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (REPOSITORY / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    wanted = setup_cfg()["options"]["install_requires"].split()
    extras = setup_cfg()["options.extras_require"]
    for name in ("runtime", "serve", "otel", "report", "offline", "dev"):
        wanted += [item for item in extras[name].split() if not item.startswith("%(")]
    for requirement in wanted:
        name = requirement.split(">=")[0].split("==")[0].lower()
        assert name in pins, f"{name} is not in constraints.txt"


def wheel(folder: Path, **variables: str) -> list[str]:
    """Build a wheel of a copy of the repository in `folder`; return the names of its files."""
    copy = folder / "copy"
    shutil.copytree(
        REPOSITORY,
        copy,
        ignore=shutil.ignore_patterns(
            ".git", ".venv", "runs", "build", "*.egg-info", ".*_cache", "*.so"
        ),
    )
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
        + ["--wheel-dir", str(folder), str(copy)],
        capture_output=True,
        text=True,
        env=os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"} | variables,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return zipfile.ZipFile(next(folder.glob("*.whl"))).namelist()


@pytest.mark.slow
def test_without_a_compiler_it_installs_all_the_same(tmp_path: Path):
    none = str(tmp_path / "no-compiler")
    names = wheel(tmp_path, CC=none, CXX=none)
    assert "bert_kd/runtime/native/engine.py" in names
    assert not [name for name in names if name.endswith((".so", ".pyd"))]


@pytest.mark.slow
def test_a_wheel_holds_everything(tmp_path: Path):
    names = wheel(tmp_path)
    for name in (
        "bert_kd/py.typed",
        "bert_kd/serve/page/index.html",
        "bert_kd/evaluate/templates/report.html",
        "bert_kd/bundled/helpdesk/train.tsv",
        "bert_kd/bundled/helpdesk/transfer.tsv",
        "bert_kd/bundled/helpdesk/labels.json",
        "bert_kd/bundled/helpdesk/README.md",
        "bert_kd/cli.py",
        "bert_kd/teacher/finetune.py",
        "bert_kd/runtime/native/_native.pyi",
    ):
        assert name in names, name
    compiled = [name for name in names if name.startswith("bert_kd/runtime/native/_native.")]
    assert len(compiled) == (1 if missing() else 2)  # with a compiler, the extension too
    assert not [name for name in names if name.endswith((".cpp", ".h"))]
    assert not [name for name in names if name.startswith(("tests", "scripts", "benchmarks"))]

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
    assert set(extras) == {"runtime", "serve", "report", "bench", "ray", "offline", "dev", "all"}
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
    for name in ("runtime", "serve", "report", "offline", "dev"):
        wanted += [item for item in extras[name].split() if not item.startswith("%(")]
    for requirement in wanted:
        name = requirement.split(">=")[0].split("==")[0].lower()
        assert name in pins, f"{name} is not in constraints.txt"


@pytest.mark.slow
def test_a_wheel_holds_everything(tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(
        REPOSITORY,
        copy,
        ignore=shutil.ignore_patterns(".git", ".venv", "runs", "build", "*.egg-info", ".*_cache"),
    )
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
        + ["--wheel-dir", str(tmp_path), str(copy)],
        capture_output=True,
        text=True,
        env=os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
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
    ):
        assert name in names, name
    assert not [name for name in names if name.startswith(("tests", "scripts", "benchmarks"))]

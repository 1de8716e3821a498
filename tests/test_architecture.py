"""Imports go one way, and what serves holds no torch: read off the source, and tried in a clean
process.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "bert_kd"

# Each room may import from the rooms on the lines above it, and from itself.
ORDER = [
    {"errors"},
    {"config", "store", "progress", "hardware", "scores"},
    {"config_file", "lock"},
    {"data"},
    {"logits"},
    {"teacher", "student"},
    {"evaluate", "runtime"},
    {"serve"},
    {"standing"},
    {"provenance"},
    {"timing"},
    {"assess"},
    {"stages"},
    {"cli_output"},
    {"cli_logits", "cli_serve"},
    {"cli"},
    {"__main__"},
]
# Torch-free: importing any of these pulls in none of HEAVY.
LIGHT = [
    "bert_kd",
    "bert_kd.cli",
    "bert_kd.stages",
    "bert_kd.config_file",
    "bert_kd.runtime.predictor",
    "bert_kd.runtime.bulk",
    "bert_kd.runtime.bundle",
    "bert_kd.runtime.native.engine",
    "bert_kd.serve.life",
    "bert_kd.logits.cache",
    "bert_kd.logits.exchange",
    "bert_kd.teacher.fill",
]
HEAVY = ["torch", "transformers", "datasets", "sklearn", "matplotlib"]


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports_of(path: Path) -> Iterator[tuple[str, int, bool]]:
    """Yield (module, line, whether for type checking alone), imports inside functions included."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield name.name, node.lineno, id(node) in for_types
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield str(node.module), node.lineno, id(node) in for_types


def test_every_room_has_its_place():
    rooms = {room_of(f"bert_kd.{path.relative_to(PACKAGE).parts[0].removesuffix('.py')}")
             for path in files()}  # fmt: skip
    assert rooms - {"__init__"} == set().union(*ORDER)


def test_imports_go_one_way():
    level = {room: index for index, rooms in enumerate(ORDER) for room in rooms}
    wrong = []
    for path in files():
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for module, line, for_types in imports_of(path):
            if not module.startswith("bert_kd") or for_types:
                continue
            other = room_of(module)
            if room == "__init__" or other in (room, "__init__"):
                continue
            if level[other] >= level[room]:
                wrong.append(f"{path.relative_to(PACKAGE)}:{line} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_only_the_stages_see_the_whole_configuration():
    allowed = {
        "config.py",
        "config_file.py",
        "provenance.py",
        "stages.py",
        "assess.py",
        "timing.py",
        "cli.py",
    }
    for path in files():
        if str(path.relative_to(PACKAGE)) in allowed:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "bert_kd.config":
                assert "Config" not in [name.name for name in node.names], path


def imported_by(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_stay_light(module: str):
    assert not imported_by(f"import {module}") & set(HEAVY)


def test_no_pickle_and_no_print():
    for path in files():
        for module, line, _ in imports_of(path):
            assert module.split(".")[0] not in ("pickle", "shelve", "dill"), f"{path}:{line}"
        text = path.read_text(encoding="utf-8")
        assert "weights_only=False" not in text and "torch.save(" not in text, path

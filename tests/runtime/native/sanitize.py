"""Runs the native runtime's tests under the address and undefined-behaviour sanitizers.

`python tests/runtime/native/sanitize.py [PYTEST ARGUMENTS]` (or `make sanitize`) builds the
extension apart from the one in use, with GCC or Clang of the variable CXX, and exits with pytest's
status; a finding ends the tests with the sanitizer's report.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).parents[3]
TESTS = Path(__file__).parent
FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g1"


def build(folder: Path) -> None:
    """Put a copy of the package with a sanitized extension into `folder`."""
    shutil.copytree(
        REPOSITORY / "bert_kd",
        folder / "bert_kd",
        ignore=shutil.ignore_patterns("*.so", "__pycache__"),
    )
    flags = {name: FLAGS for name in ("CFLAGS", "CXXFLAGS", "LDFLAGS")}
    subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build_ext"]
        + ["--build-lib", str(folder), "--build-temp", str(folder / "build")],
        cwd=REPOSITORY,
        env=os.environ | flags,
        check=True,
    )
    if not list(folder.glob("bert_kd/runtime/native/_native*.so")):
        sys.exit("the extension could not be built: see the compiler's messages above")


def library(name: str) -> str:
    """Return the path of one of the compiler's libraries."""
    compiler = os.environ.get("CXX", "g++")
    done = subprocess.run(
        [*compiler.split(), f"-print-file-name={name}"], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def main(arguments: list[str]) -> int:
    with tempfile.TemporaryDirectory() as name:
        build(Path(name))
        # The sanitizer has to be there before Python; with it, what it finds C++'s throw in.
        preloaded = " ".join(library(f"lib{part}.so") for part in ("asan", "stdc++"))
        environment = os.environ | {
            "PYTHONPATH": name,
            "LD_PRELOAD": preloaded,
            "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",  # Python itself leaks
            "UBSAN_OPTIONS": "print_stacktrace=1",
            # The package is the copy's, not that of the folder that this runs in.
            "PYTHONSAFEPATH": "1",
        }
        where = "from bert_kd.runtime.native import _native; print(_native.__file__)"
        used = subprocess.run(
            [sys.executable, "-c", where],
            cwd=REPOSITORY,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        if not used.startswith(name):
            sys.exit(f"{used} would be tested, not the extension that was built for it")
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
        wanted = arguments or [str(TESTS)]
        return subprocess.run(
            [*command, *wanted], cwd=REPOSITORY, env=environment, check=False
        ).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

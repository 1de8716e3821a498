"""How commands print their results: on standard output, as lines or as JSON."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from typing import Annotated, Any

import typer

from bert_kd.store import to_json

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def print_out(text: str) -> None:
    """Print a result on standard output."""
    sys.stdout.write(text if text.endswith("\n") else text + "\n")


def print_result(value: Any, as_json: bool, lines: Sequence[str]) -> None:
    """Print a command's result: JSON for programs, else lines for people."""
    print_out(to_json(_plain(value)) if as_json else "\n".join(lines))


def _plain(value: Any) -> Any:
    """Return data classes, also those in a list, as dicts."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return value

"""The JSON of the accuracy benchmark's tables, read back: its systems with their figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One system of a table with its figures by metric."""

    name: str
    role: str
    about: str
    beside: str | None
    part: str | None
    x: float | None
    values: Mapping[str, float | None]
    engine: str | None = None
    """What it was timed in."""


def rows_of(found: Json) -> list[Row]:
    """Return the systems of a benchmark's JSON, in its order."""
    values: dict[str, dict[str, float | None]] = {}
    for row in found["rows"]:
        values.setdefault(row["system"], {})[row["metric"]] = row["value"]
    return [Row(**system, values=values[system["name"]]) for system in found["config"]["systems"]]

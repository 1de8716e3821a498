"""Progress of long work: a rich bar with rate and time left on a terminal, plain lines elsewhere.

Here: `progress`, the one way in which the package reports how far it is, and `say`, one line for
people. Not here: logging for machines, which goes through `logging` under the name of the module.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

SECONDS_BETWEEN_LINES = 10.0

Advance = Callable[..., None]
"""`advance(n, note="")`: n more units are done; `note` replaces the short text at the end of the
line.
"""


def console() -> Console:
    """Return a console on standard error, so that standard output holds results alone."""
    return Console(file=sys.stderr, soft_wrap=True)


def say(message: str) -> None:
    """Print one line for people on standard error, as it is (no markup)."""
    console().print(message, markup=False, highlight=False)


class _Rate(ProgressColumn):
    """Units per second."""

    def __init__(self, unit: str) -> None:
        super().__init__(table_column=Column(no_wrap=True))
        self.unit = unit

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} {self.unit}/s" if task.speed else f"– {self.unit}/s")


def clock(seconds: float) -> str:
    """Format a duration as `1:05` or `2:03:04`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@contextmanager
def progress(what: str, total: int | None, unit: str, done: int = 0) -> Iterator[Advance]:
    """Yield `advance(n, note="")` for a task of `total` units (None: unknown), of which `done` are
    done already.
    """
    target = console()
    if target.is_terminal:
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            _Rate(unit),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True)),
            console=target,
            expand=True,
        ) as bar:
            task = bar.add_task(what, total=total, completed=done, note="")

            def advance(count: int, note: str = "") -> None:
                if note:
                    bar.update(task, note=note)
                bar.update(task, advance=count)

            yield advance
        return

    start = time.monotonic()
    finished, printed, latest = done, start, ""

    def line(final: bool) -> str:
        elapsed = max(time.monotonic() - start, 1e-9)
        rate = (finished - done) / elapsed
        share = f"{finished:,}" + (f"/{total:,}" if total is not None else "")
        text = f"{what}: {share} {unit}, {rate:,.0f} {unit}/s"
        if final:
            text += f", took {clock(elapsed)}"
        elif total is not None and rate > 0:
            text += f", {clock((total - finished) / rate)} left"
        return text + (f", {latest}" if latest else "")

    def advance_lines(count: int, note: str = "") -> None:
        nonlocal finished, printed, latest
        finished += count
        latest = note or latest
        now = time.monotonic()
        if now - printed >= SECONDS_BETWEEN_LINES:
            printed = now
            say(line(final=False))

    yield advance_lines
    say(line(final=True))

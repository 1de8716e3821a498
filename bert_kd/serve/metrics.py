"""Counters, gauges and histograms in Prometheus' text format, of all workers together.

Every worker writes a row of its own in memory that all of them share, so that any worker can tell
the sum, nothing is locked, and a worker that was killed loses no counts.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
STATUSES = tuple("200 400 401 404 405 408 413 415 422 429 431 500 503 closed".split())
"""What a request can end with; `closed`: its client went away."""
SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
TEXTS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0)


@dataclass(frozen=True)
class Family:
    """A metric and the values that its labels can have."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: Mapping[str, Sequence[str]]
    buckets: Sequence[float] = ()


def families(models: Sequence[str], endpoints: Sequence[str]) -> tuple[Family, ...]:
    """Return the metrics of a server of these models and endpoints."""
    of_model = {"model": models}
    of_endpoint = {"endpoint": endpoints}
    results = ("loaded", "refused")
    return (
        Family("requests_total", "counter", "Requests", {**of_endpoint, "status": STATUSES}),
        Family(
            "request_seconds",
            "histogram",
            "From the last byte of a request to its response",
            of_endpoint,
            SECONDS,
        ),
        Family("texts_total", "counter", "Texts answered", of_model),
        Family("batch_texts", "histogram", "Texts computed together", of_model, TEXTS),
        Family(
            "queue_seconds",
            "histogram",
            "From a request's submission to its first batch",
            of_model,
            SECONDS,
        ),
        Family("compute_seconds", "histogram", "Computing a batch", of_model, SECONDS),
        Family(
            "reloads_total",
            "counter",
            "Bundles replaced on disk, by worker",
            {**of_model, "result": results},
        ),
        Family("requests_in_hand", "gauge", "Requests being received or answered", {}),
        Family("queued_texts", "gauge", "Texts that wait to be computed", {}),
        Family("connections", "gauge", "Open connections", {}),
        Family("workers", "gauge", "Worker processes that serve", {}),
        Family("worker_starts_total", "counter", "Starts of worker processes", {}),
        Family("log_lines_dropped_total", "counter", "Log lines that nobody read in time", {}),
    )


class Metrics:
    """The metrics of one worker, and the sums of all."""

    def __init__(
        self, known: Sequence[Family], memory: memoryview | None = None, row: int = 0
    ) -> None:
        """`memory`: bytes that all workers share, a row of `size` for each; None: one's own."""
        self._families = known
        self._places: dict[tuple[str, ...], int] = {}
        cells = 0
        for family in known:
            for values in product(*family.labels.values()):
                self._places[family.name, *values] = cells
                cells += len(family.buckets) + 2 if family.buckets else 1
        self._cells = cells
        if memory is None:
            memory = memoryview(bytearray(8 * cells))
        self._all = memory.cast("B").cast("d")
        self._own = self._all[row * cells : (row + 1) * cells]
        self._buckets = {family.name: family.buckets for family in known if family.buckets}

    @property
    def size(self) -> int:
        """Bytes of a worker's row."""
        return 8 * self._cells

    def add(self, name: str, *labels: str, amount: float = 1.0) -> None:
        """Raise a counter."""
        self._own[self._places[name, *labels]] += amount

    def set(self, name: str, value: float) -> None:
        """Set a gauge."""
        self._own[self._places[(name,)]] = value

    def observe(self, name: str, *labels: str, value: float) -> None:
        """Count a value in a histogram."""
        place = self._places[name, *labels]
        buckets = self._buckets[name]
        self._own[place + bisect_left(buckets, value)] += 1.0
        self._own[place + len(buckets) + 1] += value

    def value(self, name: str, *labels: str) -> float:
        """Return a counter or gauge, summed over all workers."""
        return self._sum(self._places[name, *labels])

    def clear_gauges(self) -> None:
        """Forget what a worker before this one, which was killed, had in hand."""
        for family in self._families:
            if family.kind == "gauge":
                self.set(family.name, 0.0)

    def _sum(self, place: int) -> float:
        return float(sum(self._all[place :: self._cells]))

    def render(self) -> bytes:
        """Return all of them in Prometheus' text format; a series without a count is left out."""
        lines: list[str] = []
        for family in self._families:
            name = f"bert_kd_{family.name}"
            lines += [f"# HELP {name} {family.help}.", f"# TYPE {name} {family.kind}"]
            for values in product(*family.labels.values()):
                place = self._places[family.name, *values]
                labels = [
                    f'{key}="{_escape(value)}"'
                    for key, value in zip(family.labels, values, strict=True)
                ]
                if family.buckets:
                    lines += self._histogram(name, labels, place, family.buckets)
                elif (found := self._sum(place)) or not labels:
                    lines.append(f"{name}{_braces(labels)} {found:.17g}")
        return ("\n".join(lines) + "\n").encode()

    def _histogram(
        self, name: str, labels: list[str], place: int, buckets: Sequence[float]
    ) -> list[str]:
        lines = []
        total = 0.0
        for at, bound in enumerate([*(f"{bound:g}" for bound in buckets), "+Inf"]):
            total += self._sum(place + at)
            bucket = _braces([*labels, f'le="{bound}"'])
            lines.append(f"{name}_bucket{bucket} {total:.17g}")
        if not total:
            return []
        seconds = self._sum(place + len(buckets) + 1)
        where = _braces(labels)
        return [*lines, f"{name}_sum{where} {seconds:.17g}", f"{name}_count{where} {total:.17g}"]


def _braces(labels: Sequence[str]) -> str:
    return "{" + ",".join(labels) + "}" if labels else ""


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")

"""How fast systems answer raw text: latency at batch 1 and throughput in bulk, all in one
interleaved run.

A system is anything callable that takes a list of texts (or pairs) and returns when the answers are
there: tokenizing, the model and softmax are all inside. Systems take turns in rounds, each round
begun by another one, so that a machine that slows down for a while slows all of them; ratios are
taken within a round.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bert_kd.errors import DataError
from bert_kd.logits.linear import UNIT
from bert_kd.progress import progress

Texts = list[str] | list[tuple[str, str]]
System = Callable[[Texts], object]
Floats = npt.NDArray[np.float64]

TOKENIZING = "TOKENIZERS_PARALLELISM"
"""Whether tokenizers works in several threads: it looks at each call."""
WARM_UP_TEXTS = 16
WARM_UP_CALLS = 3
LEAST_SINGLE = 16
"""Texts one by one that every system answers a round, however slow it is."""
RUN = 8
LEAST_RUNS = 8
"""In bulk a slow system answers some runs of texts of like length instead of all texts. A few texts
of any length would be padded to the longest: of 16 SST-2 sentences, a system with batches of 1,024
tokens computes 1.7 tokens for each real one, of 2,048 sentences 1.02, of these runs 1.05.
"""
PIECE = re.compile(rf"{UNIT}|[^\w\s]")
"""What is seldom less than a token: a Chinese character, a word, a punctuation mark."""


@dataclass(frozen=True)
class Speed:
    """One system's speed. Latencies in microseconds at batch 1, percentiles over all texts of all
    rounds.

    `times_faster` (batch 1) and `times_throughput` (bulk) say how many times as fast as
    `reference`, the first system: the ratio within each round, over the same texts, then the median
    over rounds.
    """

    p50: float
    p95: float
    p99: float
    texts_per_second: float
    single_texts: int
    """Texts timed one by one, over all rounds."""
    bulk_texts: int
    """Texts answered in bulk a round."""
    rounds: int
    reference: str
    times_faster: float
    times_throughput: float


@dataclass(frozen=True)
class _Plan:
    """Which of the texts a system answers in a round, few enough to keep to its time."""

    single: list[int]
    bulk: list[list[int]]
    """A call each."""

    @property
    def bulk_texts(self) -> int:
        return sum(map(len, self.bulk))


@dataclass(frozen=True)
class Timings:
    """All that was timed in the rounds, from which any two systems can be compared."""

    latency: Mapping[str, Floats]
    """Seconds of each text, [rounds, texts]; NaN where a system did not get it."""
    rate: Mapping[str, Floats]
    """Texts a second in bulk, [rounds]."""
    plans: Mapping[str, _Plan]

    def speed(self, name: str, reference: str) -> Speed:
        """Return the speed of a system, compared with that of `reference`."""
        return _summarise(
            self.latency[name],
            self.rate[name],
            self.latency[reference],
            self.rate[reference],
            self.plans[name],
            reference,
        )


@contextmanager
def in_threads(count: int) -> Iterator[None]:
    """Have torch compute in `count` threads for the time being, and tokenizers work in one where
    that is 1: by itself it encodes lists of texts on all cores, whatever torch was given.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with tokenizing(in_parallel=count > 1):
            yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def tokenizing(*, in_parallel: bool) -> Iterator[None]:
    """Have tokenizers encode lists of texts in several threads, or in one, for the time being."""
    before = os.environ.get(TOKENIZING)
    os.environ[TOKENIZING] = "true" if in_parallel else "false"
    try:
        yield
    finally:
        del os.environ[TOKENIZING]
        if before is not None:
            os.environ[TOKENIZING] = before


def measure_speed(
    systems: Mapping[str, System],
    texts: Texts,
    *,
    single_texts: int,
    bulk_texts: int,
    rounds: int,
    seconds: float = 2.0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Speed]:
    """Return the speed of each system on `texts`, timed as by `time_systems`; the first one is what
    the others are compared with.
    """
    found = time_systems(
        systems,
        texts,
        single_texts=single_texts,
        bulk_texts=bulk_texts,
        rounds=rounds,
        seconds=seconds,
        clock=clock,
    )
    reference = next(iter(systems))
    return {name: found.speed(name, reference) for name in systems}


def time_systems(
    systems: Mapping[str, System],
    texts: Texts,
    *,
    single_texts: int,
    bulk_texts: int,
    rounds: int,
    seconds: float = 2.0,
    clock: Callable[[], float] = time.perf_counter,
) -> Timings:
    """Time all systems on `texts` in interleaved rounds.

    A round times `single_texts` texts one by one and one bulk call of `bulk_texts`, drawn from
    `texts` by a fixed shuffle (fewer where there are fewer). A system that would take more than
    about `seconds` for either gets fewer of the same texts, judged by its warm-up calls: the first
    ones one by one, at least `LEAST_SINGLE`, and in bulk at least `LEAST_RUNS` runs of `RUN`
    neighbours by length, evenly spread over all lengths. How many is in the result.
    """
    if not texts:
        raise DataError("there are no texts to measure speed with: prepare a split that has some")
    if not systems or rounds < 1:
        raise ValueError("speed needs a system and a round")
    names = list(systems)
    # One shuffled order for all: whoever gets fewer texts one by one gets the first ones, which
    # stand for the rest.
    order = [int(place) for place in np.random.default_rng(0).permutation(len(texts))]
    single, bulk = order[:single_texts], order[:bulk_texts]
    latency = {name: np.full((rounds, len(single)), np.nan) for name in names}  # [rounds, texts]
    rate = {name: np.zeros(rounds) for name in names}  # [rounds]

    with progress("speed", len(names) * (rounds + 1), "turns") as advance:
        plans = {}
        for name in names:
            plans[name] = _plan(systems[name], texts, single, bulk, seconds, clock)
            advance(1, f"warm-up of {name}")
        for turn in range(rounds):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                plan, system = plans[name], systems[name]
                for column, place in enumerate(plan.single):
                    latency[name][turn, column] = _time(system, _pick(texts, [place]), clock)
                took = sum(_time(system, _pick(texts, call), clock) for call in plan.bulk)
                rate[name][turn] = plan.bulk_texts / took
                advance(1, f"round {turn + 1} of {rounds}")
    return Timings(latency, rate, plans)


def _plan(
    system: System,
    texts: Texts,
    single: list[int],
    bulk: list[int],
    seconds: float,
    clock: Callable[[], float],
) -> _Plan:
    """Warm `system` up and choose how many of the texts it can answer in `seconds`.

    The best of a few calls counts: the first ones also pay for what is set up only once.
    """
    once = min(
        _time(system, _pick(texts, [place]), clock) for place in (single * 3)[:WARM_UP_CALLS]
    )
    sample = bulk[:WARM_UP_TEXTS]
    many = min(_time(system, _pick(texts, sample), clock) for _ in range(2)) / len(sample)
    return _Plan(
        single=single[: max(int(seconds / once), LEAST_SINGLE)],
        bulk=_calls(texts, bulk, max(int(seconds / many) // RUN, LEAST_RUNS)),
    )


def _calls(texts: Texts, bulk: list[int], runs: int) -> list[list[int]]:
    """Return the bulk calls of a system that has time for so many runs: all texts at once where
    they are no more, else the runs.
    """
    if len(bulk) <= runs * RUN:
        return [bulk]
    ordered = sorted(bulk, key=lambda place: _length(texts[place]))
    middles = ((2 * run + 1) * len(ordered) // (2 * runs) for run in range(runs))
    return [ordered[middle - RUN // 2 : middle + RUN // 2] for middle in middles]


def _length(text: str | tuple[str, str]) -> tuple[int, int]:
    """Return about how many tokens a text or pair has, then its letters."""
    sides = (text,) if isinstance(text, str) else text
    return sum(len(PIECE.findall(side)) for side in sides), sum(map(len, sides))


def _summarise(
    latency: Floats,
    rate: Floats,
    reference_latency: Floats,
    reference_rate: Floats,
    plan: _Plan,
    reference: str,
) -> Speed:
    """Put one system's times (seconds, [rounds, texts]) and rates (texts a second, [rounds]) into
    numbers.
    """
    timed = latency[~np.isnan(latency)] * 1e6
    p50, p95, p99 = (float(value) for value in np.percentile(timed, [50, 95, 99]))
    shared = ~np.isnan(latency[0]) & ~np.isnan(reference_latency[0])  # [texts]
    faster = np.median(reference_latency[:, shared], axis=1) / np.median(latency[:, shared], axis=1)
    return Speed(
        p50=p50,
        p95=p95,
        p99=p99,
        texts_per_second=float(np.median(rate)),
        single_texts=len(timed),
        bulk_texts=plan.bulk_texts,
        rounds=len(rate),
        reference=reference,
        times_faster=float(np.median(faster)),
        times_throughput=float(np.median(rate / reference_rate)),
    )


def _time(system: System, texts: Texts, clock: Callable[[], float]) -> float:
    """Return the seconds that one call takes; never 0, so that it can be divided by."""
    start = clock()
    system(texts)
    return max(clock() - start, 1e-9)


def _pick(texts: Texts, places: list[int]) -> Texts:
    return [texts[place] for place in places]  # type: ignore[return-value]

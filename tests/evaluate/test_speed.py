"""Speed with a clock that only the made-up systems move."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from bert_kd.errors import DataError
from bert_kd.evaluate.speed import TOKENIZING, in_threads, measure_speed

TEXTS = [f"text {number}" for number in range(40)]


class World:
    """A clock, and systems that take a known time for each text."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[tuple[str, int]] = []

    def clock(self) -> float:
        return self.now

    def system(self, name: str, seconds: float, per_call: float = 0.0):
        def answer(texts):
            self.calls.append((name, len(texts)))
            self.now += per_call + seconds * len(texts)

        return answer


def measured(world: World, systems, **more):
    settings = {"single_texts": 10, "bulk_texts": 40, "rounds": 4, "clock": world.clock} | more
    return measure_speed(systems, TEXTS, **settings)


def test_latency_throughput_and_ratios():
    world = World()
    systems = {"teacher": world.system("t", 0.010), "base": world.system("b", 0.0001, 0.0004)}
    found = measured(world, systems)
    assert found["teacher"].p50 == pytest.approx(10_000) == pytest.approx(found["teacher"].p99)
    assert found["base"].p50 == pytest.approx(500)
    assert found["base"].times_faster == pytest.approx(20)
    assert found["teacher"].texts_per_second == pytest.approx(100)
    assert found["base"].texts_per_second == pytest.approx(40 / (0.0004 + 0.004))
    assert found["base"].times_throughput == pytest.approx(40 / 0.0044 / 100)
    assert found["teacher"].times_faster == 1.0 and found["base"].reference == "teacher"
    assert found["base"].single_texts == 40 and found["base"].bulk_texts == 40


def test_systems_take_turns_each_round_begun_by_another():
    world = World()
    systems = {name: world.system(name, 0.001) for name in "abc"}
    measured(world, systems, rounds=3)
    warm = max(index for index, call in enumerate(world.calls[:60]) if call[1] == 16) + 1
    bulk = [name for name, count in world.calls[warm:] if count == 40]
    assert bulk == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]


def test_a_slow_system_gets_fewer_of_the_same_texts():
    world = World()
    systems = {"slow": world.system("s", 1.0), "fast": world.system("f", 0.001)}
    texts = [f"text {number}" for number in range(400)]
    settings = {"single_texts": 30, "bulk_texts": 400, "rounds": 2, "clock": world.clock}
    found = measure_speed(systems, texts, seconds=5.0, **settings)
    assert found["slow"].single_texts == 2 * 16 and found["slow"].bulk_texts == 8 * 8
    assert found["fast"].single_texts == 2 * 30 and found["fast"].bulk_texts == 400
    assert found["fast"].times_faster == pytest.approx(1000)
    assert found["fast"].times_throughput == pytest.approx(1000)
    slower = measure_speed(systems, texts, seconds=200.0, **settings)
    assert slower["slow"].single_texts == 2 * 30 and slower["slow"].bulk_texts == 25 * 8


def test_a_slow_system_pays_for_no_padding_that_a_call_of_all_texts_would_not_have():
    """It takes its time by the longest text of a batch of eight, as one with padding does."""
    world = World()
    random = np.random.default_rng(1)
    texts = ["x " * max(int(length), 1) for length in random.lognormal(3, 0.8, 2000)]

    def system(per_word: float):
        def answer(given):
            lengths = sorted(text.count("x") for text in given)
            world.now += per_word * sum(
                max(lengths[start : start + 8]) * len(lengths[start : start + 8])
                for start in range(0, len(lengths), 8)
            )

        return answer

    settings = {"single_texts": 5, "bulk_texts": 2000, "rounds": 1, "clock": world.clock}
    found = measure_speed({"slow": system(0.1), "fast": system(1e-6)}, texts, **settings)
    assert found["slow"].bulk_texts < 200 and found["fast"].bulk_texts == 2000
    assert found["fast"].times_throughput == pytest.approx(1e5, rel=0.1)


def test_a_machine_that_slows_down_for_a_round_does_not_change_the_ratio():
    world = World()
    factor = [1.0]

    def system(seconds: float):
        def answer(texts):
            world.now += factor[0] * seconds * len(texts)
            factor[0] *= 1.001  # ever slower

        return answer

    found = measured(world, {"a": system(0.01), "b": system(0.001)}, rounds=5)
    assert found["b"].times_faster == pytest.approx(10, rel=0.1)


def test_without_texts_there_is_nothing_to_measure():
    with pytest.raises(DataError, match="no texts"):
        measure_speed({"a": lambda _: None}, [], single_texts=1, bulk_texts=1, rounds=1)


@pytest.mark.parametrize("before", [None, "true"])
def test_one_thread_is_one_of_tokenizing_too(monkeypatch: pytest.MonkeyPatch, before: str | None):
    monkeypatch.delenv(TOKENIZING, raising=False)
    if before is not None:
        monkeypatch.setenv(TOKENIZING, before)
    threads = torch.get_num_threads()
    with in_threads(1):
        assert (torch.get_num_threads(), os.environ[TOKENIZING]) == (1, "false")
        with in_threads(2):
            assert (torch.get_num_threads(), os.environ[TOKENIZING]) == (2, "true")
        assert (torch.get_num_threads(), os.environ[TOKENIZING]) == (1, "false")
    assert (torch.get_num_threads(), os.environ.get(TOKENIZING)) == (threads, before)

"""Batches keep order and budget, give every request its share, and survive a text that fails."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import uvloop

from bert_kd.serve.batcher import (
    BATCH_CHARACTERS,
    INLINE_CHARACTERS,
    SLICE_CHARACTERS,
    TEXT_CHARACTERS,
    Batcher,
    Job,
)

LONG = "x" * 200


class Recorder:
    """An engine whose logit is the number that ends a text, and which notes its batches."""

    def __init__(self):
        self.batches = []
        self.threads = []

    def __call__(self, texts, texts_b):
        self.batches.append(list(texts))
        self.threads.append(threading.current_thread())
        if any("poison" in text for text in texts):
            raise RuntimeError("poisoned")
        values = [float(text.rpartition(" ")[2]) for text in texts]
        if texts_b is not None:
            values = [a - float(b) for a, b in zip(values, texts_b, strict=True)]
        return np.array(values, dtype=np.float32)[:, None]


@pytest.fixture
def engine():
    return Recorder()


@pytest.fixture
def loop():
    loop = uvloop.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture
def batcher(engine, loop):
    with ThreadPoolExecutor(1) as executor:
        yield Batcher(engine, 1, loop, executor)


def run(loop, batcher, *jobs):
    """Compute jobs of these texts, submitted together; return them in the order they finished."""
    finished = []

    async def main():
        done = loop.create_future()

        def finish(job):
            finished.append(job)
            if len(finished) == len(jobs):
                done.set_result(None)

        for job in jobs:
            job.finish = finish
            batcher.submit(job)
        await done

    loop.run_until_complete(main())
    return finished


def job(texts, texts_b=None):
    return Job(texts, texts_b, lambda done: None)


def numbered(count, start=0, prefix=""):
    return [f"{prefix} {number}" for number in range(start, start + count)]


def test_what_arrives_together_is_computed_together_and_at_once(batcher, engine, loop):
    jobs = [job([f"a {number}"]) for number in range(8)]
    assert run(loop, batcher, *jobs) == jobs
    assert [len(batch) for batch in engine.batches] == [8]
    assert [one.logits.tolist() for one in jobs] == [[[float(number)]] for number in range(8)]
    assert engine.threads == [threading.main_thread()]
    assert batcher.queued == 0


def test_long_lists_keep_their_order_in_slices(batcher, engine, loop):
    texts = numbered(1000, prefix=LONG)
    (done,) = run(loop, batcher, job(texts))
    assert done.logits[:, 0].tolist() == list(range(1000))
    assert len(engine.batches) > 1
    longest = len(LONG) + 5 + TEXT_CHARACTERS
    for batch in engine.batches:
        assert sum(len(text) + TEXT_CHARACTERS for text in batch) < BATCH_CHARACTERS + longest
    assert threading.main_thread() not in engine.threads
    assert batcher.queued == 0


def test_pairs(batcher, loop):
    (done,) = run(loop, batcher, job(["a 5", "b 9"], ["1", "2"]))
    assert done.logits[:, 0].tolist() == [4.0, 7.0]


def test_no_texts(batcher, engine, loop):
    (done,) = run(loop, batcher, job([]))
    assert done.logits.shape == (0, 1)
    assert engine.batches == []


def test_a_long_list_delays_a_single_text_by_little(batcher, engine, loop):
    long, short = job(numbered(2000, prefix=LONG)), job(["a 1"])
    assert run(loop, batcher, long, short) == [short, long]
    at = next(index for index, batch in enumerate(engine.batches) if "a 1" in batch)
    assert at == 0  # in the first batch, after one slice of the list
    held = sum(len(text) + TEXT_CHARACTERS for text in engine.batches[0][:-1])
    assert held <= BATCH_CHARACTERS + len(LONG) + 5 + TEXT_CHARACTERS


def test_long_lists_have_equal_shares(batcher, engine, loop):
    first, second = (job(numbered(400, start, LONG)) for start in (0, 1000))
    run(loop, batcher, first, second)
    half = engine.batches[0]
    mine = sum(float(text.rpartition(" ")[2]) < 1000 for text in half)
    assert 0.3 < mine / len(half) < 0.7
    assert first.logits[:, 0].tolist() == list(range(400))
    assert second.logits[:, 0].tolist() == list(range(1000, 1400))


def test_a_text_that_fails_fails_its_own_request_alone(batcher, loop):
    good, bad = job(["a 1"]), job(["poison 2"])
    other = job(["a 3", "a 4"])
    run(loop, batcher, good, bad, other)
    assert isinstance(bad.error, RuntimeError) and bad.logits is None
    assert good.logits.tolist() == [[1.0]] and other.logits.tolist() == [[3.0], [4.0]]


def test_a_list_of_which_one_text_fails_ends_once(batcher, engine, loop):
    texts = numbered(500, prefix=LONG)
    texts[100] = "poison 1"
    (done,) = run(loop, batcher, job(texts))
    assert isinstance(done.error, RuntimeError)
    (after,) = run(loop, batcher, job(["a 1"]))  # the rest of the list is not computed
    assert after.logits.tolist() == [[1.0]]
    assert sum(map(len, engine.batches)) < 500
    assert batcher.queued == 0


def test_cancelled_jobs_are_not_computed_and_not_finished(batcher, engine, loop):
    gone, stays = job(numbered(50)), job(["a 1"])
    finished = []
    gone.finish = finished.append
    batcher.submit(gone)
    gone.cancel()
    run(loop, batcher, stays)
    assert engine.batches == [["a 1"]]
    assert finished == []
    assert batcher.queued == 0


def test_a_job_cancelled_while_it_is_computed(batcher, engine, loop):
    gone, stays = job(numbered(3000, prefix=LONG)), job(["a 1"])
    gone.finish = lambda done: pytest.fail("a cancelled job was finished")
    batcher.submit(gone)
    run(loop, batcher, job(numbered(100, prefix=LONG)))
    gone.cancel()
    run(loop, batcher, stays)
    assert sum(map(len, engine.batches)) < 3000
    assert batcher.queued == 0


def test_the_loop_lives_while_a_large_batch_is_computed(loop):
    release = threading.Event()
    computing = threading.Event()

    def slow(texts, texts_b):
        computing.set()
        assert release.wait(20)
        return np.zeros((len(texts), 1), dtype=np.float32)

    with ThreadPoolExecutor(1) as executor:
        batcher = Batcher(slow, 1, loop, executor)

        async def main():
            done = loop.create_future()
            batcher.submit(Job(["x" * INLINE_CHARACTERS], None, done.set_result))
            while not computing.is_set():
                await loop.run_in_executor(None, computing.wait, 0.01)
            release.set()  # by the loop, which is free
            await done

        loop.run_until_complete(main())


def test_what_is_computed_is_observed(engine, loop):
    seen = []
    with ThreadPoolExecutor(1) as executor:
        batcher = Batcher(
            engine, 1, loop, executor, lambda texts, seconds: seen.append((texts, seconds))
        )
        run(loop, batcher, job(numbered(3)), job(numbered(2)))
    assert [texts for texts, _ in seen] == [5]
    assert all(seconds >= 0 for _, seconds in seen)


def test_a_slice_is_smaller_than_a_batch():
    assert SLICE_CHARACTERS <= INLINE_CHARACTERS < BATCH_CHARACTERS


def test_a_job_whose_end_fails_costs_the_others_nothing(batcher, loop):
    def fail(done):
        raise RuntimeError("a bug")

    told = []
    loop.set_exception_handler(lambda _loop, context: told.append(context["exception"]))
    batcher.submit(Job(["a 1"], None, fail))
    (other,) = run(loop, batcher, job(["a 2"]))
    assert other.logits.tolist() == [[2.0]]
    assert [str(error) for error in told] == ["a bug"]


def test_a_batch_that_cannot_be_observed_is_answered(engine, loop):
    def fail(texts, seconds):
        raise KeyError("a bug")

    told = []
    loop.set_exception_handler(lambda _loop, context: told.append(context["exception"]))
    with ThreadPoolExecutor(1) as executor:
        (done,) = run(loop, Batcher(engine, 1, loop, executor, fail), job(["a 2"]))
    assert done.logits.tolist() == [[2.0]]
    assert [type(error) for error in told] == [KeyError]

"""Texts of many requests, gathered for the engine.

No request waits for others to come: what has arrived is computed, and what arrives meanwhile is the
next batch. An idle server answers a text at once; a loaded one fills its batches, up to a budget of
characters. Each request puts in a slice at a time, in turns, so that a list of thousands of texts
delays a single text by little more than one batch.

Where a batch is computed goes by its size. A text of 50 characters was answered in 19 µs on the
event loop and in 43 µs by way of a thread (medians, 128 hidden units), so small batches are
computed on the loop, which they hold for about half a millisecond at most; larger ones go to a
thread, where the engine runs without Python's lock and the loop goes on reading and refusing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from time import perf_counter

import numpy as np
import numpy.typing as npt
from msgspec import Struct, field

Floats = npt.NDArray[np.float32]
Compute = Callable[[Sequence[str], Sequence[str] | None], Floats]
Observe = Callable[[int, float], None]
"""`observe(texts, seconds)`: a batch of so many texts was computed."""

BATCH_CHARACTERS = 16_384
"""What a batch may hold: about 2 ms of a core with 128 hidden units."""
SLICE_CHARACTERS = 4096
"""What a request puts in before it is the next one's turn."""
INLINE_CHARACTERS = 4096
"""Up to here a batch is computed on the event loop."""
TEXT_CHARACTERS = 8
"""What a text costs besides its characters, so that empty ones count too."""


class Job(Struct, eq=False):
    """The texts of a request on their way through the engine."""

    texts: Sequence[str]
    texts_b: Sequence[str] | None
    finish: Callable[[Job], None]
    """Called on the event loop when `logits` or `error` is there; never where it was cancelled."""
    logits: Floats | None = None
    error: Exception | None = None
    submitted: float = field(default_factory=perf_counter)
    begun: float = 0.0
    """When its first slice went to the engine."""
    done: float = 0.0
    taken: int = 0
    """Texts that went to the engine."""
    answered: int = 0
    cancelled: bool = False

    def cancel(self) -> None:
        """Compute no more of it, and do not call `finish`."""
        self.cancelled = True

    @property
    def over(self) -> bool:
        """Whether nothing more of it is to be computed."""
        return self.cancelled or self.error is not None or self.taken == len(self.texts)


class Slice(Struct, frozen=True):
    """The texts `start` to `stop` of a job."""

    job: Job
    start: int
    stop: int


class Batcher:
    """Computes jobs with one engine. All its methods are for the event loop's thread."""

    def __init__(
        self,
        compute: Compute,
        classes: int,
        loop: asyncio.AbstractEventLoop,
        executor: Executor,
        observe: Observe = lambda texts, seconds: None,
    ) -> None:
        self._compute = compute
        self._classes = classes
        self._loop = loop
        self._executor = executor
        self._observe = observe
        self._waiting: deque[Job] = deque()
        self._scheduled = False
        self._computing = False
        self.queued = 0
        """Texts that wait to be computed."""

    def submit(self, job: Job) -> None:
        """Compute a job in its turn."""
        if not job.texts:
            job.logits = np.empty((0, self._classes), dtype=np.float32)
            job.begun = job.done = job.submitted
            self._loop.call_soon(self._finish, job)
            return
        self._waiting.append(job)
        self.queued += len(job.texts)
        self._schedule()

    def _schedule(self) -> None:
        # Not now: the loop first reads what else has arrived.
        if not self._scheduled and not self._computing and self._waiting:
            self._scheduled = True
            self._loop.call_soon(self._run)

    def _run(self) -> None:
        self._scheduled = False
        batch, characters = self._take()
        if not batch:
            return
        begun = perf_counter()
        for part in batch:
            part.job.begun = part.job.begun or begun
        if characters <= INLINE_CHARACTERS:
            self._deliver(batch, *self._answer(batch))
            return
        self._computing = True
        future = self._executor.submit(self._answer, batch)
        future.add_done_callback(
            lambda done: self._loop.call_soon_threadsafe(self._on_thread, batch, done.result())
        )

    def _on_thread(
        self, batch: Sequence[Slice], result: tuple[Sequence[Floats | Exception], float]
    ) -> None:
        self._computing = False
        self._deliver(batch, *result)

    def _take(self) -> tuple[list[Slice], int]:
        """Return the next batch: slices of the waiting jobs in turn; and what it holds."""
        batch: list[Slice] = []
        characters = 0
        while self._waiting and characters < BATCH_CHARACTERS:
            job = self._waiting.popleft()
            if job.over:
                self.queued -= len(job.texts) - job.taken
                continue
            start, held = job.taken, 0
            budget = min(SLICE_CHARACTERS, BATCH_CHARACTERS - characters)
            while job.taken < len(job.texts) and held < budget:
                held += len(job.texts[job.taken]) + TEXT_CHARACTERS
                if job.texts_b is not None:
                    held += len(job.texts_b[job.taken])
                job.taken += 1
            batch.append(Slice(job, start, job.taken))
            self.queued -= job.taken - start
            characters += held
            if job.taken < len(job.texts):
                self._waiting.append(job)
        return batch, characters

    def _answer(self, batch: Sequence[Slice]) -> tuple[Sequence[Floats | Exception], float]:
        """Return each slice's logits, or why there are none; and the seconds it took."""
        begun = perf_counter()
        try:
            found = self._logits(batch)
            parts: list[Floats | Exception] = []
            row = 0
            for part in batch:
                size = part.stop - part.start
                parts.append(found[row : row + size])
                row += size
        except Exception as error:
            # One of them is at fault: the others are answered without it.
            parts = [error] if len(batch) == 1 else [self._answer([one])[0][0] for one in batch]
        return parts, perf_counter() - begun

    def _logits(self, batch: Sequence[Slice]) -> Floats:
        if len(batch) == 1:
            job, rows = batch[0].job, slice(batch[0].start, batch[0].stop)
            return self._compute(job.texts[rows], job.texts_b and job.texts_b[rows])
        texts: list[str] = []
        texts_b: list[str] = []
        for part in batch:
            texts += part.job.texts[part.start : part.stop]
            if part.job.texts_b is not None:
                texts_b += part.job.texts_b[part.start : part.stop]
        return self._compute(texts, texts_b or None)

    def _deliver(
        self, batch: Sequence[Slice], parts: Sequence[Floats | Exception], seconds: float
    ) -> None:
        try:
            self._observe(sum([part.stop - part.start for part in batch]), seconds)
        except Exception as error:
            self._tell("a batch was not observed", error)
        now = perf_counter()
        for part, found in zip(batch, parts, strict=True):
            job = part.job
            if isinstance(found, Exception):
                if job.error is None:
                    job.error, job.done = found, now
                    self._finish(job)
                continue
            if part.stop - part.start == len(job.texts):
                job.logits = found
            else:
                if job.logits is None:
                    job.logits = np.empty((len(job.texts), self._classes), dtype=np.float32)
                job.logits[part.start : part.stop] = found
            job.answered += part.stop - part.start
            if job.answered == len(job.texts) and job.error is None:
                job.done = now
                self._finish(job)
        self._schedule()

    def _finish(self, job: Job) -> None:
        if job.cancelled:
            return
        try:
            job.finish(job)
        except Exception as error:
            # A bug here must not cost the other requests of the batch their answers.
            self._tell("a job's end failed", error)

    def _tell(self, message: str, error: Exception) -> None:
        self._loop.call_exception_handler({"message": message, "exception": error})

"""Several worker processes on one listening socket: started, watched, started again.

The socket is opened once and inherited, so that connections that wait to be accepted outlive a
worker. Weights are mapped from the bundle's file: all workers share their pages. Metrics lie in
memory that all of them share. A worker is a fresh process, not a fork, so that it inherits no
threads; it ends by itself where the supervisor is gone.

One that ends is started again, from what then lies on disk. Where that can't be loaded, or is a
bundle of another name, it is tried again, later each time, until it can; the others go on with what
they have.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from types import FrameType
from typing import IO

import msgspec

from bert_kd.errors import UserError
from bert_kd.progress import say
from bert_kd.serve.app import ENDPOINTS
from bert_kd.serve.metrics import Metrics, families
from bert_kd.serve.models import Source
from bert_kd.serve.worker import Settings, Worker

POLL_SECONDS = 0.05
LONGEST_PAUSE = 30.0
"""Before a worker that keeps ending is started again; the first pause is a hundredth of it."""
STEADY_SECONDS = 10.0
"""A worker that ran so long did not fail at its start."""
REFUSED = 2
"""Exit status of a worker that met something that the user can put right."""


@dataclass(slots=True)
class _Slot:
    """The place of one worker, and who has it."""

    process: subprocess.Popen[bytes]
    started: float
    failures: int = 0
    restart_at: float | None = None


class Supervisor:
    """Keeps `settings.workers` processes serving on a socket that listens."""

    def __init__(
        self, settings: Settings, listener: socket.socket, sources: Sequence[Source]
    ) -> None:
        self._settings = settings
        self._listener = listener
        self._sources = sources
        known = families([source.name for source in sources], ENDPOINTS)
        size = Metrics(known).size * settings.workers
        self._file: IO[bytes] = tempfile.TemporaryFile()
        self._file.truncate(size)
        self._memory = memoryview(mmap.mmap(self._file.fileno(), size))
        self._rows = [Metrics(known, self._memory, row) for row in range(settings.workers)]
        self._stopping = False

    def run(self, ready: Callable[[], None]) -> None:
        """Serve until SIGTERM or SIGINT. Raises UserError where the first workers can't start."""
        before = {
            number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)
        }
        slots = [self._start(row) for row in range(self._settings.workers)]
        try:
            announced = False
            while not self._stopping:
                if not announced:
                    announced = self._started(slots)
                    if announced:
                        ready()
                for row, slot in enumerate(slots):
                    self._watch(row, slot)
                time.sleep(POLL_SECONDS)
        finally:
            self._end(slots)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stopping = True

    def _started(self, slots: list[_Slot]) -> bool:
        """Whether all workers serve. Raises UserError where one of them could not start."""
        for slot in slots:
            if slot.process.poll() == REFUSED:
                raise UserError("a worker could not start; what it said stands above")
        return self._rows[0].value("worker_starts_total") >= len(slots)

    def _start(self, row: int) -> _Slot:
        handles = [self._listener.fileno(), self._file.fileno()]
        process = subprocess.Popen(
            [sys.executable, "-m", "bert_kd.serve.supervisor"],
            stdin=subprocess.PIPE,
            pass_fds=handles,
            start_new_session=True,  # a terminal's Ctrl-C is for the supervisor, which tells them
        )
        # Keys go through the pipe: other users can read a command line. The pipe stays open: its
        # end tells the worker that this process is gone.
        sources = [asdict(source) for source in self._sources]
        told = {"settings": asdict(self._settings), "sources": sources, "row": row}
        line = json.dumps({**told, "handles": handles}) + "\n"
        assert process.stdin is not None
        try:
            process.stdin.write(line.encode())
            process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended already, which `_watch` sees
        return _Slot(process, time.monotonic())

    def _watch(self, row: int, slot: _Slot) -> None:
        """Start the worker again where it has ended, later each time where it ends at once."""
        now = time.monotonic()
        if slot.restart_at is None:
            status = slot.process.poll()
            if status is None:
                return
            steady = now - slot.started > STEADY_SECONDS
            slot.failures = 0 if steady else slot.failures + 1
            pause = 0.0 if slot.failures < 2 else LONGEST_PAUSE / 100 * 2 ** (slot.failures - 2)
            slot.restart_at = now + min(pause, LONGEST_PAUSE)
            self._rows[row].clear_gauges()
            when = f" in {slot.restart_at - now:.3g} seconds" if slot.restart_at > now else ""
            say(f"worker {slot.process.pid} ended ({_told(status)}); another starts{when}")
        if now >= slot.restart_at:
            self._close(slot)
            new = self._start(row)
            slot.process, slot.started, slot.restart_at = new.process, new.started, None

    def _end(self, slots: list[_Slot]) -> None:
        """Tell the workers to stop, and wait until they have."""
        self._listener.close()  # theirs are the last
        for slot in slots:
            if slot.process.poll() is None:
                slot.process.send_signal(signal.SIGTERM)
        end = time.monotonic() + self._settings.limits.drain_seconds + 5.0
        for slot in slots:
            try:
                slot.process.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                slot.process.kill()
                slot.process.wait()
            self._close(slot)

    @staticmethod
    def _close(slot: _Slot) -> None:
        assert slot.process.stdin is not None
        try:
            slot.process.stdin.close()
        except BrokenPipeError:
            pass


def _told(status: int) -> str:
    return f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"


def main() -> int:
    """Run the worker that the line on standard input describes."""
    told = json.loads(sys.stdin.buffer.readline())
    settings = msgspec.convert(told["settings"], Settings)
    listening, shared = told["handles"]
    # Until the worker's loop takes these over, its end is at once.
    listener = socket.socket(fileno=listening)
    memory = memoryview(mmap.mmap(shared, os.fstat(shared).st_size))
    try:
        sources = msgspec.convert(told["sources"], list[Source])
        worker = Worker(settings, listener, sources, memory, told["row"])
    except UserError as error:
        say(f"error: {error}")
        return REFUSED
    worker.stop_with(sys.stdin.fileno())
    worker.run(lambda: None)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Structured logs: a JSON object a line, written by a thread so that a slow reader holds up nobody.

No texts are logged, unless the server is told to.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec

LINES = 10_000
"""Lines that wait to be written; more are dropped, and counted."""
PIECE = 4096
"""Bytes written at a time: a pipe takes so many whole, also from several processes."""
SECONDS = 0.1
"""Between two rounds of writing."""


class Log:
    """Writes lines to a file descriptor, until it is closed."""

    def __init__(self, descriptor: int, on_drop: Callable[[], None] = lambda: None) -> None:
        self._descriptor = descriptor
        self._on_drop = on_drop
        self._encode = msgspec.json.Encoder().encode
        self._lines: deque[bytes] = deque()
        self._stop = threading.Event()
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._write_on, name="log", daemon=True)
        self._thread.start()

    def write(self, level: str, event: str, **facts: Any) -> None:
        """Log an event with its facts."""
        if len(self._lines) >= LINES:
            self._on_drop()
            return
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = {"time": time, "level": level, "event": event, "process": self._pid, **facts}
        self._lines.append(self._encode(line) + b"\n")

    def close(self) -> None:
        """Write what waits, for a second at most."""
        self._stop.set()
        self._thread.join(timeout=1.0)

    def _write_on(self) -> None:
        while True:
            last = self._stop.wait(SECONDS)
            if not self._write_lines():
                return  # nobody reads: further lines are dropped when there are too many
            if last:
                return

    def _write_lines(self) -> bool:
        """Write whole lines, as many at a time as go into a piece. False where nobody reads."""
        piece = b""
        try:
            while self._lines:
                line = self._lines.popleft()
                if len(piece) + len(line) > PIECE and piece:
                    self._write_all(piece)
                    piece = b""
                piece += line
            self._write_all(piece)
        except OSError:
            return False
        return True

    def _write_all(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._descriptor, data) :]

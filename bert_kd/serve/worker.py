"""One process that serves: it accepts, watches over deadlines, loads anew, and stops gracefully."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

from bert_kd.errors import UserError
from bert_kd.runtime.predictor import Engines, Predictor, load
from bert_kd.serve import tracing
from bert_kd.serve.app import ENDPOINTS, App
from bert_kd.serve.batcher import Batcher
from bert_kd.serve.connection import Clock, Connection
from bert_kd.serve.keys import Keys
from bert_kd.serve.limits import Limits
from bert_kd.serve.logs import Log
from bert_kd.serve.metrics import Metrics, families
from bert_kd.serve.models import Models, Source

TICK_SECONDS = 0.1
"""Between two looks at the deadlines."""
SILENCE_SECONDS = 0.5
"""A server that stops waits so long for the next request of a connection that is kept open."""
THREADS = 4
"""For batches too large for the event loop, bundles being loaded, and tokens being counted."""


@dataclass(frozen=True)
class Settings:
    """What a worker is told."""

    bundles: tuple[str, ...]
    """Each as `DIR` or `NAME=DIR`."""
    engine: Engines = "auto"
    threads: int | None = None
    workers: int = 1
    keys: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    reload_seconds: float = 1.0
    """Between two looks at the bundles on disk; 0: they are not looked at again."""
    log_requests: bool = True
    log_texts: bool = False
    otel: bool = False


class Worker:
    """Serves on a socket that listens, until it is told to stop."""

    def __init__(
        self,
        settings: Settings,
        listener: socket.socket,
        sources: Sequence[Source],
        memory: memoryview | None = None,
        row: int = 0,
    ) -> None:
        """`sources`: the bundles, the default one first. `memory`, `row`: as `Metrics` takes them.

        Raises BundleError where a bundle can't be loaded or has another name now, which is logged;
        MissingExtra where OpenTelemetry is asked for and not installed.
        """
        self._settings = settings
        self._listener = listener
        self._loop = uvloop.new_event_loop()
        self._executor = ThreadPoolExecutor(THREADS, thread_name_prefix="compute")
        names = [source.name for source in sources]
        self._metrics = Metrics(families(names, ENDPOINTS), memory, row)
        self._metrics.clear_gauges()
        self._log = Log(sys.stdout.fileno(), lambda: self._metrics.add("log_lines_dropped_total"))
        self._provider = tracing.open_provider() if settings.otel else None
        try:
            self._models = Models(sources, self._make_batcher, self._open)
        except UserError as error:
            self._log.write("error", "start", result="refused", why=str(error))
            self._log.close()
            raise
        self._app = App(
            self._models,
            self._loop,
            self._executor,
            limits=settings.limits,
            keys=Keys(settings.keys),
            metrics=self._metrics,
            log=self._log,
            workers=settings.workers,
            log_requests=settings.log_requests,
            log_texts=settings.log_texts,
            trace=tracing.tracer(self._provider) if self._provider is not None else None,
        )
        self._clock = Clock(self._loop)
        self._stopped = asyncio.Event()
        self._accepting = False
        self._opening: set[asyncio.Task[object]] = set()

    def run(self, ready: Callable[[], None]) -> None:
        """Serve until SIGTERM or SIGINT, then answer what is in hand. `ready` is called first."""
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve(ready))
        finally:
            self._executor.shutdown(wait=False, cancel_futures=True)
            self._loop.close()
            if self._provider is not None:
                self._provider.shutdown()
            self._log.close()

    def stop(self) -> None:
        """Take no more requests, answer those in hand, and end."""
        self._stopped.set()

    def stop_with(self, descriptor: int) -> None:
        """Stop where the process at the other end of this pipe is gone."""

        def read() -> None:
            if not os.read(descriptor, 1):
                self._loop.remove_reader(descriptor)
                self.stop()

        self._loop.add_reader(descriptor, read)

    async def _serve(self, ready: Callable[[], None]) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self.stop)
        self._listener.setblocking(False)
        self._listen()
        self._tick()
        reloads = self._loop.create_task(self._reload_on())
        # What is there now stays; the collector need not look at it again and again.
        gc.collect()
        gc.freeze()
        self._metrics.add("worker_starts_total")
        self._metrics.set("workers", 1)
        self._log.write("info", "ready", bundles=list(self._models.names))
        ready()
        await self._stopped.wait()
        self._log.write("info", "stopping", requests=self._app.in_hand)
        reloads.cancel()
        await self._drain()
        self._log.write("info", "stopped")

    async def _drain(self) -> None:
        """Answer what has come, also on connections that wait to be accepted."""
        if self._accepting:
            while self._accept():
                pass
            self._deafen()
        self._listener.close()  # now, so that who comes later is told at once
        self._app.stopping = self._clock.stopping = True
        if self._opening:
            await asyncio.wait(self._opening)
        # What these clients are sending is answered, and told to be the connection's last, before
        # their silence is believed.
        silent = self._loop.time() + SILENCE_SECONDS
        while self._clock.connections and self._loop.time() < silent:
            await asyncio.sleep(TICK_SECONDS / 4)
        end = self._loop.time() + self._settings.limits.drain_seconds
        while self._clock.connections and self._loop.time() < end:
            for connection in list(self._clock.connections):
                connection.stop()
            await asyncio.sleep(TICK_SECONDS / 4)
        for connection in list(self._clock.connections):
            connection.abort()
        await asyncio.sleep(0)

    def _listen(self) -> None:
        self._accepting = True
        self._loop.add_reader(self._listener.fileno(), self._accept)

    def _deafen(self) -> None:
        self._accepting = False
        self._loop.remove_reader(self._listener.fileno())

    def _accept(self) -> bool:
        """Accept one connection, so that other workers have the next; False where none waits."""
        if len(self._clock.connections) + len(self._opening) >= self._settings.limits.connections:
            self._deafen()  # the others wait in the kernel's queue; `_tick` listens again
            return False
        try:
            client, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return False
        except OSError as error:
            self._log.write("error", "accept", error=str(error))
            self._deafen()
            return False
        client.setblocking(False)
        if client.family in (socket.AF_INET, socket.AF_INET6):
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task: asyncio.Task[object] = self._loop.create_task(self._open_connection(client))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)
        return True

    async def _open_connection(self, client: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(
                lambda: Connection(self._app, self._clock), client
            )
        except OSError:
            client.close()

    def _tick(self) -> None:
        self._clock.tick()
        self._app.gauge()
        connections = len(self._clock.connections)
        self._metrics.set("connections", connections)
        if not self._accepting and not self._stopped.is_set():
            self._listen()
        self._loop.call_later(TICK_SECONDS, self._tick)

    async def _reload_on(self) -> None:
        """Load bundles anew that were replaced on disk."""
        seconds = self._settings.reload_seconds
        while seconds:
            await asyncio.sleep(seconds)
            for done in await self._models.reload(self._executor):
                result = "loaded" if done.refused is None else "refused"
                self._metrics.add("reloads_total", done.name, result)
                level = "info" if done.refused is None else "error"
                self._log.write(level, "reload", model=done.name, result=result, why=done.refused)

    def _open(self, folder: Path) -> Predictor:
        return load(folder, self._settings.engine, self._settings.threads)

    def _make_batcher(self, name: str, predictor: Predictor) -> Batcher:
        def observe(texts: int, seconds: float) -> None:
            self._metrics.observe("batch_texts", name, value=texts)
            self._metrics.observe("compute_seconds", name, value=seconds)

        return Batcher(predictor.logits, len(predictor.labels), self._loop, self._executor, observe)

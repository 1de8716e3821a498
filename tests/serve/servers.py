"""What the server's tests share: the application as a function, and a server in its own process."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import uvloop
from small_students import TEXTS

from bert_kd.runtime.predictor import load
from bert_kd.serve.app import ENDPOINTS, App
from bert_kd.serve.batcher import Batcher
from bert_kd.serve.keys import Keys
from bert_kd.serve.limits import Limits
from bert_kd.serve.logs import Log
from bert_kd.serve.messages import JSON, Request, Response
from bert_kd.serve.metrics import Metrics, families
from bert_kd.serve.models import Models, read_sources
from bert_kd.serve.wire import Refusal

JSON_HEADERS = {"content-type": "application/json"}
QUESTIONS = [text for text in TEXTS if text] * 3
"""What is asked under load."""


class Answer:
    """A response as a client sees it."""

    def __init__(self, response: Response) -> None:
        self.status = response.status
        self.headers = {key.decode(): value.decode() for key, value in response.headers}
        self.fields = [(key.decode(), value.decode()) for key, value in response.headers]
        """All of them, of which two can have one name."""
        self.headers["content-type"] = response.content_type.decode()
        self.text = response.body.decode()

    def json(self) -> Any:
        def refuse(name: str) -> None:
            raise AssertionError(f"{name} is no JSON")

        return json.loads(self.text, parse_constant=refuse)


class Harness:
    """The application without a socket; everything happens in `call`."""

    def __init__(
        self,
        folders: list[Path | str],
        limits: Limits | None = None,
        keys: tuple[str, ...] = (),
        **options: Any,
    ) -> None:
        self.loop = uvloop.new_event_loop()
        self.executor = ThreadPoolExecutor(2)
        self.models = Models(
            read_sources([str(folder) for folder in folders]),
            lambda _name, predictor: Batcher(
                lambda texts, texts_b: predictor.logits(texts, texts_b),
                len(predictor.labels),
                self.loop,
                self.executor,
            ),
            lambda folder: load(folder, threads=1),
        )
        self.metrics = Metrics(families(self.models.names, ENDPOINTS))
        self.log_file = tempfile.TemporaryFile()
        self.log = Log(self.log_file.fileno())
        self.app = App(
            self.models,
            self.loop,
            self.executor,
            limits=limits or Limits(),
            keys=Keys(keys),
            metrics=self.metrics,
            log=self.log,
            **options,
        )

    def __enter__(self) -> Harness:
        return self

    def __exit__(self, *_error: object) -> None:
        self.executor.shutdown()
        self.loop.close()
        self.log.close()
        self.log_file.close()

    def start(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[Request, asyncio.Future[Response]]:
        """Ask, and return the request and what will hold its response."""
        request = Request()
        request.method, request.path, request.body, request.id = method, path, body, b"test"
        request.headers = {
            key.lower().encode(): value.encode() for key, value in (headers or {}).items()
        }
        request.arrived = perf_counter()
        answered = self.loop.create_future()

        def reply(response: Response) -> None:
            self.app.finished(request, response)
            answered.set_result(response)

        try:
            self.app.admit(request)
        except Refusal as refusal:
            reply(self.app.refuse(refusal))
        else:
            self.app.handle(request, reply)
        return request, answered

    def call(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> Answer:
        """Ask, and return the answer."""
        _, answered = self.start(method, path, body, headers)
        return Answer(self.loop.run_until_complete(asyncio.wait_for(answered, 20)))

    def get(self, path: str, **headers: str) -> Answer:
        return self.call("GET", path, headers=headers)

    def post(self, path: str, body: Any, **headers: str) -> Answer:
        """Post JSON, or bytes as they are."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.call("POST", path, data, {**JSON_HEADERS, **headers})

    def logged(self) -> list[dict[str, Any]]:
        """Close the log and return its lines."""
        self.log.close()
        self.log_file.seek(0)
        return [json.loads(line) for line in self.log_file.read().splitlines()]


def refused(answer: Answer, status: int, kind: str) -> str:
    """Check an error's form and return its message."""
    assert answer.status == status, answer.text
    assert answer.headers["content-type"] == JSON.decode()
    found = answer.json()
    assert set(found) == {"error", "error_type"}
    assert found["error_type"] == kind
    assert "Traceback" not in found["error"]
    return str(found["error"])


class Served:
    """A server in a process of its own."""

    def __init__(self, process: subprocess.Popen[str], address: str, log: Path) -> None:
        self.process = process
        self.address = address
        self.port = int(address.rpartition(":")[2])
        self._log = log

    def ask(
        self, body: Any, path: str = "/predict", headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        """Post JSON on a connection of its own; return status and answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("POST", path, json.dumps(body), {**JSON_HEADERS, **(headers or {})})
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def get(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def metric(self, line: str) -> float:
        """Return the value of a series, 0 where it has none yet."""
        for found in self.get("/metrics")[1].decode().splitlines():
            if found.startswith(line + " "):
                return float(found.rpartition(" ")[2])
        return 0.0

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._log.read_text().splitlines()]

    def workers(self) -> list[int]:
        """Return the process ids of the workers."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(one) for one in children.read_text().split()]


@contextmanager
def serving(*arguments: object) -> Iterator[Served]:
    """Run `bert-kd serve` on a free port with these arguments; afterwards it must end well."""
    with tempfile.TemporaryDirectory() as folder:
        log, errors = Path(folder) / "log", Path(folder) / "errors"
        with log.open("w") as out, errors.open("w") as err:
            process = subprocess.Popen(
                [sys.executable, "-m", "bert_kd", "serve", "--port", "0", *map(str, arguments)],
                stdout=out,
                stderr=err,
                text=True,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
            )
        try:
            yield Served(process, _address(process, errors), log)
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=40) == 0, errors.read_text()
            assert "Traceback" not in errors.read_text(), errors.read_text()
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


def _address(process: subprocess.Popen[str], errors: Path) -> str:
    while process.poll() is None:
        found = re.search(r"^serving .* at (http://\S+)/$", errors.read_text(), re.MULTILINE)
        if found:
            return found[1]
        try:
            process.wait(0.05)
        except subprocess.TimeoutExpired:
            continue
    raise AssertionError(f"the server did not start: {errors.read_text()}")

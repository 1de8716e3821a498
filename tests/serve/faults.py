"""Faults under load, with their counts: overload, kills, stops, bundles replaced, odd requests.

The tests run these for a moment; as a script they run in full, on small students of random weights:

    PYTHONPATH=. python tests/serve/faults.py --replace 100 --kill 20 --stop 20 --cases 2000
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # pytest has these from its configuration
    sys.path[:0] = [str(Path(__file__).parents[1] / "runtime"), str(Path(__file__).parent)]

from servers import JSON_HEADERS, QUESTIONS, Served, serving

from bert_kd.runtime.predictor import Predictor, load
from bert_kd.store import writing_folder

NEAR = 1e-5
"""By which a score computed beside others may differ: sums in another order."""
PATIENCE = 60.0


def expected(predictor: Predictor) -> list[dict[str, Any]]:
    """Return the answers to `QUESTIONS`, each computed alone."""
    return [predictor(text)[0] for text in QUESTIONS]


def near(found: dict[str, Any], answer: dict[str, Any]) -> bool:
    """Whether two answers are the same but for rounding."""
    return found["label"] == answer["label"] and abs(found["score"] - answer["score"]) < NEAR


def ask_on(client: socket.socket, text: str, read: bool = True) -> bytes:
    """Send a question on a socket and, with `read`, return what comes back."""
    body = json.dumps({"inputs": text}).encode()
    client.sendall(
        b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%b" % (len(body), body)
    )
    return client.recv(65536) if read else b""


class Load:
    """Clients that ask without pause, each on its connection, and compare every answer."""

    def __init__(
        self, served: Served, versions: Sequence[Sequence[dict[str, Any]]], clients: int
    ) -> None:
        """`versions`: the answers to `QUESTIONS` of each bundle that may be served."""
        self.counts: Counter[str] = Counter()
        self.broken: list[str] = []
        self._served = served
        self._versions = versions
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._ask_on, args=(random.Random(seed),))
            for seed in range(clients)
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE)
        if any(thread.is_alive() for thread in self._threads):
            self.counts["lost"] += 1

    def _ask_on(self, chance: random.Random) -> None:
        connection = self._connect()
        while not self._stop.is_set():
            rows = chance.sample(range(len(QUESTIONS)), chance.choice((1, 1, 1, 2, 7)))
            try:
                connection.request(
                    "POST", "/predict", json.dumps({"inputs": [QUESTIONS[row] for row in rows]}),
                    JSON_HEADERS,
                )  # fmt: skip
                response = connection.getresponse()
                body = json.loads(response.read())
            except ConnectionRefusedError:
                self._note("turned away")  # nobody listens any more
                connection.close()
                time.sleep(0.02)
                continue
            except (OSError, http.client.HTTPException) as error:
                self._note("lost", f"{type(error).__name__}: {error}")
                connection.close()
                connection = self._connect()
                continue
            if response.status == 429 and body["error_type"] == "overloaded":
                assert response.headers["retry-after"] == "1"
                self._note("refused")
            elif response.status != 200:
                self._note("wrong", f"status {response.status}: {body}")
            elif not any(self._right(body, rows, answers) for answers in self._versions):
                self._note("wrong", f"{rows}: {body}")
            else:
                self._note("answered")
        connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self._served.port, timeout=PATIENCE)

    @staticmethod
    def _right(found: Any, rows: Sequence[int], answers: Sequence[dict[str, Any]]) -> bool:
        """Whether a whole response is one version's."""
        return len(found) == len(rows) and all(
            near(one, answers[row]) for one, row in zip(found, rows, strict=True)
        )

    def _note(self, what: str, why: str = "") -> None:
        with self._lock:
            self.counts[what] += 1
            if why:
                self.broken.append(why)


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Wait until something is so. Raises AssertionError where it does not come to be."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)


def twice_the_permitted_load(
    bundle: Path, predictor: Predictor, clients: int, seconds: float
) -> Counter[str]:
    """Ask with twice as many clients as requests are permitted; return what they got."""
    with serving(
        *("--bundle", bundle, "--threads", 1, "--no-log-requests"),
        *("--max-requests", clients // 2),
    ) as served:
        # Held by clients that are slow, so that the permitted load is there all the time.
        held = [
            socket.create_connection(("127.0.0.1", served.port)) for _ in range(clients // 2 - 1)
        ]
        for one in held:
            one.sendall(
                b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
                b"content-length: 9\r\n\r\n"
            )
        with Load(served, [expected(predictor)], clients) as load:
            time.sleep(seconds)
        for one in held:
            one.close()
        return load.counts


def killed_worker(bundle: Path, predictor: Predictor, kills: int) -> Counter[str]:
    """Kill one of two workers again and again under load; return what the clients got.

    `lost` are the requests that the killed worker had in hand.
    """
    with (
        serving(*("--bundle", bundle, "--workers", 2, "--no-log-requests")) as served,
        Load(served, [expected(predictor)], clients=4) as load,
    ):
        for _ in range(kills):
            before = served.workers()
            os.kill(before[0], signal.SIGKILL)
            starts = served.metric("bert_kd_worker_starts_total")
            wait_for(
                lambda before=before: len(set(served.workers()) - set(before)) == 1,
                "another worker",
            )
            wait_for(
                lambda starts=starts: served.metric("bert_kd_worker_starts_total") > starts,
                "the other worker to serve",
            )
            answered = load.counts["answered"]
            wait_for(lambda answered=answered: load.counts["answered"] > answered, "answers")
            load.counts["came back"] += 1
    return load.counts


def stopped_under_load(
    bundle: Path, predictor: Predictor, workers: int, times: int
) -> Counter[str]:
    """Stop a server under load again and again; return what the clients got until then.

    `lost` are requests that were taken and not answered.
    """
    counts: Counter[str] = Counter()
    for _ in range(times):
        with (
            serving(
                *("--bundle", bundle, "--threads", 1, "--workers", workers, "--no-log-requests")
            ) as served,
            Load(served, [expected(predictor)], clients=4) as load,
        ):
            wait_for(lambda load=load: load.counts["answered"] > 100, "answers")
            served.process.send_signal(signal.SIGTERM)
            served.process.wait(PATIENCE)
            wait_for(lambda load=load: load.counts["turned away"] > 0, "the end")
        counts += load.counts
        counts["stopped"] += 1
    return counts


def replaced_bundles(
    bundles: Sequence[Path], predictors: Sequence[Predictor], folder: Path, times: int
) -> Counter[str]:
    """Replace the served bundle by the other one under load; every answer must be one of theirs.

    After each time the new one must come to be served; `late` counts those for which it did not.
    """
    place = folder / "served"

    def put(source: Path) -> None:
        with writing_folder(place) as aside:
            shutil.copytree(source, aside, dirs_exist_ok=True)

    put(bundles[0])
    versions = [expected(predictor) for predictor in predictors]
    with (
        serving(
            *("--bundle", place, "--threads", 1, "--reload-seconds", 0.05, "--no-log-requests")
        ) as served,
        Load(served, versions, clients=4) as load,
    ):
        for turn in range(1, times + 1):
            put(bundles[turn % 2])
            wanted = versions[turn % 2][0]

            def is_served(wanted: dict[str, Any] = wanted) -> bool:
                return near(served.ask({"inputs": QUESTIONS[0]})[1][0], wanted)

            wait_for(is_served, "the new bundle")
            load.counts["replaced"] += 1
    if load.broken:
        sys.stderr.write("\n".join(load.broken[:5]) + "\n")
    return load.counts


def odd_requests(bundle: Path, pair_bundle: Path, cases: int) -> Counter[str]:
    """Run schemathesis over every endpoint; return how many cases it made and how many failed."""
    counts: Counter[str] = Counter()
    with serving(
        *("--bundle", bundle, "--bundle", pair_bundle, "--threads", 1, "--no-log-requests")
    ) as served:
        before = _requests(served)
        done = subprocess.run(
            [
                *(
                    sys.executable,
                    "-m",
                    "schemathesis.cli",
                    "run",
                    f"{served.address}/openapi.json",
                ),
                *("--checks", CHECKS, "--max-examples", str(cases), "--seed", "1"),
                *("--phases", "examples,coverage,fuzzing", "--continue-on-failure"),
                *("--suppress-health-check", "all", "--generation-database", "none", "--no-color"),
            ],
            capture_output=True,
            text=True,
            check=False,
            cwd=bundle.parent,  # it leaves files behind
        )
        counts["requests"] = int(_requests(served) - before)
        counts["server errors"] = int(sum(_by_status(served, "5")))
        counts["failed"] = done.returncode
        if done.returncode:
            sys.stderr.write(done.stdout[-8000:] + done.stderr[-2000:])
    return counts


CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_headers_conformance,response_schema_conformance,negative_data_rejection,"
    "unsupported_method"
)
"""Not `positive_data_acceptance`: what fits the schema can still be refused, as a pair sent to a
model of single texts is."""


def _by_status(served: Served, start: str) -> list[float]:
    text = served.get("/metrics")[1].decode()
    return [
        float(value)
        for value in re.findall(
            rf'^bert_kd_requests_total{{.*status="{start}.*"}} (\S+)$', text, re.MULTILINE
        )
    ]


def _requests(served: Served) -> float:
    return sum(_by_status(served, ""))


def main() -> None:
    """Run all faults in full and print what came of them."""
    from small_students import make_bundle

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--replace", type=int, default=100, help="times the bundle is replaced")
    parser.add_argument("--kill", type=int, default=20, help="workers that are killed")
    parser.add_argument("--stop", type=int, default=20, help="servers that are stopped, twice")
    parser.add_argument("--cases", type=int, default=2000, help="schemathesis' cases an endpoint")
    parser.add_argument("--overload", type=float, default=30.0, help="seconds of double load")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        bundle, other = make_bundle(folder / "a"), make_bundle(folder / "b", hidden=9)
        pair = make_bundle(folder / "c", name="twin", pair=True)
        first, second = load(bundle, threads=1), load(other, threads=1)
        results = {
            "twice the permitted load": twice_the_permitted_load(
                bundle, first, 16, arguments.overload
            ),
            "worker killed": killed_worker(bundle, first, arguments.kill),
            "stopped": stopped_under_load(bundle, first, 1, arguments.stop)
            + stopped_under_load(bundle, first, 2, arguments.stop),
            "bundle replaced": replaced_bundles(
                [bundle, other], [first, second], folder, arguments.replace
            ),
            "odd requests": odd_requests(bundle, pair, arguments.cases),
        }
    for name, counts in results.items():
        sys.stdout.write(f"{name}: {dict(counts)}\n")


if __name__ == "__main__":
    main()

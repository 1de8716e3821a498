"""Load for an HTTP server on loopback, from a process of its own: a closed loop of connections.

    serving_load.py     with the JSON of a `Load` on standard input; prints that of a `Told`

Each connection sends a request, waits for its answer and sends the next; so many connections are so
many requests in hand. One thread and raw sockets: about 12 µs of CPU a request. What is on its way
when the time is over is waited for and not counted, so that the server is idle afterwards.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

WAIT_SECONDS = 60.0
"""For the last answers; a server that takes longer has failed."""
SLOW_FACTOR = 5
"""A slow server has so many times as long to answer each connection at least once."""


@dataclass(frozen=True)
class Load:
    """What to ask, of whom, and for how long."""

    port: int
    connections: int
    seconds: float
    bodies: list[str]
    """JSON, each asked in turn."""
    path: str = "/predict"


@dataclass(frozen=True)
class Told:
    """What came of a load."""

    answered: int
    """Requests answered with status 200."""
    others: dict[str, int]
    """How many had another status, by status."""
    seconds: float
    p50_ms: float
    p99_ms: float
    cpu_share: float
    """Of a core, that the load itself took."""
    answers: list[tuple[int, str, int]]
    """Each different answer: the position of its body, itself, and how often it came."""


def requests_of(load: Load) -> list[bytes]:
    """Return the requests' bytes."""
    head = f"POST {load.path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    found = []
    for text in load.bodies:
        body = text.encode()
        found.append(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    return found


class Client:
    """A connection: the request that it waits for, and what has come of the answer."""

    __slots__ = ("begun", "data", "needed", "place", "socket", "unsent")

    def __init__(self, port: int, place: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=WAIT_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.place = place
        self.data = b""
        self.needed = 0
        self.begun = 0.0
        self.unsent = b""


def split(data: bytes) -> tuple[bytes, int]:
    """Return a response's status and the length of the whole; 0: its headers are not all there."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return b"", 0
    head = data[:end].lower()
    place = head.index(b"content-length:") + 15
    line = head.find(b"\r\n", place)
    length = int(head[place : line if line >= 0 else end])
    return data[9:12], end + 4 + length


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which this share of the values lies; NaN where there are none."""
    if not values:
        return float("nan")
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


class Counts:
    """What has been answered so far."""

    def __init__(self, load: Load) -> None:
        self.begun = self.last = time.perf_counter()
        self.latencies = array("d")
        self.seen: Counter[tuple[int, bytes]] = Counter()
        self.others: Counter[str] = Counter()
        self.ended = False
        self._least = load.connections
        self._end = self.begun + load.seconds
        self._late = self.begun + SLOW_FACTOR * load.seconds

    def add(self, client: Client, status: bytes, body: bytes) -> None:
        """Count an answer, unless the time is over."""
        if self.ended:
            return
        now = self.last = time.perf_counter()
        if status == b"200":
            self.latencies.append(now - client.begun)
            self.seen[client.place, body] += 1
        else:
            self.others[status.decode()] += 1
        enough = len(self.latencies) >= self._least
        self.ended = now > self._late or (now > self._end and enough)


def run(load: Load) -> Told:
    """Ask until the time is over. Raises RuntimeError where a connection is closed."""
    requests = requests_of(load)
    stride = max(len(requests) // load.connections, 1)
    poll = select.epoll()
    clients: dict[int, Client] = {}
    for number in range(load.connections):
        client = Client(load.port, number * stride % len(requests))
        clients[client.socket.fileno()] = client
        poll.register(client.socket.fileno(), select.EPOLLIN)
    cpu = time.process_time()
    counts = Counts(load)
    for client in clients.values():
        _send(client, requests, poll)
    waiting = len(clients)
    while waiting:
        events = poll.poll(WAIT_SECONDS)
        if not events:
            raise RuntimeError(f"no answer within {WAIT_SECONDS:g} seconds")
        for number, kinds in events:
            client = clients[number]
            if kinds & select.EPOLLOUT:
                _send_rest(client, poll)
                continue
            status, body = _receive(client)
            if not status:
                continue
            counts.add(client, status, body)
            if counts.ended:
                waiting -= 1
                continue
            client.place = (client.place + 1) % len(requests)
            _send(client, requests, poll)
    cpu = time.process_time() - cpu
    for client in clients.values():
        client.socket.close()
    total = time.perf_counter() - counts.begun
    return Told(
        answered=len(counts.latencies),
        others=dict(counts.others),
        seconds=counts.last - counts.begun,
        p50_ms=1e3 * percentile(counts.latencies, 0.5),
        p99_ms=1e3 * percentile(counts.latencies, 0.99),
        cpu_share=cpu / total,
        answers=[(place, body.decode(), times) for (place, body), times in counts.seen.items()],
    )


def _send(client: Client, requests: Sequence[bytes], poll: select.epoll) -> None:
    client.begun = time.perf_counter()
    client.data, client.needed = b"", 0
    client.unsent = requests[client.place]
    _write(client)
    if client.unsent:
        poll.modify(client.socket.fileno(), select.EPOLLIN | select.EPOLLOUT)


def _send_rest(client: Client, poll: select.epoll) -> None:
    """Go on with a request; once it is sent, only its answer is waited for."""
    _write(client)
    if not client.unsent:
        poll.modify(client.socket.fileno(), select.EPOLLIN)


def _write(client: Client) -> None:
    """Send as much as the socket takes now."""
    try:
        client.unsent = client.unsent[client.socket.send(client.unsent) :]
    except BlockingIOError:
        pass


def _receive(client: Client) -> tuple[bytes, bytes]:
    """Return the status and body of an answer that is whole now; else an empty status."""
    data = client.socket.recv(1 << 20)
    if not data:
        raise RuntimeError("the server closed a connection")
    data = client.data + data if client.data else data
    status, size = split(data)
    if not size or len(data) < size:
        client.data = data
        return b"", b""
    return status, data[data.index(b"\r\n\r\n") + 4 : size]


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asdict(run(Load(**json.load(sys.stdin))))))

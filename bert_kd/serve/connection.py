"""One connection: HTTP/1.1 in, requests to the application, responses out.

Beside a small model, what a general server takes to read a request and call an ASGI application
counts: `benchmarks/serving_protocols.py` measures it and this protocol, over the same parser and
loop. It also decides before the body is read, which ASGI leaves to the server, and every wait has
an end: for headers, body, answer, the next request, and a client that does not read.

Here: reading, refusing and writing, in order, also of pipelined requests. Parsing is llhttp's
(`httptools`). Not here: what a request means (`app.py`), and the clock that calls `expire`
(`worker.py`).
"""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import re
from collections import deque
from email.utils import formatdate
from functools import lru_cache, partial
from http import HTTPStatus
from time import perf_counter
from urllib.parse import unquote

import httptools

from bert_kd.serve.messages import Application, Request, Response
from bert_kd.serve.wire import Refusal

HEADER_BYTES = 32 * 1024
"""A request's target and headers, together."""
LINE_MARKS = 64
"""What a request's line takes at most besides its target."""
HEADER_MARKS = len(": \r\n")
"""What a header takes besides its name and value."""
LINGER_SECONDS = 2.0
"""After a refusal in the middle of a body, what still comes is read and thrown away so long: a
connection that is closed at once is reset, and its client may never see the refusal."""
REQUEST_ID = re.compile(rb"[A-Za-z0-9_.:-]{1,128}")


class Clock:
    """What all connections of a worker share: the open ones, and whether it is stopping."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.connections: set[Connection] = set()
        self.stopping = False
        self.date = b""
        self.tick()

    def tick(self) -> None:
        """Expire what has waited too long; to be called several times a second."""
        self.date = formatdate(usegmt=True).encode()
        now = self.loop.time()
        for connection in list(self.connections):
            if now > min(connection.read_by, connection.answer_by, connection.drain_by):
                connection.expire(now)


_PREFIX = os.urandom(4).hex().encode()
_numbers = itertools.count(1)
_STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}


class Connection(asyncio.Protocol):
    """A client's connection. Requests are answered one after another, in their order."""

    def __init__(self, application: Application, clock: Clock) -> None:
        self._application = application
        self._limits = application.limits
        self._clock = clock
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport = None  # type: ignore[assignment]  # until it is made
        self._incoming: Request | None = None
        self._headers: dict[bytes, bytes] = {}
        """Those of the incoming request."""
        self._url = b""
        self._head_open = False
        """A request's headers have begun and not ended."""
        self._hosts = 0
        """Headers `Host` of the incoming request."""
        self._head_bytes = 0
        """Of the target and the headers that are whole."""
        self._head_read = 0
        """Bytes of the reads in which the head neither began nor ended."""
        self._declined: Request | None = None
        """It would go on in another protocol, and is read again without that wish."""
        self._waiting: deque[Request] = deque()
        self._active: Request | None = None
        self._advancing = False
        self._deaf = False
        """Nothing more is read from this client."""
        self._lingers = False
        """It was refused in the middle of a request: what still comes is thrown away."""
        self._paused = False
        self._closed = False
        self.read_by = math.inf
        self.answer_by = math.inf
        self.drain_by = math.inf

    # --- the socket ----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._clock.connections.add(self)
        self.read_by = self._now() + self._limits.header_seconds

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed = True
        self._clock.connections.discard(self)
        for request in (self._active, *self._waiting, self._incoming):
            if request is not None:
                if request.work is not None:
                    request.work.cancel()
                self._application.finished(request, None)
        self._active = self._incoming = None
        self._waiting.clear()

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        before = self._incoming
        try:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                self._read_on(memoryview(data)[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            if not self._deaf:
                self._stop_reading(Refusal(400, "invalid_http", f"this is no HTTP/1.1: {error}"))
        if self._incoming is not None:
            self._look_at_rest(self._incoming, self._incoming is before, len(data))
        self._advance()
        if self._waiting:
            self._pause()

    def _look_at_rest(self, request: Request, throughout: bool, size: int) -> None:
        """Refuse a request that is not all there: its head is too long, or its body not wanted.

        `throughout`: the last read, of `size` bytes, was of this request from its first byte on.
        """
        if not self._head_open:
            if request.refusal is not None:
                self._stop_reading(request.refusal)
        elif throughout:
            self._head_read += size
            if self._head_read > HEADER_BYTES + LINE_MARKS:
                self._stop_reading(_head_too_large())

    def _read_on(self, rest: memoryview) -> None:
        """Read on in HTTP/1.1 where the parser takes what follows for another protocol.

        A server may ignore a wish to upgrade (RFC 9110, section 7.8). The parser has skipped the
        body, so that another one reads the head without the wish, and what follows.
        """
        while self._declined is not None:
            head, self._declined = self._head_again(self._declined), None
            self._parser = httptools.HttpRequestParser(self)
            self._parser.feed_data(head)
            try:
                self._parser.feed_data(rest)
                return
            except httptools.HttpParserUpgrade as upgrade:
                rest = rest[upgrade.args[0] :]
        # After CONNECT nothing is HTTP; it is answered itself, as the last request.
        self._deaf = True
        if self._waiting:
            self._waiting[-1].keep_alive = False

    def _head_again(self, request: Request) -> bytes:
        """Return the head of a request without its header `Upgrade`."""
        start = (self._parser.get_method(), self._url, self._parser.get_http_version().encode())
        lines = [b"%b %b HTTP/%b" % start]
        lines += [b"%b: %b" % line for line in request.headers.items() if line[0] != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])

    def eof_received(self) -> bool:
        """A client may close its half and still wait for the answer."""
        self._deaf = True
        self.read_by = math.inf
        if self._incoming is not None:
            self._application.finished(self._incoming, None)
            self._incoming = None
        for request in (self._active, *self._waiting):
            if request is not None:
                request.keep_alive = False
        return self._active is not None

    def pause_writing(self) -> None:
        self.drain_by = self._now() + self._limits.body_seconds
        self._pause()

    def resume_writing(self) -> None:
        self.drain_by = math.inf
        self._resume()

    def _pause(self) -> None:
        if not self._paused and not self._closed:
            self._paused = True
            self._transport.pause_reading()

    def _resume(self) -> None:
        """Read on, unless requests wait or the client does not take what is written."""
        if self._paused and not (self._waiting or self._closed or self.drain_by < math.inf):
            self._paused = False
            self._transport.resume_reading()
            if self._incoming is not None and not self._incoming.held_back:
                self._give_time()

    # --- the parser ----------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._deaf:
            return
        self._incoming = request = Request()
        self._headers = request.headers
        self._url = b""
        self._head_open = True
        self._hosts = self._head_bytes = self._head_read = 0
        self._give_time()

    def on_url(self, url: bytes) -> None:
        self._url += url
        self._head_bytes += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        key = name.lower()
        self._headers[key] = value
        if key == b"host":
            self._hosts += 1
        self._head_bytes += len(name) + len(value) + HEADER_MARKS

    def on_headers_complete(self) -> None:
        request = self._incoming
        self._head_open = False
        if request is None or self._deaf:
            return
        headers = request.headers
        request.method = self._parser.get_method().decode()
        request.path = _path(self._url)
        if self._hosts > 1:  # whoever passed it on may have believed the other (RFC 9112, 3.2)
            self._stop_reading(Refusal(400, "invalid_http", "the header Host is to be sent once"))
            return
        if b"upgrade" in headers and self._wants_another_protocol():
            self._declined, self._incoming = request, None
            return
        request.old_version = self._parser.get_http_version() == "1.0"
        request.keep_alive = self._parser.should_keep_alive()
        given = headers.get(b"x-request-id")
        if given and REQUEST_ID.fullmatch(given):
            request.id = given
        else:
            request.id = b"%b-%x" % (_PREFIX, next(_numbers))
        self._give_time()
        if self._head_bytes > HEADER_BYTES:
            self._stop_reading(_head_too_large())
            return
        try:
            if b"host" not in headers and not request.old_version:
                raise Refusal(400, "invalid_http", "HTTP/1.1 asks for the header Host: send it")
            self._application.admit(request)
            length = headers.get(b"content-length")
            if length is not None and int(length) > self._limits.payload_bytes:
                raise self._too_large()
        except Refusal as refusal:
            # Where its body is there by now, it is skipped; else `data_received` ends it.
            request.refusal = refusal
            return
        if headers.get(b"expect", b"").lower() == b"100-continue" and not request.old_version:
            request.held_back = True
            self.read_by = math.inf
            self._continue(request)

    def on_body(self, body: bytes) -> None:
        request = self._incoming
        if request is None or self._deaf or request.refusal is not None:
            return
        if request.held_back:  # its client has not waited
            request.held_back = False
            self._give_time()
        if len(request.body) + len(body) > self._limits.payload_bytes:
            self._stop_reading(self._too_large())
        elif not request.body:
            request.body = body
        else:
            if isinstance(request.body, bytes):
                request.body = bytearray(request.body)
            request.body += body

    def on_message_complete(self) -> None:
        if self._incoming is None or self._deaf:
            return
        request, self._incoming = self._incoming, None
        request.arrived = perf_counter()
        self._waiting.append(request)
        self.read_by = math.inf

    def _give_time(self) -> None:
        """Let the time for the incoming request's head, or its body, begin now."""
        limits = self._limits
        seconds = limits.header_seconds if self._head_open else limits.body_seconds
        self.read_by = self._now() + seconds

    def _continue(self, request: Request) -> None:
        """Ask for the body that is held back, once what was asked before is answered."""
        if request.held_back and self._active is None and not self._waiting:
            request.held_back = False
            self._give_time()
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _wants_another_protocol(self) -> bool:
        return self._parser.should_upgrade() and self._parser.get_method() != b"CONNECT"

    def _too_large(self) -> Refusal:
        return Refusal(
            413,
            "payload_too_large",
            f"the body is over {self._limits.payload_bytes} bytes: send fewer texts at a time",
        )

    def _stop_reading(self, refusal: Refusal) -> None:
        """Refuse what is arriving, as the last request of this connection."""
        request = self._incoming or Request()
        self._incoming = None
        request.id = request.id or b"%b-%x" % (_PREFIX, next(_numbers))
        request.arrived = perf_counter()
        request.refusal = refusal
        request.keep_alive = False
        request.body = b""
        self._waiting.append(request)
        self._deaf = self._lingers = True
        self.read_by = math.inf

    # --- answers -------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Have the next request answered, and the next, as long as answers are there at once."""
        if self._advancing:
            return
        self._advancing = True
        while self._active is None and self._waiting and not self._closed:
            request = self._active = self._waiting.popleft()
            self.answer_by = self._now() + self._limits.request_seconds
            if request.refusal is not None:
                self._reply(request, self._application.refuse(request.refusal))
            else:
                self._application.handle(request, partial(self._reply, request))
        self._advancing = False

    def _reply(self, request: Request, response: Response) -> None:
        if request is not self._active or self._closed:
            return  # its time was over, or its client is gone
        self._active = None
        self.answer_by = math.inf
        keep = request.keep_alive and not self._clock.stopping
        self._write(request, response, keep)
        self._application.finished(request, response)
        if not keep:
            self._end()
            return
        if self._waiting:
            self._advance()
            return
        if self._paused:
            self._resume()
        if self._incoming is None:
            self.read_by = self._now() + self._limits.idle_seconds
        else:
            self._continue(self._incoming)

    def _write(self, request: Request, response: Response, keep: bool) -> None:
        head = [
            _STATUS_LINES[response.status],
            b"content-type: ",
            response.content_type,
            b"\r\ncontent-length: %d\r\ndate: " % len(response.body),
            self._clock.date,
            b"\r\nx-request-id: ",
            request.id,
        ]
        for name, value in response.headers:
            head += (b"\r\n", name, b": ", value)
        if not keep:
            head.append(b"\r\nconnection: close")
        elif request.old_version:
            head.append(b"\r\nconnection: keep-alive")
        head.append(b"\r\n\r\n")
        if request.method != "HEAD":
            head.append(response.body)
        self._transport.write(b"".join(head))

    def _end(self) -> None:
        """Close after the last response."""
        for request in self._waiting:
            self._application.finished(request, None)
        self._waiting.clear()
        self._deaf = True
        if self._lingers and not self._closed:
            self._transport.write_eof()
            self._resume()
            self.read_by = self._now() + LINGER_SECONDS
        else:
            self._transport.close()

    def stop(self) -> None:
        """Close where nothing is in hand; else after the answer."""
        if self._active is None and self._incoming is None and not self._waiting:
            self._deaf = True
            self._transport.close()

    def abort(self) -> None:
        """Close now."""
        self._transport.abort()

    def expire(self, now: float) -> None:
        """Act on the deadline that is over."""
        if now > self.drain_by:
            self.abort()
        elif now > self.answer_by and self._active is not None:
            if self._active.work is not None:
                self._active.work.cancel()
            late = Refusal(
                503,
                "timeout",
                f"no answer within {self._limits.request_seconds:g} seconds: ask for fewer texts",
                ((b"retry-after", b"1"),),
            )
            self._reply(self._active, self._application.refuse(late))
        elif now > self.read_by and not self._paused:  # what has come and is not read is not late
            if self._incoming is None or self._deaf:
                self.read_by = math.inf
                self._transport.close()
                return
            self._stop_reading(Refusal(408, "request_timeout", "the request took too long to come"))
            self._advance()

    def _now(self) -> float:
        return self._clock.loop.time()


def _head_too_large() -> Refusal:
    return Refusal(431, "headers_too_large", f"the headers are over {HEADER_BYTES} bytes")


@lru_cache(maxsize=64)
def _path(url: bytes) -> str:
    """Return the decoded path of a request's target, without its query."""
    target = url.partition(b"?")[0]
    if not target.startswith(b"/") and b"://" in target:
        rest = target.partition(b"://")[2]
        target = b"/" + rest.partition(b"/")[2]
    text = target.decode("ascii", "replace")
    return unquote(text, errors="replace") if "%" in text else text

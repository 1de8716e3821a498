"""A request, its response, and what a connection asks of the application between them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from bert_kd.serve.limits import Limits
from bert_kd.serve.wire import Refusal

JSON = b"application/json"


class Cancellable(Protocol):
    """Work for a request that need not be done when its client is gone."""

    def cancel(self) -> None:
        """Stop it."""


class Request:
    """A request as far as it has arrived."""

    __slots__ = (
        "admitted",
        "arrived",
        "body",
        "headers",
        "held_back",
        "id",
        "keep_alive",
        "label",
        "method",
        "old_version",
        "path",
        "refusal",
        "texts",
        "work",
    )

    def __init__(self) -> None:
        self.method = ""
        self.path = ""
        self.headers: dict[bytes, bytes] = {}
        self.body: bytes | bytearray = b""
        self.held_back = False
        """Its client waits for `100 Continue` before it sends the body."""
        self.id = b""
        self.arrived = 0.0
        """When its last byte was there, by `perf_counter`."""
        self.keep_alive = True
        self.old_version = False
        """HTTP/1.0, where a connection that stays open has to be said."""
        self.refusal: Refusal | None = None
        """Why it is not answered, where that is known before the application is asked."""
        self.work: Cancellable | None = None
        self.admitted = False
        """Counts among the requests in hand."""
        self.label = "other"
        """The endpoint, as metrics name it."""
        self.texts = 0


class Response:
    """A status, a body and headers."""

    __slots__ = ("body", "content_type", "headers", "status")

    def __init__(
        self,
        status: int,
        body: bytes,
        content_type: bytes = JSON,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        self.status = status
        self.body = body
        self.content_type = content_type
        self.headers = headers


Reply = Callable[[Response], None]


class Application(Protocol):
    """What answers requests, without a socket."""

    limits: Limits

    def admit(self, request: Request) -> None:
        """Look at a request whose headers have arrived. Raises Refusal: its body is not read."""

    def handle(self, request: Request, reply: Reply) -> None:
        """Answer a request: calls `reply`, now or later, once."""

    def refuse(self, refusal: Refusal) -> Response:
        """Return the response to a request that is not answered."""

    def finished(self, request: Request, response: Response | None) -> None:
        """Note that a request has ended; `response` None: its client went away."""

"""What a server takes on, and how long it waits: every limit, with its default."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from bert_kd.errors import UserError


@dataclass(frozen=True)
class Limits:
    """Limits of one worker process. Past them a request is refused and says which it was."""

    concurrent_requests: int = 512
    """Requests for answers in hand, their bodies on the way included; more get status 429."""
    connections: int = 4096
    """Open connections; more wait to be accepted."""
    queued_texts: int = 65_536
    """Texts that wait to be computed; a request that would go past it gets status 429."""
    texts: int = 4096
    """Texts, or pairs, in a request."""
    characters: int = 100_000
    """Characters in a text."""
    payload_bytes: int = 8 * 1024 * 1024
    """Bytes in a request's body; status 413 past it, before it is read."""
    header_seconds: float = 5.0
    """For a request's line and headers to arrive."""
    body_seconds: float = 20.0
    """For its body to arrive, and for its client to take the response."""
    request_seconds: float = 30.0
    """For its answer; status 503 past it."""
    idle_seconds: float = 75.0
    """A connection without a request is closed then."""
    drain_seconds: float = 20.0
    """For the requests in hand to be answered when the server is told to stop."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (0 < value < math.inf):
                raise UserError(f"{field.name} is {value}: give a number above 0")

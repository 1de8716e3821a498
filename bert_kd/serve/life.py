"""From the command line to a server that listens: what was asked for is checked, then served."""

from __future__ import annotations

import ipaddress
import math
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace

from bert_kd.errors import MissingExtra, UserError
from bert_kd.progress import say

try:
    import httptools  # noqa: F401
    import msgspec  # noqa: F401
    import uvloop  # noqa: F401
except ModuleNotFoundError as error:
    raise MissingExtra(error.name or "httptools", "serve") from None

from bert_kd.serve.models import Source, read_sources
from bert_kd.serve.supervisor import Supervisor
from bert_kd.serve.worker import Settings, Worker

BACKLOG = 4096
"""Connections that wait to be accepted."""


def serve(
    settings: Settings, host: str = "127.0.0.1", port: int = 8000, allow_no_key: bool = False
) -> None:
    """Serve bundles until SIGTERM or SIGINT; port 0 takes a free one, and the address is reported.

    Raises UserError where the address cannot be listened on, or is open to other machines and no
    key is asked for (`allow_no_key`: then too); BundleError where a bundle cannot be loaded.
    """
    sources = read_sources(settings.bundles)
    names = ", ".join(source.name for source in sources)
    if settings.workers < 1:
        raise UserError(f"workers is {settings.workers}: give 1 or more")
    if not 0 <= settings.reload_seconds < math.inf:
        raise UserError(
            f"reload_seconds is {settings.reload_seconds:g}: give seconds, or 0 for never"
        )
    with listen(host, port) as listener:
        if not (settings.keys or allow_no_key or is_loopback(listener)):
            raise UserError(
                f"{host} can be reached from other machines: ask for a key with --api-key-file, or "
                "say --allow-no-key where everyone who reaches it may use the server"
            )
        where = f"[{host}]" if ":" in host else host
        address = f"http://{where}:{listener.getsockname()[1]}/"

        def ready() -> None:
            say(f"serving {names} at {address}")

        run = _runner(settings, listener, sources)
        run(ready)


def _runner(
    settings: Settings, listener: socket.socket, sources: Sequence[Source]
) -> Callable[[Callable[[], None]], None]:
    """Return what serves: this process, or a supervisor of several."""
    if settings.workers == 1:
        return Worker(settings, listener, sources).run
    if settings.threads is None:
        # Workers share the cores; a batch each is what fills them.
        settings = replace(settings, threads=1)
    return Supervisor(settings, listener, sources).run


def is_loopback(listener: socket.socket) -> bool:
    """Whether a listening socket can be reached from this machine alone."""
    address = str(listener.getsockname()[0]).partition("%")[0]
    return ipaddress.ip_address(address).is_loopback


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens at the address. Raises UserError where that is not to be had."""
    if not 0 <= port < 65536:
        raise UserError(
            f"cannot listen at port {port}: give one from 1 to 65535, or 0 for a free one"
        )
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise UserError(
            f"cannot listen at {host}, port {port} ({error}): give another --host or --port"
        ) from None
    return listener

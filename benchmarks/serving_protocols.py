"""What HTTP itself costs: the CPU of a request to this server's protocol, uvicorn and granian, each
with an application that reads a body and answers with a few bytes.

    python benchmarks/serving_protocols.py --rounds 5 --json FILE
    python benchmarks/serving_protocols.py --serve SYSTEM    the server alone, until it is ended

Each system serves in a process of its own, with uvloop, and is asked in interleaved rounds over
`--connections` connections on loopback. What is counted is user and system time, the kernel's for
the socket included, which all of them pay alike. Servers that are not installed are left out
(`pip install uvicorn granian`). Takes (rounds + 1) × systems × seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import uvloop
from serving import Server, ask, served
from serving_load import Load
from speed_runs import facts, interleaved, rate_rows, report, user_errors

from bert_kd.errors import UserError
from bert_kd.progress import say
from bert_kd.serve.connection import Clock, Connection
from bert_kd.serve.limits import Limits
from bert_kd.serve.messages import Reply, Request, Response
from bert_kd.serve.wire import Refusal

OURS = "bert_kd's protocol"
UVICORN = "uvicorn, ASGI"
GRANIAN = "granian, ASGI"
GRANIAN_RSGI = "granian, RSGI"
SYSTEMS = {OURS: "httptools", UVICORN: "uvicorn", GRANIAN: "granian", GRANIAN_RSGI: "granian"}
"""The systems, and the package that each needs."""
ANSWER = b'[{"label":"positive","score":0.9978241324424744}]'
BODY = json.dumps({"inputs": "a text of about fifty characters, as they often are"})
MICROSECONDS = 1e6


# --- applications that do nothing ----------------------------------------------------------------


class Nothing:
    """An application for `Connection`."""

    limits = Limits()

    def admit(self, request: Request) -> None:
        """Take every request."""

    def handle(self, request: Request, reply: Reply) -> None:
        """Answer."""
        assert request.body
        reply(Response(200, ANSWER))

    def refuse(self, refusal: Refusal) -> Response:
        """Answer what could not be read."""
        return Response(refusal.status, b"")

    def finished(self, request: Request, response: Response | None) -> None:
        """Count nothing."""


async def asgi(
    scope: Mapping[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    """An application for ASGI."""
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(ANSWER))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": ANSWER})


async def rsgi(scope: Any, protocol: Any) -> None:
    """An application for granian's own interface."""
    await protocol()
    headers = [("content-type", "application/json"), ("content-length", str(len(ANSWER)))]
    protocol.response_bytes(200, headers, ANSWER)


# --- servers -------------------------------------------------------------------------------------


def serve(system: str) -> None:
    """Serve a system on a free port, and tell the address."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        if system in (GRANIAN, GRANIAN_RSGI):
            listener.close()  # it opens the port itself, some time after it is told
            _serve_granian(system, port)
            return
        listener.listen(4096)
        _tell(port)
        if system == OURS:
            uvloop.run(_serve_ours(listener))
        else:
            import uvicorn

            config = uvicorn.Config(
                asgi, http="httptools", loop="uvloop", access_log=False, log_level="warning"
            )
            uvicorn.Server(config).run(sockets=[listener])


async def _serve_ours(listener: socket.socket) -> None:
    clock = Clock(asyncio.get_running_loop())
    server = await clock.loop.create_server(lambda: Connection(Nothing(), clock), sock=listener)
    async with server:
        while True:
            await asyncio.sleep(0.1)
            clock.tick()


def _serve_granian(system: str, port: int) -> None:
    from granian import Granian
    from granian.constants import Interfaces, Loops

    name, interface = ("asgi", Interfaces.ASGI) if system == GRANIAN else ("rsgi", Interfaces.RSGI)
    server = Granian(
        f"serving_protocols:{name}",
        port=port,
        interface=interface,
        loop=Loops.uvloop,
        log_enabled=False,
    )
    server.on_startup(lambda: _tell(port))
    server.serve()


def _tell(port: int) -> None:
    sys.stderr.write(f"serving at http://127.0.0.1:{port}/\n")
    sys.stderr.flush()


# --- the measurement -----------------------------------------------------------------------------


def microseconds(server: Server, load: Load) -> float:
    """Put a load on a server and return the CPU time that a request took it."""
    before = server.cpu_seconds()
    told = ask(load)
    return MICROSECONDS * (server.cpu_seconds() - before) / told.answered


def main() -> None:
    """Run the benchmark and print what it found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds")
    parser.add_argument("--json", type=Path, help="write what was measured to this file")
    parser.add_argument("--seconds", type=float, default=3.0, help="of load, each time")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--serve", choices=list(SYSTEMS), help="serve this one, measure nothing")
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return
    known = [system for system, package in SYSTEMS.items() if find_spec(package)]
    if missing := [system for system in SYSTEMS if system not in known]:
        say(f"not installed and left out: {', '.join(missing)}")
    with user_errors(), ExitStack() as stack:
        if known[:1] != [OURS]:
            raise UserError("httptools is not installed: pip install 'bert_kd[serve]'")
        turns = {}
        for system in known:
            server = stack.enter_context(served(__file__, "--serve", system))
            load = Load(server.port, options.connections, options.seconds, [BODY])
            turns[system] = partial(microseconds, server, load)
        found = interleaved(turns, options.rounds)
        others = {"seconds": options.seconds, "connections": options.connections}
        rows = rate_rows(found, "CPU microseconds a request")
        report({**facts(options, threads=1, **others), "rows": rows}, options.json)


if __name__ == "__main__":
    main()

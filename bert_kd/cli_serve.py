"""`bert-kd serve`: its options, which are the server's settings and limits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from bert_kd.serve.limits import Limits

DEFAULTS = Limits()
LIMITS = "Limits, of each worker (S: seconds)"
SECONDS = "S > 0"
ACCESS = "Access"


def serve(
    bundle: Annotated[
        list[str],
        typer.Option(
            "--bundle",
            "-b",
            metavar="[NAME=]DIR",
            help="Folder of an exported student; repeatable. With NAME it is served under that "
            "name, not under its own.",
        ),
    ],
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="To listen at.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(metavar="PORT", help="To listen at; 0: a free one.", min=0, max=65535)
    ] = 8000,
    engine: Annotated[
        Literal["auto", "native", "onnx"],
        typer.Option(metavar="NAME", help="What computes the answers: auto, native or onnx."),
    ] = "auto",
    threads: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="CPU threads of a model; none given: all, with several workers one.",
            min=1,
        ),
    ] = None,
    workers: Annotated[int, typer.Option(metavar="N", help="Processes that answer.", min=1)] = 1,
    reload_seconds: Annotated[
        float,
        typer.Option(metavar="S", help="Between two looks for replaced bundles; 0: never.", min=0),
    ] = 1.0,
    no_log_requests: Annotated[
        bool,
        typer.Option(
            "--no-log-requests", help="Log no JSON line for each request on standard output."
        ),
    ] = False,
    log_texts: Annotated[bool, typer.Option("--log-texts", help="Log the texts, too.")] = False,
    otel: Annotated[
        bool, typer.Option("--otel", help="Export spans by OpenTelemetry (extra 'otel').")
    ] = False,
    api_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="To ask for; others can read a command line.",
            rich_help_panel=ACCESS,
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Of keys, one a line.", rich_help_panel=ACCESS),
    ] = None,
    allow_no_key: Annotated[
        bool,
        typer.Option(
            "--allow-no-key",
            help="Listen without a key where other machines reach it.",
            rich_help_panel=ACCESS,
        ),
    ] = False,
    max_requests: Annotated[
        int,
        typer.Option(metavar="N", help="Requests in hand at once.", min=1, rich_help_panel=LIMITS),
    ] = DEFAULTS.concurrent_requests,
    max_connections: Annotated[
        int, typer.Option(metavar="N", help="Open connections.", min=1, rich_help_panel=LIMITS)
    ] = DEFAULTS.connections,
    max_queued_texts: Annotated[
        int, typer.Option(metavar="N", help="Texts that wait.", min=1, rich_help_panel=LIMITS)
    ] = DEFAULTS.queued_texts,
    max_texts: Annotated[
        int, typer.Option(metavar="N", help="Texts in a request.", min=1, rich_help_panel=LIMITS)
    ] = DEFAULTS.texts,
    max_characters: Annotated[
        int, typer.Option(metavar="N", help="Characters in a text.", min=1, rich_help_panel=LIMITS)
    ] = DEFAULTS.characters,
    max_payload: Annotated[
        int, typer.Option(metavar="N", help="Bytes in a body.", min=1, rich_help_panel=LIMITS)
    ] = DEFAULTS.payload_bytes,
    header_seconds: Annotated[
        float,
        typer.Option(metavar=SECONDS, help="For headers to arrive.", rich_help_panel=LIMITS),
    ] = DEFAULTS.header_seconds,
    body_seconds: Annotated[
        float,
        typer.Option(metavar=SECONDS, help="For a body to arrive.", rich_help_panel=LIMITS),
    ] = DEFAULTS.body_seconds,
    request_seconds: Annotated[
        float,
        typer.Option(metavar=SECONDS, help="For an answer.", rich_help_panel=LIMITS),
    ] = DEFAULTS.request_seconds,
    idle_seconds: Annotated[
        float,
        typer.Option(metavar=SECONDS, help="For the next request.", rich_help_panel=LIMITS),
    ] = DEFAULTS.idle_seconds,
    drain_seconds: Annotated[
        float,
        typer.Option(
            metavar=SECONDS, help="For what is in hand at the end.", rich_help_panel=LIMITS
        ),
    ] = DEFAULTS.drain_seconds,
) -> None:
    """07: answer POST /predict over HTTP, with a page at / and the API at /docs."""
    from bert_kd.serve.keys import read_keys
    from bert_kd.serve.life import serve as start
    from bert_kd.serve.worker import Settings

    settings = Settings(
        bundles=tuple(bundle),
        engine=engine,
        threads=threads,
        workers=workers,
        keys=read_keys(api_key, api_key_file),
        limits=Limits(
            concurrent_requests=max_requests,
            connections=max_connections,
            queued_texts=max_queued_texts,
            texts=max_texts,
            characters=max_characters,
            payload_bytes=max_payload,
            header_seconds=header_seconds,
            body_seconds=body_seconds,
            request_seconds=request_seconds,
            idle_seconds=idle_seconds,
            drain_seconds=drain_seconds,
        ),
        reload_seconds=reload_seconds,
        log_requests=not no_log_requests,
        log_texts=log_texts,
        otel=otel,
    )
    start(settings, host, port, allow_no_key)

"""`bert-kd serve`: its options, which are the server's settings and limits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from bert_kd.serve.limits import Limits

DEFAULTS = Limits()
LIMITS = "Limits, of each worker"
ACCESS = "Access"


def serve(
    bundle: Annotated[
        list[Path],
        typer.Option("--bundle", "-b", help="Folder of an exported student; repeatable."),
    ],
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(help="Port to listen at; 0: a free one.", min=0, max=65535)
    ] = 8000,
    engine: Annotated[
        Literal["auto", "native", "onnx"], typer.Option(help="What computes the answers.")
    ] = "auto",
    threads: Annotated[
        int | None,
        typer.Option(
            help="CPU threads of a model; none given: all, with several workers one.", min=1
        ),
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes that answer.", min=1)] = 1,
    reload_seconds: Annotated[
        float,
        typer.Option(help="Between two looks for replaced bundles; 0: never.", min=0.0),
    ] = 1.0,
    log_requests: Annotated[
        bool, typer.Option(help="Log a JSON line for each request on standard output.")
    ] = True,
    log_texts: Annotated[bool, typer.Option("--log-texts", help="Log the texts, too.")] = False,
    otel: Annotated[
        bool, typer.Option("--otel", help="Export spans by OpenTelemetry (extra 'otel').")
    ] = False,
    api_key: Annotated[
        str | None,
        typer.Option(
            help="Key to ask for; others can read a command line.", rich_help_panel=ACCESS
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(help="File of keys, one a line.", rich_help_panel=ACCESS)
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
        int, typer.Option(help="Requests in hand at once.", min=1, rich_help_panel=LIMITS)
    ] = DEFAULTS.concurrent_requests,
    max_connections: Annotated[
        int, typer.Option(help="Open connections.", min=1, rich_help_panel=LIMITS)
    ] = DEFAULTS.connections,
    max_queued_texts: Annotated[
        int, typer.Option(help="Texts that wait.", min=1, rich_help_panel=LIMITS)
    ] = DEFAULTS.queued_texts,
    max_texts: Annotated[
        int, typer.Option(help="Texts in a request.", min=1, rich_help_panel=LIMITS)
    ] = DEFAULTS.texts,
    max_characters: Annotated[
        int, typer.Option(help="Characters in a text.", min=1, rich_help_panel=LIMITS)
    ] = DEFAULTS.characters,
    max_payload: Annotated[
        int, typer.Option(help="Bytes in a body.", min=1, rich_help_panel=LIMITS)
    ] = DEFAULTS.payload_bytes,
    header_seconds: Annotated[
        float, typer.Option(help="For headers to arrive.", rich_help_panel=LIMITS)
    ] = DEFAULTS.header_seconds,
    body_seconds: Annotated[
        float, typer.Option(help="For a body to arrive.", rich_help_panel=LIMITS)
    ] = DEFAULTS.body_seconds,
    request_seconds: Annotated[
        float, typer.Option(help="For an answer.", rich_help_panel=LIMITS)
    ] = DEFAULTS.request_seconds,
    idle_seconds: Annotated[
        float, typer.Option(help="For the next request.", rich_help_panel=LIMITS)
    ] = DEFAULTS.idle_seconds,
    drain_seconds: Annotated[
        float, typer.Option(help="For what is in hand at the end.", rich_help_panel=LIMITS)
    ] = DEFAULTS.drain_seconds,
) -> None:
    """07: answer POST /predict over HTTP, with a page at / and the API at /docs."""
    from bert_kd.serve.keys import read_keys
    from bert_kd.serve.life import serve as start
    from bert_kd.serve.worker import Settings

    settings = Settings(
        bundles=tuple(str(folder) for folder in bundle),
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
        log_requests=log_requests,
        log_texts=log_texts,
        otel=otel,
    )
    start(settings, host, port, allow_no_key)

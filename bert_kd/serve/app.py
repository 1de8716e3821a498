"""Answers over HTTP: the endpoints, their errors, and the server that listens.

    POST /predict   {"inputs": …, "top_k": …} → what the predictor answers to the same arguments
    GET  /health    whether it answers at all
    GET  /info      the bundles: labels, engine, sizes
    GET  /          a page to try them on

Every error is JSON, `{"error": what to do, "error_type": a word for programs}`. Not here: how texts
become answers (`bert_kd.runtime.predictor`).
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

import bert_kd
from bert_kd.errors import BundleError, MissingExtra, UserError, nearest
from bert_kd.progress import say
from bert_kd.runtime.predictor import UNSET, Predictor, load

try:
    from fastapi import FastAPI, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import HTMLResponse, JSONResponse
    from starlette.exceptions import HTTPException
except ModuleNotFoundError:
    raise MissingExtra("fastapi", "serve") from None

PAGE = Path(__file__).parent / "page" / "index.html"
PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'"
)
BACKLOG = 2048
"""Connections that wait to be accepted."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Strict(BaseModel):
    """Unknown fields and values of another type are refused."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Pair(Strict):
    """A text or, with `text_pair`, a pair of texts."""

    text: str
    text_pair: str | None = None


def _kind(value: Any) -> str | None:
    """Return which kind of input a value is, or None where it is none."""
    if isinstance(value, str):
        return "<text>"
    if isinstance(value, dict | Pair):
        return "<pair>"
    return "<list>" if isinstance(value, list) else None


def _kind_in_list(value: Any) -> str | None:
    kind = _kind(value)
    return kind if kind != "<list>" else None


_PAIR_SHAPE = '{"text": "…", "text_pair": "…"}'
Single = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[Pair, Tag("<pair>")],
    Discriminator(
        _kind_in_list,
        custom_error_type="input_type",
        custom_error_message=f"must be a text or {_PAIR_SHAPE}",
    ),
]
Inputs = Annotated[
    Annotated[str, Tag("<text>")]
    | Annotated[Pair, Tag("<pair>")]
    | Annotated[list[Single], Tag("<list>")],
    Discriminator(
        _kind,
        custom_error_type="input_type",
        custom_error_message=f"must be a text, {_PAIR_SHAPE}, or a list of these",
    ),
]


class PredictRequest(Strict):
    """What to answer."""

    inputs: Inputs
    """A text, a pair, or a list of these."""
    top_k: Annotated[int, Field(ge=1)] | None = None
    """How many labels for each input, best first; null: all; not given: the best one alone."""
    model: str | None = None
    """Name of the bundle, where several are served; null: the first."""


class Answer(BaseModel):
    """A label and its probability."""

    label: str
    score: float


ErrorType = Literal[
    "invalid_json", "invalid_request", "not_found", "method_not_allowed", "http_error", "internal"
]


class Failure(BaseModel):
    """What went wrong, for people and for programs."""

    error: str
    error_type: ErrorType


Answers = Answer | list[Answer] | list[list[Answer]]


def create_app(predictors: Mapping[str, Predictor]) -> FastAPI:
    """Return the application that answers with these predictors; the first is the default."""
    if not predictors:
        raise BundleError("there is no bundle to serve: give at least one")
    default = next(iter(predictors))
    page = PAGE.read_text(encoding="utf-8")
    app = FastAPI(
        title="bert_kd",
        version=bert_kd.__version__,
        description="Text classification with distilled students.",
        docs_url=None,  # FastAPI's pages load their scripts from elsewhere
        redoc_url=None,
        exception_handlers={
            RequestValidationError: _on_invalid_request,
            HTTPException: _on_http_error,
            UserError: _on_user_error,
            Exception: _on_bug,
        },
    )

    # Plain functions: they run in threads, and the engine computes without Python's lock.
    @app.post(
        "/predict",
        response_model=Answers,
        responses={status: {"model": Failure} for status in (400, 404, 422, 500)},
    )
    def predict(request: PredictRequest) -> JSONResponse:
        """Answer in the shapes of transformers' text-classification pipeline."""
        start = time.perf_counter()
        name = request.model if request.model is not None else default
        if name not in predictors:
            return _failure(
                404,
                "not_found",
                f"there is no model {ascii(name)}{nearest(name, predictors)}; served: "
                f"{', '.join(predictors)}",
            )
        top_k = request.top_k if "top_k" in request.model_fields_set else UNSET
        answers = predictors[name](_plain(request.inputs), top_k=top_k)
        milliseconds = 1e3 * (time.perf_counter() - start)
        return JSONResponse(answers, headers={"Server-Timing": f"predict;dur={milliseconds:.3f}"})

    @app.get("/health")
    def health() -> dict[str, str]:
        """Say that the server answers."""
        return {"status": "ok"}

    @app.get("/info")
    def info() -> dict[str, Any]:
        """Return the bundles served, the default one first."""
        described = [describe(name, predictor) for name, predictor in predictors.items()]
        return {"version": bert_kd.__version__, "bundles": described}

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    def index() -> HTMLResponse:
        """Return the page."""
        return HTMLResponse(page, headers={"Content-Security-Policy": PAGE_POLICY})

    return app


def describe(name: str, predictor: Predictor) -> dict[str, Any]:
    """Return a bundle's facts for `/info`."""
    bundle = predictor.bundle
    truncation = predictor.tokenizer.truncation
    return {
        "name": name,
        "labels": list(bundle.labels),
        "pair": bundle.pair,
        "engine": predictor.engine.name,
        "max_tokens": truncation["max_length"] if truncation else None,
        "parameters": bundle.parameters,
        "bytes": bundle.bytes,
        "created": bundle.created,
    }


def _plain(inputs: str | Pair | list[Any]) -> Any:
    """Return checked inputs as the predictor takes them."""
    if isinstance(inputs, list):
        return [_plain(item) for item in inputs]
    return inputs if isinstance(inputs, str) else inputs.model_dump(exclude_none=True)


def _failure(status: int, kind: ErrorType, message: str) -> JSONResponse:
    return JSONResponse(Failure(error=message, error_type=kind).model_dump(), status)


async def _on_invalid_request(request: Request, error: RequestValidationError) -> JSONResponse:
    """Name the first fields that are wrong; the values sent are not repeated."""
    found = error.errors()
    kind = request.headers.get("content-type", "")
    if found[0]["type"] == "model_attributes_type" and "json" not in kind:
        return _failure(
            422,
            "invalid_request",
            "send the body as JSON, with the header content-type: "
            f"application/json, not {kind or 'without one'}",
        )
    if found[0]["type"] == "json_invalid":
        return _failure(400, "invalid_json", f"the body is not JSON: {found[0]['ctx']['error']}")
    lines = [f"{_field(line['loc'])}: {line['msg']}" for line in found[:3]]
    more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
    return _failure(422, "invalid_request", "; ".join(lines) + more)


def _field(place: Sequence[str | int]) -> str:
    """Return a field's place as one writes it: `inputs[3].text_pair`."""
    text = ""
    for part in place[1:]:
        if isinstance(part, int):
            text += f"[{part}]"
        elif not part.startswith("<"):  # the kinds of `_kind` are no fields
            text += f".{part}" if text else part
    return text or "the body"


async def _on_http_error(_request: Request, error: HTTPException) -> JSONResponse:
    if error.status_code == 400:
        # FastAPI's answer to a body that is not UTF-8, or nested too deep.
        return _failure(400, "invalid_json", "the body cannot be read as JSON")
    kinds: dict[int, ErrorType] = {404: "not_found", 405: "method_not_allowed"}
    kind = kinds.get(error.status_code, "http_error")
    response = _failure(error.status_code, kind, str(error.detail))
    response.headers.update(error.headers or {})
    return response


async def _on_user_error(_request: Request, error: UserError) -> JSONResponse:
    return _failure(422, "invalid_request", str(error))


async def _on_bug(_request: Request, _error: Exception) -> JSONResponse:
    # The traceback goes to the server's log, never to the client.
    return _failure(500, "internal", "the server failed to answer; its log says why")


def serve(
    bundles: Sequence[Path],
    host: str = "127.0.0.1",
    port: int = 8000,
    threads: int | None = None,
) -> None:
    """Serve these bundles until interrupted; port 0 takes a free one, and the address is reported.

    `threads`: CPU threads of each model, None: one for each physical core. Raises UserError where
    the address cannot be listened on, BundleError where a bundle cannot be loaded.
    """
    try:
        import uvicorn
    except ModuleNotFoundError:
        raise MissingExtra("uvicorn", "serve") from None

    predictors: dict[str, Predictor] = {}
    for folder in bundles:
        predictor = load(folder, threads=threads)
        name = predictor.bundle.name
        if name in predictors:
            raise BundleError(
                f"two of the bundles are called {name!r}: serve them on two ports, or export one "
                "under another name"
            )
        predictors[name] = predictor
    app = create_app(predictors)
    with listen(host, port) as listener:
        shown = f"[{host}]" if ":" in host else host
        say(f"serving {', '.join(predictors)} at http://{shown}:{listener.getsockname()[1]}/")
        if host not in LOOPBACK:
            say("this is not a loopback address: whoever reaches it can use the server")
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
        with suppress(KeyboardInterrupt):
            server.run(sockets=[listener])


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

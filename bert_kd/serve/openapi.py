"""The OpenAPI document, made of the types in `wire.py`, and the page at `/docs` that shows it.

The page is plain HTML without scripts: it needs nothing from outside and can be read anywhere.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any, get_args
from urllib.parse import quote

import msgspec

import bert_kd
from bert_kd.serve.metrics import CONTENT_TYPE
from bert_kd.serve.wire import (
    Answer,
    ErrorType,
    Failure,
    InferenceRequest,
    Info,
    PredictRequest,
    Status,
)

Document = dict[str, Any]
_REF = "#/components/schemas/{name}"
REFUSALS: Mapping[int, str] = {
    400: "The body is not JSON in UTF-8, or the request is not HTTP/1.1.",
    401: "The API key is missing or wrong.",
    404: "There is nothing at this path, or no such model.",
    408: "The request took too long to arrive.",
    413: "The body is too large.",
    415: "The body is not sent as application/json, or is compressed.",
    422: "A field is wrong; the message names it.",
    429: "The server has as much in hand as it takes on: ask again after Retry-After seconds.",
    431: "The headers are too large.",
    500: "The server failed; its log says why.",
    503: "There was no answer in time, or the server is stopping.",
}
_ANSWERS = {
    "anyOf": [
        {"$ref": _REF.format(name="Answer")},
        {"type": "array", "items": {"$ref": _REF.format(name="Answer")}},
        {"$ref": _REF.format(name="Rankings")},
    ]
}
_RANKINGS = {
    "type": "array",
    "description": "Of each input its labels, best first.",
    "items": {"type": "array", "items": {"$ref": _REF.format(name="Answer")}},
}
COMMON = (400, 408, 413, 431, 500)
"""What any request can be answered with."""
_HTML = {"text/html": {"schema": {"type": "string"}}}
_EXAMPLE = "where is my parcel?"


def document(models: Iterable[str], keyed: bool) -> Document:
    """Return the OpenAPI 3.1 document of a server of these models; `keyed`: it asks for keys."""
    types = [PredictRequest, InferenceRequest, Answer, Failure, Status, Info]
    _, components = msgspec.json.schema_components(types, ref_template=_REF)
    components["Failure"]["properties"]["error_type"]["enum"] = list(get_args(ErrorType))
    status = _json(_ref("Status"))
    rankings = _json({"$ref": _REF.format(name="Rankings")})
    locked = (*COMMON, 401) if keyed else COMMON
    of_posts = (*locked, 415, 422, 429, 503)
    inference = {
        "requestBody": _body("InferenceRequest", {"inputs": _EXAMPLE, "parameters": {"top_k": 2}}),
        "responses": _responses(rankings, *of_posts),
    }
    name = {
        "name": "name",
        "in": "path",
        "required": True,
        "description": "Name of a bundle.",
        "schema": {"type": "string", "enum": list(models)},
    }
    named = {**inference, "responses": _responses(rankings, 404, *of_posts)}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "bert_kd",
            "version": bert_kd.__version__,
            "description": "Text classification with distilled students.",
        },
        "paths": {
            "/predict": {
                "post": {
                    "summary": "Label texts",
                    "description": "In the shapes of transformers' text-classification pipeline.",
                    "operationId": "predict",
                    "requestBody": _body("PredictRequest", {"inputs": [_EXAMPLE], "top_k": 2}),
                    "responses": _responses(_json(_ANSWERS), 404, *of_posts),
                }
            },
            "/": {
                "get": _get("A page to try texts on", _HTML, *locked),
                "post": {
                    "summary": "Label texts with the first model, as Hugging Face's inference API",
                    "operationId": "inference",
                    **inference,
                },
            },
            "/models/{name}": {
                "parameters": [name],
                "post": {
                    "summary": "Label texts with a model, as Hugging Face's inference API",
                    "operationId": "inference_of_model",
                    **named,
                },
            },
            "/docs": {"get": _get("This API as a page", _HTML, *locked)},
            "/openapi.json": {
                "get": _get("This API as a document", _json({"type": "object"}), *locked)
            },
            "/info": {"get": _get("What is served", _json(_ref("Info")), *locked)},
            "/metrics": {
                "get": _get(
                    "Prometheus' metrics",
                    {CONTENT_TYPE.decode(): {"schema": {"type": "string"}}},
                    *locked,
                )
            },
            "/health": {
                "get": {**_get("Whether the server answers", status, *COMMON), "security": []}
            },
            "/ready": {
                "get": {
                    **_get("Whether it takes new requests", status, *COMMON, 503),
                    "security": [],
                }
            },
        },
        "components": {
            "schemas": {**components, "Rankings": _RANKINGS},
            **({"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}} if keyed else {}),
        },
        **({"security": [{"key": []}]} if keyed else {}),
    }


def _ref(name: str) -> Document:
    return {"$ref": _REF.format(name=name)}


def _json(schema: Document) -> Document:
    return {"application/json": {"schema": schema}}


def _body(name: str, example: Any) -> Document:
    content = {"application/json": {"schema": _ref(name), "example": example}}
    return {"required": True, "content": content}


def _refusals(*statuses: int) -> Document:
    return {
        str(status): {"description": REFUSALS[status], "content": _json(_ref("Failure"))}
        for status in sorted(statuses)
    }


def _responses(content: Document, *statuses: int) -> Document:
    return {"200": {"description": "The answer.", "content": content}, **_refusals(*statuses)}


def _get(summary: str, content: Document, *statuses: int) -> Document:
    return {"summary": summary, "responses": _responses(content, *statuses)}


# --- the page ------------------------------------------------------------------------------------

STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 50rem; margin: 2rem auto; padding: 0 1rem }
h2 { margin-top: 2.5rem; font-size: 1.1rem } h3 { font-size: 1rem }
code, pre { font: 14px/1.45 ui-monospace, monospace }
pre { overflow: auto; padding: .75rem; border: 1px solid #8886; border-radius: 6px }
table { border-collapse: collapse; width: 100% } th { text-align: left }
td, th { padding: .3rem .75rem .3rem 0; vertical-align: top; border-bottom: 1px solid #8884 }
"""


def page(found: Document, host: str) -> str:
    """Return the HTML page that shows an OpenAPI document; its examples ask at `host`."""
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(found['info']['title'])}: API</title><style>{STYLE}</style></head><body>",
        f"<h1>{escape(found['info']['title'])} {escape(found['info']['version'])}</h1>",
        f"<p>{escape(found['info']['description'])}",
        'This page as a document: <a href="openapi.json">openapi.json</a>.</p>',
    ]
    if "security" in found:
        parts.append(
            "<p>Every request but those for <code>/health</code> and <code>/ready</code> needs the "
            "header <code>Authorization: Bearer KEY</code>.</p>"
        )
    for path, operations in found["paths"].items():
        for method in ("get", "post"):
            if method in operations:
                parts += _operation(method.upper(), path, operations[method])
                if method == "post":
                    parts += _example(host, path, operations, keyed="security" in found)
                parts += _statuses(operations[method])
    parts.append("<h2>Types</h2>")
    for name, schema in found["components"]["schemas"].items():
        parts += _type(name, schema)
    parts.append("</body></html>")
    return "\n".join(parts)


def _operation(method: str, path: str, operation: Document) -> list[str]:
    parts = [f"<h2><code>{method} {escape(path)}</code></h2>", f"<p>{escape(operation['summary'])}"]
    if "description" in operation:
        parts.append(f"<br>{escape(operation['description'])}")
    parts.append("</p>")
    return parts


def _example(host: str, path: str, operations: Document, keyed: bool) -> list[str]:
    """Return a POST's body: its type, and a request with curl that can be sent as it is."""
    content = operations["post"]["requestBody"]["content"]["application/json"]
    name = escape(content["schema"]["$ref"].rpartition("/")[2])
    for parameter in operations.get("parameters", ()):
        first = quote(parameter["schema"]["enum"][0], safe="")
        path = path.replace(f"{{{parameter['name']}}}", first)
    lines = [
        f"curl -s {shlex.quote(host + path)}",
        "-H 'content-type: application/json'",
        *(["-H 'authorization: Bearer KEY'"] if keyed else []),
        f"-d {shlex.quote(json.dumps(content['example']))}",
    ]
    request = escape(" \\\n  ".join(lines), quote=False)
    return [f'<p>Body: <a href="#{name}">{name}</a></p>', f"<pre>{request}</pre>"]


def _statuses(operation: Document) -> list[str]:
    rows = [
        f"<tr><td>{status}</td><td>{escape(response['description'])}</td></tr>"
        for status, response in operation["responses"].items()
    ]
    return ["<table><tr><th>Status</th><th></th></tr>", *rows, "</table>"]


def _type(name: str, schema: Document) -> list[str]:
    parts = [
        f'<h3 id="{escape(name)}">{escape(name)}</h3>',
        f"<p>{escape(schema.get('description', ''))}</p>",
    ]
    if "properties" not in schema:
        return [*parts, f"<p>{_shown(schema)}</p>"]
    required = schema.get("required", ())
    rows = [
        f"<tr><td><code>{escape(field)}</code></td>"
        f"<td>{_shown(value)}{'' if field in required else ', optional'}</td>"
        f"<td>{escape(value.get('description', ''))}</td></tr>"
        for field, value in schema["properties"].items()
    ]
    return [*parts, "<table><tr><th>Field</th><th>Type</th><th></th></tr>", *rows, "</table>"]


def _shown(schema: Document) -> str:
    """Return a schema in a few words."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(_shown(one) for one in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(f"<code>{escape(json.dumps(one))}</code>" for one in schema["enum"])
    if schema.get("type") == "array":
        return f"list of ({_shown(schema.get('items', {}))})"
    return escape(str(schema.get("type", "anything")))

"""Spans of requests for OpenTelemetry, where that is installed and asked for.

Where spans go is said by OpenTelemetry's own environment variables (`OTEL_EXPORTER_OTLP_ENDPOINT`
and the others).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from bert_kd.errors import MissingExtra

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

Trace = Callable[[str, Mapping[bytes, bytes], float, Mapping[str, str | int]], None]
"""`trace(name, headers, seconds, attributes)`: a request that took so long has just ended."""


def open_provider() -> TracerProvider:
    """Return a provider that exports over OTLP. Raises MissingExtra where it is not installed."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError:
        raise MissingExtra("opentelemetry-sdk", "otel") from None
    # What the environment says goes before this name.
    provider = TracerProvider(resource=Resource.create({"service.name": "bert_kd"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def tracer(provider: TracerProvider) -> Trace:
    """Return what records a request as a span, below its caller's where headers name one."""
    from opentelemetry.trace import SpanKind, Status, StatusCode
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    spans = provider.get_tracer("bert_kd.serve")
    propagator = TraceContextTextMapPropagator()

    def trace(
        name: str,
        headers: Mapping[bytes, bytes],
        seconds: float,
        attributes: Mapping[str, str | int],
    ) -> None:
        carrier = {
            key.decode("latin-1"): headers[key].decode("latin-1")
            for key in (b"traceparent", b"tracestate")
            if key in headers
        }
        ended = time.time_ns()
        span = spans.start_span(
            name,
            context=propagator.extract(carrier),
            kind=SpanKind.SERVER,
            attributes=dict(attributes),
            start_time=ended - int(1e9 * seconds),
        )
        if int(attributes.get("http.response.status_code", 0)) >= 500:
            span.set_status(Status(StatusCode.ERROR))
        span.end(ended)

    return trace

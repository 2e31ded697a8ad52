"""OpenTelemetry spans, which show where a request's time goes. Optional, and off by default.

Set OTEL_EXPORTER_OTLP_ENDPOINT (a collector's URL) and install the two packages below. The other
OTEL_* variables, such as OTEL_TRACES_SAMPLER, mean what OpenTelemetry says they do.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from threading import Thread
from typing import Any

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
PACKAGES = ("opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http")
Attribute = str | bool | int | float

_log = logging.getLogger(__name__)
_OFF: AbstractContextManager[None] = nullcontext()
_tracer: Any = None
_provider: Any = None


def setup(service: str) -> bool:
    """Send this process's spans, as those of `service`, where the environment names a collector.

    Returns whether spans are sent from now on. Warns where they should be and cannot. A second
    call changes nothing.
    """
    global _provider, _tracer
    if _tracer is not None or not os.environ.get(ENDPOINT):
        return _tracer is not None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        _log.warning(
            "tracing: got %s, but %s; expected both packages. No spans are sent until you "
            "`pip install %s`",
            ENDPOINT,
            error,
            " ".join(PACKAGES),
        )
        return False
    # A provider of its own, since another library may have set the process's.
    _provider = TracerProvider(resource=Resource.create({"service.name": service}))
    _provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    _tracer = _provider.get_tracer("bs_ray")
    return True


def span(
    name: str, parent: Mapping[str, str] | None = None, **attributes: Attribute
) -> AbstractContextManager[Any]:
    """A span over the `with` block, as a part of `parent` or else of the span around it.

    parent: what `carrier` returned elsewhere, or an HTTP request's headers. An exception marks the
    span as failed. Enter and leave it in the same task, never around a `yield` of an async
    generator.
    """
    if _tracer is None:
        return _OFF
    context = None if parent is None else _propagator().extract(parent)
    return _tracer.start_as_current_span(name, context=context, attributes=attributes)


def carrier() -> dict[str, str]:
    """The span around this call as `traceparent`, to send along; empty where tracing is off."""
    found: dict[str, str] = {}
    if _tracer is not None:
        _propagator().inject(found)
    return found


def flush(timeout_s: float = 5.0) -> None:
    """Send the spans that wait. They are sent every 5 s, and a process may end before that."""
    if _provider is not None:
        _within(timeout_s, _provider.force_flush)


def stop(timeout_s: float = 5.0) -> None:
    """Send the spans that wait and end tracing in this process, as otherwise its exit would."""
    global _provider, _tracer
    if _provider is not None:
        _within(timeout_s, _provider.shutdown)
    _provider = _tracer = None


def _within(timeout_s: float, do: Callable[[], object]) -> None:
    """Wait for at most `timeout_s`; the SDK tries a collector that is down for half a minute."""
    thread = Thread(target=do, daemon=True)
    thread.start()
    thread.join(timeout_s)


def _propagator() -> Any:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator()

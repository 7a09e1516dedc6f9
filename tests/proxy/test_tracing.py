"""Spans are made where a collector is named, off the path, and hold nothing secret."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

import pytest

from account_pool.core.instruments import RequestLog
from account_pool.proxy import tracing
from account_pool.proxy.tracing import Tracing, endpoint_variable
from tests.patience import PATIENCE_S
from tests.proxy.test_tracing_spans import FAILED_OVER, REFUSED

TRACES = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
ENVIRON = {ENDPOINT: "http://127.0.0.1:1"}


@pytest.mark.parametrize(
    ("environ", "variable"),
    [
        ({}, None),
        ({ENDPOINT: " "}, None),
        (ENVIRON, ENDPOINT),
        ({**ENVIRON, TRACES: "http://127.0.0.1:2/v1/traces"}, TRACES),
        ({**ENVIRON, "OTEL_SDK_DISABLED": "TRUE"}, None),
        ({**ENVIRON, "OTEL_TRACES_EXPORTER": "none"}, None),
        ({**ENVIRON, "OTEL_TRACES_EXPORTER": "otlp"}, ENDPOINT),
    ],
)
def test_which_variable_names_a_collector(environ: dict[str, str], variable: str | None) -> None:
    assert endpoint_variable(environ) == variable


async def test_nothing_is_kept_or_imported_where_none_is_named() -> None:
    log, made = RequestLog(), Tracing()
    made.start({}, log)
    await asyncio.sleep(0)
    assert log.also is None
    assert made._task is None
    made.stop()


async def test_without_the_extra_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracing, "_MODULES", {"api": "opentelemetry_that_is_not_there"})
    log, made = RequestLog(), Tracing()
    made.start(ENVIRON, log)
    assert made._task is not None
    await made._task
    assert log.also is None
    assert [record.message for record in caplog.records if record.levelno >= logging.INFO] == [
        "account-pool: OTEL_EXPORTER_OTLP_ENDPOINT is set, but OpenTelemetry is not installed: "
        "no spans are sent; pip install 'mitmproxy-account-pool[otel]'"
    ]


async def test_the_log_quotes_no_header_and_no_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Root(logging.Handler):
        """As mitmproxy's; pytest's own also hears loggers that do not propagate."""

        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    lines: list[str] = []
    root = Root()
    exporter = pytest.importorskip("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    secret = "sk-fake-of-the-collector"
    monkeypatch.setenv(ENDPOINT, f"http://127.0.0.1:1/{secret}")
    # As it stands in a request, not as the variable wants it.
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"Authorization: Bearer {secret}")
    made = Tracing()
    logging.getLogger().addHandler(root)
    try:
        made._provider = made._make_provider()
        log = logging.getLogger(exporter.__name__)
        for _ in range(2):
            log.warning("Transient error %s, retrying in %.2fs.", f"of http://{secret}", 1.0)
            log.error(f"Failed to reach {secret}")
    finally:
        logging.getLogger().removeHandler(root)
    assert not [line for line in lines if secret in line]
    assert sum("Header format invalid" in line for line in lines) == 1
    assert sum("Transient error ..., retrying in ...s." in line for line in lines) == 1
    made._provider.shutdown()


async def test_spans_reach_the_exporter(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("opentelemetry.sdk.trace")
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    monkeypatch.setattr(tracing, "EVERY_S", 0.0)
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=mine")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    exporter: Any = memory.InMemorySpanExporter()
    log, made = RequestLog(kept_days=0), Tracing(lambda _library: exporter)
    made.start(ENVIRON, log)
    async with asyncio.timeout(PATIENCE_S):
        while log.also is None:
            await asyncio.sleep(0)
        log.add(FAILED_OVER)
        log.add(REFUSED)
        while len(exporter.get_finished_spans()) < 2:
            await asyncio.sleep(0)
    made.stop()
    served, refused = exporter.get_finished_spans()
    assert served.name == "chat gpt-5"
    assert served.kind.name == "CLIENT"
    assert served.attributes["gen_ai.usage.input_tokens"] == 100
    assert (served.start_time, served.end_time) == (1_700_000_000 * 10**9, 1_700_000_004 * 10**9)
    assert [event.attributes["account_pool.outcome"] for event in served.events] == [
        "rate_limit", "ok",
    ]  # fmt: skip
    assert served.resource.attributes["service.name"] == "mine"
    assert (served.status.status_code.name, refused.status.status_code.name) == ("UNSET", "ERROR")
    assert refused.attributes["error.type"] == "429"


async def test_the_last_spans_are_sent_after_those_that_are_being_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    order: list[str] = []
    begun, flushed = threading.Event(), threading.Event()

    class Provider:
        def get_tracer(self, *_names: str) -> None: ...

        def force_flush(self, _timeout_ms: int) -> None:
            order.append("flushed")
            flushed.set()

    def make_span(_tracer: object, _span: object) -> None:
        begun.set()
        flushed.wait(0.2)  # it does not come
        order.append("made")

    monkeypatch.setattr(tracing, "FLUSH_S", PATIENCE_S)
    made = Tracing()
    made._provider = Provider()
    monkeypatch.setattr(made, "_make_span", make_span)
    made.waiting.append(FAILED_OVER)
    making = asyncio.create_task(asyncio.to_thread(made._make_spans))
    await asyncio.to_thread(begun.wait, PATIENCE_S)
    await asyncio.to_thread(made.stop)
    await making
    assert order == ["made", "flushed"]

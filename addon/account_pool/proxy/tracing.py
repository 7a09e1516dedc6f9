"""Sends a span about each request to an OpenTelemetry collector, where the owner names one.

A span follows the conventions for generative AI
(https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/). What it holds is what a row
about the request holds (`core/request_rows.py`): no prompt, no answer, no value of a header.

The collector is named by OpenTelemetry's own variables (`OTEL_EXPORTER_OTLP_ENDPOINT` ...);
without them nothing is imported and nothing is kept. A request only leaves what it was behind;
spans are made in a thread, and exported by the library's batch processor.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import re
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from account_pool.core.instruments import Ended, Mark, RequestLog
from account_pool.core.request_rows import Status, row_of
from account_pool.supervision import log_and_continue, tasks
from account_pool.version import __version__

Value = str | int | float

#: `gen_ai.provider.name` where the convention has one of its own; else ours.
_PROVIDERS = {
    "openai": "openai",
    "codex": "openai",
    "azure": "azure.ai.openai",
    "anthropic": "anthropic",
    "claude-code": "anthropic",
    "gemini": "gcp.gemini",
    "gemini-cli": "gcp.gemini",
    "mistral": "mistral_ai",
    "xai": "x_ai",
    "groq": "groq",
    "deepseek": "deepseek",
    "cohere": "cohere",
    "perplexity": "perplexity",
}
#: `gen_ai.operation.name` by what stands in the path; the first that fits.
_OPERATIONS = (
    ("embed", "embeddings"),
    ("generateContent", "generate_content"),
    ("GenerateContent", "generate_content"),
    ("chat/completions", "chat"),
    ("messages", "chat"),
    ("responses", "chat"),
    ("/chat", "chat"),
    ("completions", "text_completion"),
)
#: Counts of tokens, by the field of the row.
_TOKENS = {
    "input_tokens": "gen_ai.usage.input_tokens",
    "output_tokens": "gen_ai.usage.output_tokens",
    "cached_tokens": "gen_ai.usage.cache_read.input_tokens",
    "cache_write_tokens": "gen_ai.usage.cache_creation.input_tokens",
    "reasoning_tokens": "gen_ai.usage.reasoning.output_tokens",
}


class Event(NamedTuple):
    """Something that happened within a span, at seconds since the epoch."""

    name: str
    wall_at: float
    attributes: Mapping[str, Value]


class Span(NamedTuple):
    """One request. Times are seconds since the epoch.

    Attributes:
        error: what went wrong, as `error.type`; None: nothing did.
        events: one for each attempt.
    """

    name: str
    wall_from: float
    wall_to: float
    attributes: Mapping[str, Value]
    error: str | None
    events: tuple[Event, ...]


def span_of(ended: Ended) -> Span:
    """Return the span of *ended*."""
    row = row_of(ended)
    operation = next((name for part, name in _OPERATIONS if part in row.endpoint), "request")
    known: dict[str, Value | None] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": _PROVIDERS.get(row.provider, row.provider),
        "gen_ai.request.model": row.model,
        "gen_ai.conversation.id": row.session,
        "gen_ai.response.time_to_first_chunk": row.first_byte_s,
        "http.response.status_code": row.http_status,
        "url.template": row.endpoint,
        "account_pool.provider": row.provider,
        "account_pool.account": row.account,
        "account_pool.tool": row.tool,
        "account_pool.attempts": row.attempts,
        "account_pool.failovers": row.failovers,
        "account_pool.wait_s": row.wait_s,
        **{name: getattr(row, field) for field, name in _TOKENS.items()},
    }
    error = None
    if row.status == Status.REFUSED:
        last = ended.history[-1].outcome if ended.history else None
        error = str(row.http_status or (last.cls if last else "refused"))
    elif row.status == Status.ABORTED:
        error = "aborted"
    if error is not None:
        known["error.type"] = error
    return Span(
        name=f"{operation} {row.model}" if row.model else operation,
        wall_from=row.wall_at,
        wall_to=max(ended.wall_at, row.wall_at),
        attributes={name: value for name, value in known.items() if value is not None},
        error=error,
        events=_attempts(ended),
    )


def _attempts(ended: Ended) -> tuple[Event, ...]:
    """Return an event for each attempt: when it was sent, where that is known, and its outcome."""
    ahead = ended.wall_at - ended.at
    sent = [value + ahead for mark, value in ended.marks if mark is Mark.SENT]
    began = next((value for mark, value in ended.marks if mark is Mark.BEGAN), ended.at) + ahead
    events = []
    for number, attempt in enumerate(ended.history):
        # A request that a stale connection has swallowed is sent twice within one attempt.
        at = sent[number] if len(sent) == len(ended.history) else began
        outcome = "left" if attempt.outcome is None else attempt.outcome.cls.value
        attributes: dict[str, Value] = {
            "account_pool.account": str(attempt.key),
            "account_pool.outcome": outcome,
            "account_pool.attempt": number + 1,
        }
        events.append(Event("account_pool.attempt", at, attributes))
    return tuple(events)


logger = logging.getLogger(__name__)

# -- to the collector

#: How often spans are made of what has ended, seconds.
EVERY_S = 1.0
#: Requests that wait to become spans at most; beyond, the oldest are dropped.
MAX_WAITING = 10_000
#: How long the end of the proxy waits for the last spans, seconds.
FLUSH_S = 2.0
#: Lines of the library that are logged at most.
MAX_LINES = 100

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
#: Whose log it is, and what is filled in there: addresses, headers and passwords of the collector.
_LOG, _FILLED_IN = "opentelemetry", re.compile(r"%[-#0 +]*\d*(?:\.\d+)?[a-zA-Z]")
_EXTRA = "pip install 'mitmproxy-account-pool[otel]'"
#: What is used of OpenTelemetry; the extra `otel` declares it.
_MODULES = {
    "api": "opentelemetry.trace",
    "sdk": "opentelemetry.sdk.trace",
    "export": "opentelemetry.sdk.trace.export",
    "resources": "opentelemetry.sdk.resources",
    "otlp": "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "requests": "requests",
}


def endpoint_variable(environ: Mapping[str, str]) -> str | None:
    """Return the variable that names a collector; None where none is wanted."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    if environ.get("OTEL_TRACES_EXPORTER", "otlp").strip().lower() not in ("otlp", ""):
        return None
    return next((name for name in _ENDPOINTS if environ.get(name, "").strip()), None)


class Tracing:
    """Makes spans of the requests of one proxy.

    Attributes:
        waiting: requests that have ended.
    """

    def __init__(self, make_exporter: Callable[[Mapping[str, Any]], Any] | None = None) -> None:
        self.waiting: deque[Ended] = deque(maxlen=MAX_WAITING)
        self._make_exporter = make_exporter or _otlp
        self._library: dict[str, Any] = {}
        self._provider: Any = None
        #: held while spans are made: the last ones are, while a thread may still make others
        self._making = threading.Lock()
        self._task: asyncio.Task[None] | None = None

    def start(self, environ: Mapping[str, str], log: RequestLog) -> None:
        """Begin, if *environ* names a collector, with what *log* gets. Needs the running loop."""
        variable = endpoint_variable(environ)
        if variable is not None:
            work = lambda: self._run(variable, log)  # noqa: E731
            self._task = tasks.supervised("sending spans", work)

    def stop(self) -> None:
        """Send what is left, as far as the collector takes it in time."""
        if self._task is not None:
            self._task.cancel()
        if self._provider is not None:
            # A collector that hangs must not keep the process: not every version of the library
            # minds the time that it is given.
            last = threading.Thread(target=self._send_the_rest, daemon=True, name="last spans")
            last.start()
            last.join(FLUSH_S)

    def _send_the_rest(self) -> None:
        with log_and_continue:
            self._make_spans()
            self._provider.force_flush(int(FLUSH_S * 1000))

    async def _run(self, variable: str, log: RequestLog) -> None:
        if self._provider is None:
            try:
                self._provider = await asyncio.to_thread(self._make_provider)
            except ImportError:
                logger.warning(
                    f"account-pool: {variable} is set, but OpenTelemetry is not installed: "
                    f"no spans are sent; {_EXTRA}"
                )
                return
            log.also = self.waiting.append
            logger.info(f"account-pool: spans are sent to the collector in {variable}")
        while True:
            await asyncio.sleep(EVERY_S)
            if self.waiting:
                await asyncio.to_thread(self._make_spans)

    def _make_provider(self) -> Any:
        """Import the library and return what makes its tracers. Raises ImportError."""
        _keep_secrets()
        library = {name: importlib.import_module(path) for name, path in _MODULES.items()}
        self._library = library
        resources = library["resources"]
        named = resources.Resource({"service.name": "account-pool", "service.version": __version__})
        provider = library["sdk"].TracerProvider(
            # Variables of the owner win.
            resource=named.merge(resources.OTELResourceDetector().detect()),
            shutdown_on_exit=False,
        )
        exporter = self._make_exporter(library)
        provider.add_span_processor(library["export"].BatchSpanProcessor(exporter))
        return provider

    def _make_spans(self) -> None:
        tracer = self._provider.get_tracer("account_pool", __version__)
        with self._making:
            while self.waiting:
                ended = self.waiting.popleft()
                with log_and_continue:
                    self._make_span(tracer, span_of(ended))

    def _make_span(self, tracer: Any, span: Span) -> None:
        api = self._library["api"]
        made = tracer.start_span(
            span.name,
            context=None,
            kind=api.SpanKind.CLIENT,
            attributes=dict(span.attributes),
            start_time=_ns(span.wall_from),
        )
        for event in span.events:
            made.add_event(event.name, dict(event.attributes), _ns(event.wall_at))
        if span.error is not None:
            made.set_status(api.StatusCode.ERROR)
        made.end(_ns(span.wall_to))


class _WithoutValues(logging.Handler):
    """Logs what the library logs, each line once and without the values in it."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        # A line that was put together before may hold anything.
        said = _FILLED_IN.sub("...", str(record.msg)) if record.args else record.funcName
        if said not in self._said and len(self._said) < MAX_LINES:
            self._said.add(said)
            logger.warning(f"account-pool: OpenTelemetry, {record.name}: {said}")


def _keep_secrets() -> None:
    """Have nothing in the log that the library quotes of its variables, or of its requests."""
    log = logging.getLogger(_LOG)
    if not any(isinstance(handler, _WithoutValues) for handler in log.handlers):
        log.addHandler(_WithoutValues())
    log.propagate = False
    # A request of the exporter, with its address; INFO and above is in mitmproxy's log.
    logging.getLogger("urllib3").setLevel(logging.ERROR)


def _ns(wall_at: float) -> int:
    return int(wall_at * 1e9)


def _otlp(library: Mapping[str, Any]) -> Any:
    """Return what sends spans as its variables say; not through a proxy of the environment.

    That is this very process, where a shell was set up for the pool.
    """
    session = library["requests"].Session()
    session.trust_env = False
    return library["otlp"].OTLPSpanExporter(session=session)

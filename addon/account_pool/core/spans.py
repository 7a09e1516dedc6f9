"""A request that has ended as a span of OpenTelemetry, by its conventions for generative AI.

https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/. What a span holds is what a row
about the request holds (`request_rows.py`): no prompt, no answer, no value of a header.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from account_pool.core.instruments import Ended, Mark
from account_pool.core.request_rows import Status, row_of

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

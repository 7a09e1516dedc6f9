"""A request as a span: the names of the convention, and nothing that a row does not have."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from account_pool.core.account import AccountKey
from account_pool.core.instruments import Ended, Mark
from account_pool.core.lease import RequestFacts
from account_pool.core.outcome import Outcome, OutcomeClass
from account_pool.core.steps import Attempt
from account_pool.core.usage import Usage
from account_pool.proxy.tracing import span_of

WALL = 1_700_000_000.0
FACTS = RequestFacts(provider="openai", kind="key", model="gpt-5", path="/v1/chat/completions")
LIMITED = Attempt(
    1, AccountKey("openai", "one"), Outcome(cls=OutcomeClass.RATE_LIMIT, signal="429")
)
SERVED = Attempt(2, AccountKey("openai", "two"), Outcome(cls=OutcomeClass.OK))
MARKS = [
    (Mark.BEGAN, 10.0), (Mark.SENT, 10.5), (Mark.WAITED, 0.25), (Mark.SENT, 11.0),
    (Mark.HANDED_ON, 12.0),
]  # fmt: skip
FAILED_OVER = Ended(
    facts=FACTS,
    history=[LIMITED, SERVED],
    marks=MARKS,
    at=14.0,
    wall_at=WALL + 4.0,
    http_status=200,
    whole=True,
    usage=Usage(input_tokens=100, cached_tokens=40, output_tokens=7, reasoning_tokens=5),
    counted=("2023-11-14", "openai/two", "gpt-5"),
)
REFUSED = FAILED_OVER._replace(history=[LIMITED], http_status=429, usage=None, counted=None)


def test_a_request_that_was_served_by_the_second_account() -> None:
    span = span_of(FAILED_OVER)
    assert (span.name, span.wall_from, span.wall_to) == ("chat gpt-5", WALL, WALL + 4.0)
    assert span.error is None
    assert (
        dict(span.attributes).items()
        >= {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "openai",
            "gen_ai.request.model": "gpt-5",
            "gen_ai.usage.input_tokens": 100,
            "gen_ai.usage.cache_read.input_tokens": 40,
            "gen_ai.usage.output_tokens": 7,
            "gen_ai.usage.reasoning.output_tokens": 5,
            "gen_ai.response.time_to_first_chunk": 2.0,
            "http.response.status_code": 200,
            "account_pool.account": "openai/two",
            "account_pool.attempts": 2,
            "account_pool.failovers": 1,
            "account_pool.wait_s": 0.25,
        }.items()
    )
    assert [(event.wall_at, *event.attributes.values()) for event in span.events] == [
        (WALL + 0.5, "openai/one", "rate_limit", 1),
        (WALL + 1.0, "openai/two", "ok", 2),
    ]


def test_a_refusal_and_a_client_that_left() -> None:
    refused = span_of(REFUSED)
    assert (refused.error, refused.attributes["error.type"]) == ("429", "429")
    assert "gen_ai.usage.input_tokens" not in refused.attributes
    left = span_of(FAILED_OVER._replace(http_status=None, whole=False))
    assert (left.error, left.attributes["account_pool.account"]) == ("aborted", "openai/two")
    nobody = span_of(REFUSED._replace(history=[], http_status=503))
    assert (nobody.error, nobody.events) == ("503", ())


def test_an_attempt_whose_time_is_not_known_begins_with_the_request() -> None:
    span = span_of(FAILED_OVER._replace(marks=[(Mark.BEGAN, 10.0), (Mark.SENT, 11.0)]))
    assert [event.wall_at for event in span.events] == [WALL, WALL]


@pytest.mark.parametrize(
    ("provider", "path", "operation", "name"),
    [
        ("anthropic", "/v1/messages", "chat", "anthropic"),
        ("claude-code", "/v1/messages/count_tokens", "chat", "anthropic"),
        ("codex", "/backend-api/codex/responses", "chat", "openai"),
        ("gemini", "/v1beta/models/gemini-3.5-flash:streamGenerateContent", "generate_content",
         "gcp.gemini"),
        ("openai", "/v1/embeddings", "embeddings", "openai"),
        ("openai", "/v1/completions", "text_completion", "openai"),
        ("my-gateway", "/v1/models", "request", "my-gateway"),
    ],
)  # fmt: skip
def test_operations_and_providers(provider: str, path: str, operation: str, name: str) -> None:
    span = span_of(FAILED_OVER._replace(facts=replace(FACTS, provider=provider, path=path)))
    assert span.attributes["gen_ai.operation.name"] == operation
    assert span.attributes["gen_ai.provider.name"] == name


def test_nothing_that_a_client_wrote_is_in_it() -> None:
    facts = replace(
        FACTS, path="/v1/responses/resp_SECRET1234567890abcdef", agent="SECRET1234567890abcdef"
    )
    span = span_of(FAILED_OVER._replace(facts=facts))
    assert "SECRET" not in repr(span)

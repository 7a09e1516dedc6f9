"""The engine of the rule tables, with a vendor that does not exist."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from account_pool.core.meaning import Meaning
from account_pool.core.outcome import Outcome, OutcomeClass, Scope, UpstreamResponse, read_facts
from account_pool.core.signals import Rule, SignalTable, rules
from account_pool.core.sse import Verdict


def judge(name: str | None, value: Any) -> Verdict:
    refuses = name == "error" or (isinstance(value, dict) and bool(value.get("error")))
    return Verdict.REFUSE if refuses else Verdict.COMMIT


def table(*rules: Rule, **options: Any) -> SignalTable:
    return SignalTable(rules=rules, judge=judge, **options)


def answer(status: int = 429, payload: Any = None, **fields: Any) -> UpstreamResponse:
    return UpstreamResponse(status=status, payload=payload, **fields)


def rule(cls: OutcomeClass = OutcomeClass.QUOTA, **conditions: Any) -> Rule:
    return Rule(why="test", cls=cls, source="none", **conditions)


EMPTY = table()


@pytest.mark.parametrize(
    ("status", "cls", "scope", "replayable"),
    [
        (200, "ok", "none", False),
        (101, "ok", "none", False),
        (304, "ok", "none", False),
        (400, "request_error", "none", False),
        (401, "auth_invalid", "account", True),
        (402, "quota", "account", True),
        (403, "forbidden_account", "account", True),
        (404, "request_error", "none", False),
        (408, "request_error", "none", False),
        (413, "request_error", "none", False),
        (422, "request_error", "none", False),
        (429, "rate_limit", "none", True),  # bare
        (498, "overloaded", "server", False),
        (500, "server_error", "server", False),
        (502, "server_error", "server", False),
        (503, "overloaded", "server", False),
        (529, "overloaded", "server", False),
        (599, "server_error", "server", False),
    ],
)
def test_a_status_alone(status: int, cls: str, scope: str, replayable: bool) -> None:
    got = EMPTY.classify(answer(status))
    assert (got.cls, got.scope, got.replayable) == (cls, scope, replayable)


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 422, 429, 500, 599])
def test_what_only_its_status_explains_is_marked_unknown(status: int) -> None:
    assert EMPTY.classify(answer(status)).unknown
    known = table(rule(OutcomeClass.QUOTA, status=frozenset({status})))
    assert not known.classify(answer(status)).unknown


def test_a_code_that_names_the_credential_says_so() -> None:
    row = rule(OutcomeClass.AUTH_INVALID, names_credential=True)
    assert table(row).classify(answer(401)).names_credential
    assert not EMPTY.classify(answer(401)).names_credential


@pytest.mark.parametrize(
    "evidence",
    [
        {"headers": {"retry-after": "7"}},
        {"headers": {"x-ratelimit-remaining-requests": "0"}},
        {"payload": {"error": {"code": "slow"}}},
        {"payload": {"error": {"message": "40 calls per minute"}}},
        {"text": "Try again in 5s"},
    ],
)
def test_a_429_with_evidence_reaches_the_account(evidence: dict[str, Any]) -> None:
    assert EMPTY.classify(answer(**evidence)).scope is Scope.ACCOUNT


@pytest.mark.parametrize(
    "noise",
    [
        {"text": "<html>429 Too Many Requests</html>"},
        {"payload": {"error": {"message": "Too many requests", "code": 429}}},
        {"headers": {"x-should-retry": "true", "server": "cloudflare"}},
        {"headers": {"x-codex-turn-state": "sticky", "x-codex-promo-message": "Upgrade"}},
    ],
)
def test_a_429_that_names_nothing_benches_nobody(noise: dict[str, Any]) -> None:
    got = EMPTY.classify(answer(**noise))
    assert (got.cls, got.scope) == (OutcomeClass.RATE_LIMIT, Scope.NONE)


def test_a_page_before_the_api_is_no_verdict_on_the_account() -> None:
    got = EMPTY.classify(answer(403, text=" <!DOCTYPE html><p>you have been blocked"))
    assert (got.cls, got.scope) == (OutcomeClass.SERVER_ERROR, Scope.SERVER)


@pytest.mark.parametrize(
    ("conditions", "matches"),
    [
        ({}, True),
        ({"status": frozenset({429})}, True),
        ({"status": frozenset({0, 400})}, False),
        ({"words": frozenset({"spent", "other"})}, True),
        ({"words": frozenset({"other"})}, False),
        ({"phrase": "GONE"}, True),
        ({"phrase": "^is"}, False),
        ({"means": Meaning.PLAN}, False),
        ({"when": lambda facts: facts.headers.get("x-a") == "1"}, True),
        ({"words": frozenset({"spent"}), "phrase": "never"}, False),
    ],
)
def test_every_condition_must_hold(conditions: dict[str, Any], matches: bool) -> None:
    payload = {"error": {"code": "Spent", "message": "it is gone"}}
    facts = read_facts(answer(payload=payload, headers={"x-a": "1"}))
    assert rule(**conditions).matches(facts) is matches


def test_what_an_answer_means_is_a_condition_and_explicit() -> None:
    row = rule(means=Meaning.PLAN)
    spent = answer(payload={"error": {"message": "You have reached your weekly usage limit"}})
    assert row.matches(read_facts(spent))
    assert table(row).classify(spent).explicit


def test_a_row_that_names_no_source_has_that_of_its_table() -> None:
    plain, own = Rule("test", OutcomeClass.QUOTA), rule()
    assert [row.source for row in rules("a page", plain, own)] == ["a page", "none"]


def test_the_first_row_that_matches_decides() -> None:
    rows = (rule(OutcomeClass.OVERLOADED), rule(OutcomeClass.QUOTA))
    assert table(*rows).classify(answer()).cls is OutcomeClass.OVERLOADED


def test_headers_inside_a_frame_count() -> None:
    payload = {"type": "error", "headers": {"Retry-After": 9}, "error": {"code": 429}}
    assert EMPTY.classify(answer(101, payload, in_stream=True)).cooldown_s == 9


def test_a_long_window_or_wait_makes_a_quota() -> None:
    def cls(message: str, **headers: str) -> OutcomeClass:
        return EMPTY.classify(answer(payload={"message": message}, headers=headers)).cls

    assert cls("tokens per minute") is OutcomeClass.RATE_LIMIT
    assert cls("tokens per hour") is OutcomeClass.RATE_LIMIT
    assert cls("tokens per day") is OutcomeClass.QUOTA
    assert cls("", **{"retry-after": "3600"}) is OutcomeClass.RATE_LIMIT
    assert cls("", **{"retry-after": "3601"}) is OutcomeClass.QUOTA


def test_the_requests_own_model_is_kept() -> None:
    row = rule(OutcomeClass.QUOTA, scope=Scope.MODEL, model=lambda _facts: "m-2026-01-01")
    assert table(row).classify(answer()).model == "m-2026-01-01"
    assert table(row).classify(answer(model="m-latest")).model is None


@pytest.mark.parametrize(
    ("feature", "model", "covered"),
    [("images", "m", "images"), ("images", None, "images"), (None, "m", None), (None, None, "f")],
)
def test_a_feature_comes_before_the_requests_model(
    feature: str | None, model: str | None, covered: str | None
) -> None:
    row = rule(scope=Scope.MODEL, feature=lambda _: feature, model=lambda _: "f")
    assert table(row).classify(answer(model=model)).model == covered
    of_account = rule(scope=Scope.ACCOUNT, feature=lambda _: feature, model=lambda _: "f")
    assert table(of_account).classify(answer(model=model)).model is None


def test_nothing_a_vendor_wrote_is_in_the_signal() -> None:
    secret = "sk-abc and what the user asked"
    payload = {"error": {"message": secret, "code": secret, "type": "slow_down"}}
    got = EMPTY.classify(answer(payload=payload, headers={"retry-after": "3", "cookie": "c"}))
    assert got.signal == "429 code=slow_down: too many requests"
    assert dict(got.evidence) == {"retry-after": "3"}


@pytest.mark.parametrize(
    ("headers", "error", "evidence"),
    [
        (
            {"x-ratelimit-limit": "60", "x-ratelimit-remaining": "0", "retry-after": "3"},
            {},
            ["retry-after", "x-ratelimit-remaining", "x-ratelimit-limit"],
        ),
        (
            {
                "anthropic-ratelimit-unified-status": "rejected",
                "anthropic-ratelimit-unified-reset": "1790000000",
                "anthropic-organization-id": "0000",
                "request-id": "req_1",
            },
            {},
            ["anthropic-ratelimit-unified-reset", "anthropic-ratelimit-unified-status"],
        ),
        (
            {"x-quota-snapshot-chat": "ent=300&ov=0.0&rem=29.7&rst=2026-05-01T00%3A00%3A00Z"},
            {},
            ["x-quota-snapshot-chat"],
        ),
        ({"retry-after": "Sat, 21 Nov 2026 15:00:00 GMT"}, {}, ["retry-after"]),
        # Of Codex's headers those of windows only: one is a token, one a sentence.
        (
            {
                "x-codex-turn-state": "sticky",
                "x-codex-promo-message": "Upgrade",
                "x-codex-primary-used-percent": "100",
                "x-codex-active-limit": "premium",
                "x-codex-secondary-reset-at": "1790000000",
            },
            {"resets_in_seconds": 38},
            [
                "resets_in_seconds",
                "x-codex-secondary-reset-at",
                "x-codex-primary-used-percent",
                "x-codex-active-limit",
            ],
        ),
        # What looks like no limit is not kept, whatever the header is called.
        ({"retry-after": "sk-fake-" + "a" * 30, "x-ratelimit-reset": "\x1b[31m"}, {}, []),
        ({}, {"resets_at": {"user": "text"}, "retry_after": "the user's words, quoted: {}"}, []),
    ],
)
def test_what_is_evidence_the_most_telling_first(
    headers: dict[str, str], error: dict[str, Any], evidence: list[str]
) -> None:
    got = EMPTY.classify(answer(headers=headers, payload={"error": {"code": "slow", **error}}))
    assert list(got.evidence) == evidence


def test_evidence_is_bounded() -> None:
    headers = {f"x-ratelimit-{number}": "1, " * 999 for number in range(999)}
    got = EMPTY.classify(answer(headers=headers))
    assert len(got.evidence) == 24
    assert max(map(len, got.evidence.values())) == 120


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    *("error", "code", "type", "message", "status", "details", "metadata"),
                    *("headers", "response", "reason", "retry_after", "resets_at", "errors"),
                ]
            ),
            inner,
        )
    ),
    max_leaves=20,
)


@given(JSON, st.integers(100, 599), st.booleans(), st.text(max_size=30))
def test_classify_is_total(payload: Any, status: int, in_stream: bool, text: str) -> None:
    headers = {"retry-after": text, "x-ratelimit-remaining": "0", "x-ratelimit-reset": text}
    got = EMPTY.classify(
        UpstreamResponse(
            status=status, payload=payload, in_stream=in_stream, text=text, headers=headers
        )
    )
    assert isinstance(got, Outcome)
    assert got.cooldown_s is None or 0 <= got.cooldown_s <= 366 * 86400

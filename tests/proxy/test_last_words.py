"""What a client is told when no account serves it: the provider's own words, the best there are."""

from __future__ import annotations

import json

import pytest

from account_pool.core.outcome import Outcome, OutcomeClass, Scope
from account_pool.core.steps import Limits
from tests.proxy.helpers import JSON, LIMITED_HEADERS, OK, http1, post1

KEY_BODY = b'{"error": {"message": "Incorrect API key", "code": "invalid_api_key"}}'
DEAD_KEY = http1(401, KEY_BODY, [JSON])
LONG_LIMIT = http1(
    429,
    b'{"error": {"message": "Rate limit reached", "code": "rate_limit_exceeded"}}',
    [*LIMITED_HEADERS[:1], "retry-after: 7200"],
)


def disable(rig, cls=OutcomeClass.AUTH_INVALID) -> None:
    """Take all accounts out of use, as an earlier run has left them."""
    for state in list(rig.service.pool.accounts):
        cause = Outcome(cls=cls, scope=Scope.ACCOUNT, signal="of an earlier run")
        rig.service.pool.health.mark_failure(state.key, cause, now=rig.clock.now())


def test_all_disabled_repeat_what_the_last_of_them_was_told(rig_of):
    rig = rig_of("one", "two")
    rig.send(post1())
    rig.server.send(DEAD_KEY)
    rig.server.send(OK)
    disable(rig)
    rig.send(post1())
    answer = rig.answers[-1]
    # Of `two`, which was disabled last, nothing is known.
    assert (answer.status, json.loads(answer.body)["error"]["code"]) == (401, "invalid_api_key")
    assert answer.get("x-should-retry") == "false"
    assert len(rig.requests) == 2


def test_the_words_of_the_account_that_was_disabled(rig_of):
    rig = rig_of("one", "two")
    rig.send(post1())
    rig.server.send(DEAD_KEY)
    rig.server.send(OK)
    first, second = rig.service.pool.accounts
    assert first.disabled is not None
    rig.service.pool.accounts.remove(second.key, now=rig.clock.now())
    rig.send(post1())
    answer = rig.answers[-1]
    assert (answer.status, answer.body) == (401, KEY_BODY)
    assert answer.get("x-should-retry") == "false"


@pytest.mark.parametrize(
    ("cls", "status"), [(OutcomeClass.AUTH_INVALID, 401), (OutcomeClass.FORBIDDEN_ACCOUNT, 403)]
)
def test_where_nobody_remembers_the_envelope_says_it(rig_of, cls, status):
    rig = rig_of("one")
    disable(rig, cls)
    rig.send(post1())
    (answer,) = rig.answers
    assert answer.status == status
    assert json.loads(answer.body)["error"]["code"] != "server_is_overloaded"
    assert answer.get("x-should-retry") == "false"
    assert answer.get("retry-after") is None
    assert rig.requests == []


def test_money_is_told_as_money(rig_of):
    rig = rig_of("one")
    (state,) = rig.service.pool.accounts
    cause = Outcome(cls=OutcomeClass.QUOTA, scope=Scope.ACCOUNT, money=True, signal="429")
    rig.service.pool.health.mark_cooldown(state.key, cause, now=rig.clock.now())
    rig.send(post1())
    (answer,) = rig.answers
    assert (answer.status, json.loads(answer.body)["error"]["code"]) == (429, "insufficient_quota")
    assert answer.get("x-should-retry") == "false"


def test_a_limit_is_told_rather_than_a_key_that_is_not_accepted(rig_of):
    rig = rig_of("one", "two")
    rig.send(post1())
    rig.server.send(LONG_LIMIT)
    rig.server.send(DEAD_KEY)
    assert rig.answers[0].status == 429
    assert rig.answers[0].get("retry-after") == "7200"
    # The one on the bench is asked again, and what is said is the limit of the other.
    rig.send(post1())
    rig.server.send(DEAD_KEY)
    assert len(rig.requests) == 3
    assert (rig.answers[1].status, rig.answers[1].get("retry-after")) == (429, "7200")
    assert json.loads(rig.answers[1].body)["error"]["code"] == "rate_limit_exceeded"


def test_a_client_is_asked_back_while_accounts_are_untried(rig_of):
    rig = rig_of("one", "two", "three", limits=Limits(max_attempts=2))
    rig.send(post1())
    rig.server.send(DEAD_KEY)
    rig.server.send(DEAD_KEY)
    answer = rig.answers[0]
    assert (answer.status, answer.get("x-should-retry")) == (401, "true")
    assert json.loads(answer.body) == json.loads(KEY_BODY)
    rig.send(post1())
    rig.server.send(OK)
    assert rig.answers[1].status == 200
    assert len(rig.requests) == 3


def test_the_only_account_refuses_every_request_itself(rig_of):
    rig = rig_of("one")
    for count in (1, 2, 3):
        rig.send(post1())
        rig.server.send(http1(403, b'{"error": {"message": "who knows"}}', [JSON]))
        assert (rig.answers[-1].status, len(rig.requests)) == (403, count)
        rig.advance(400)

"""One line a decision: no doubles, no floods, no secrets, nothing of ordinary requests."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mitmproxy.log import ALERT
from mitmproxy.test import taddons

from account_pool.core import reactions, snapshot
from account_pool.core.attempts import Attempts
from account_pool.core.decisions import By
from account_pool.core.lease import RequestFacts
from account_pool.core.outcome import BY_HAND, Outcome, OutcomeClass, Scope, UpstreamResponse
from account_pool.core.steps import Broken, Limits, Refresh
from account_pool.providers.registry import BUILT_IN
from account_pool.proxy import decision_log
from account_pool.proxy.commands import status_table
from account_pool.proxy.decision_log import REPEAT_S, DecisionLog
from tests.proxy.helpers import FakeClock, service_of

QUOTA = Outcome(
    cls=OutcomeClass.QUOTA,
    scope=Scope.ACCOUNT,
    cooldown_s=7200.0,
    replayable=True,
    signal="429 code=insufficient_quota",
)
UNAUTHORIZED = Outcome(
    cls=OutcomeClass.AUTH_INVALID, scope=Scope.ACCOUNT, replayable=True, signal="401"
)
REQUEST_ERROR = Outcome(cls=OutcomeClass.REQUEST_ERROR, signal="400")


class Told:
    """A pool, requests to it, and the lines a log would get."""

    def __init__(self, *labels: str, **limits: float) -> None:
        self.clock = FakeClock()
        self.limits = Limits(**({"max_wait_s": 0.0} | limits))
        self.pool = service_of(*labels, clock=self.clock).pool
        self.lines: list[str] = []
        self.due: list[tuple[float, Callable[[], None]]] = []
        log = DecisionLog(
            lambda level, text: self.lines.append(f"{logging.getLevelName(level)} {text}"),
            lambda seconds, act: self.due.append((self.clock.now() + seconds, act)),
        )
        self.pool.decisions.subscribe(log)

    def request(self) -> Attempts:
        facts = RequestFacts(provider="openai", kind="key", model="gpt-5")
        attempts = Attempts(pool=self.pool, facts=facts, limits=self.limits, chance=lambda: 0.0)
        attempts.begin(self.clock.now())
        return attempts

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        for act in [act for at, act in self.due if at <= self.clock.now()]:
            act()
        self.due = [(at, act) for at, act in self.due if at > self.clock.now()]

    @property
    def keys(self):
        return [state.key for state in self.pool.accounts]


def test_an_ordinary_request_is_no_line():
    told = Told("one")
    attempts = told.request()
    attempts.committed(told.clock.now())
    attempts.finished(told.clock.now())
    reactions.refused(told.request(), REQUEST_ERROR, told.clock.now())
    reactions.broken(told.request(), Broken.STALE, told.clock.now())
    assert told.lines == []


def test_a_failover_is_one_line():
    told = Told("one", "two")
    reactions.refused(told.request(), QUOTA, told.clock.now())
    assert told.lines == [
        "ALERT openai/one: 429 quota, on cooldown for 2 h -> openai/two (429 "
        "code=insufficient_quota)"
    ]


def test_the_last_refusal_is_one_warning():
    told = Told("one")
    reactions.refused(told.request(), QUOTA, told.clock.now())
    assert told.lines == [
        "WARNING openai/one: 429 quota, on cooldown for 2 h: delivered to the client, retry "
        "after 7200 s "
        "(429 code=insufficient_quota)"
    ]


def test_an_account_that_was_removed_since():
    told = Told("one")
    attempts = told.request()
    told.pool.accounts.remove(told.keys[0], now=told.clock.now())
    reactions.refused(attempts, QUOTA, told.clock.now())
    assert told.lines == [
        "WARNING openai/one: 429 quota: delivered to the client (429 code=insufficient_quota)"
    ]


def test_what_is_disabled_after_its_failover_was_told_is_a_line_more():
    told = Told("one", "two")
    attempts = told.request()
    assert isinstance(reactions.refused(attempts, UNAUTHORIZED, told.clock.now()), Refresh)
    reactions.refreshed(attempts, False, told.clock.now())
    attempts.committed(told.clock.now())
    assert told.lines == [
        "ALERT openai/one: 401 auth_invalid, asked last for 10 min -> openai/two (401)",
        "WARNING openai/one: 401 auth_invalid, disabled, by a comparison with other accounts (401)",
    ]


def test_what_people_do_is_a_line():
    told = Told("one")
    told.pool.health.mark_cooldown(told.keys[0], QUOTA, now=told.clock.now(), by=By.HAND)
    told.advance(60)
    told.pool.accounts.clear_cooldown(told.keys[0], now=told.clock.now())
    assert told.lines == [
        "ALERT openai/one: on cooldown for 2 h, by hand",
        "ALERT openai/one: back in use, 119 min early, by hand (429 code=insufficient_quota)",
    ]


def test_an_account_that_was_disabled_by_hand_says_so_once():
    told = Told("one")
    cause = Outcome(cls=OutcomeClass.FORBIDDEN_ACCOUNT, scope=Scope.ACCOUNT, signal=BY_HAND)
    told.pool.health.mark_failure(told.keys[0], cause, now=told.clock.now(), by=By.HAND)
    told.pool.accounts.enable(told.keys[0], now=told.clock.now(), by=By.HAND)
    assert told.lines == [
        "WARNING openai/one: disabled, by hand",
        "ALERT openai/one: back in use, by hand",
    ]


@pytest.mark.parametrize(
    ("web", "verbosity", "level"),
    [
        (False, "info", ALERT),
        (False, "alert", ALERT),
        # The event log of mitmweb shows no alerts.
        (True, "info", logging.INFO),
        (True, "warn", logging.INFO),
        (True, "alert", ALERT),
    ],
)
def test_a_failover_is_an_alert_where_alerts_are_shown(web, verbosity, level, caplog):
    with taddons.context() as context:
        context.options.add_option("termlog_verbosity", str, verbosity, "")
        if web:
            context.options.add_option("web_columns", Sequence[str], [], "")
        caplog.set_level(logging.DEBUG)
        decision_log._write(ALERT, "openai/one -> openai/two")
    (record,) = [r for r in caplog.records if "openai/one" in r.message]
    assert record.levelno == level


@pytest.mark.parametrize(("waited", "lines"), [(0.5, 0), (12.0, 1)])
def test_a_wait_is_told_when_it_was_long(waited, lines):
    told = Told("one", max_wait_s=30.0)
    told.pool.health.mark_cooldown(told.keys[0], QUOTA, now=told.clock.now())
    told.pool.accounts.clear_cooldown(told.keys[0], now=told.clock.now())
    limit = Outcome(
        cls=OutcomeClass.RATE_LIMIT, scope=Scope.ACCOUNT, cooldown_s=waited, signal="429"
    )
    told.pool.health.mark_cooldown(told.keys[0], limit, now=told.clock.now())
    told.lines.clear()
    attempts = told.request()
    told.advance(waited)
    attempts.resumed(told.clock.now())
    assert len(told.lines) == lines
    assert all("waited 12 s and continues" in text for text in told.lines)


def test_the_client_that_leaves_while_its_account_cools_is_told():
    told = Told("one", max_wait_s=30.0)
    attempts = told.request()
    limit = Outcome(
        cls=OutcomeClass.RATE_LIMIT,
        scope=Scope.ACCOUNT,
        cooldown_s=2.0,
        signal="429",
        replayable=True,
    )
    reactions.refused(attempts, limit, told.clock.now())
    assert told.lines == []
    told.advance(0.5)
    attempts.left(told.clock.now())
    assert told.lines == [
        "INFO openai/one: 429 rate_limit: a request waited 500 ms until its client "
        "disconnected (429)"
    ]


def test_fifty_at_once_are_two_lines():
    told = Told("one", "two")
    for attempts in [told.request() for _ in range(50)]:
        reactions.refused(attempts, QUOTA, told.clock.now())
    assert len(told.lines) == 1
    told.advance(REPEAT_S)
    assert len(told.lines) == 2
    assert told.lines[1].endswith(" [49 more times in 5 s]")
    told.pool.accounts.clear_cooldown(told.keys[0], now=told.clock.now())
    reactions.refused(told.request(), QUOTA, told.clock.now())
    assert told.lines[-1].endswith("-> openai/two (429 code=insufficient_quota)")


def test_what_is_restored_at_the_start_is_told_elsewhere():
    told = Told("one")
    now = told.clock.now()
    told.pool.health.mark_cooldown(told.keys[0], QUOTA, now=now)
    saved = snapshot.take(told.pool.accounts, wall_now=now, ahead=0.0)
    other = Told("one")
    snapshot.restore(other.pool.accounts, saved, now=now, wall_now=now)
    assert other.lines == []
    assert len(other.pool.decisions) == 1


def test_records_have_wall_time():
    service = service_of("one")
    (key,) = [state.key for state in service.pool.accounts]
    service.pool.health.mark_cooldown(key, QUOTA, now=service.now())
    (record,) = service.pool.decisions
    assert record.as_dict(service.now())["at"] == service.wall_now()


async def test_nobody_waits_for_the_log(caplog):
    caplog.set_level(logging.INFO)
    service = service_of("one")
    service.pool.health.mark_cooldown(
        next(iter(service.pool.accounts)).key, QUOTA, now=service.now(), by=By.HAND
    )
    assert caplog.text == ""
    await asyncio.sleep(0)
    assert "openai/one: on cooldown for 2 h, by hand" in caplog.text


# -- secrets

SECRETS = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_.", min_size=8, max_size=60).map(
    lambda text: f"sk-fake-{text}"
)
NAMES = ("anthropic", "claude-code", "codex", "copilot", "gemini", "openai", "openrouter")
PROVIDERS = [BUILT_IN[name] for name in NAMES]
HEADERS = (
    *("retry-after", "retry-after-ms", "x-should-retry", "x-ratelimit-reset-tokens"),
    *("x-ratelimit-remaining-requests", "ratelimit-policy", "x-quota-snapshot-chat"),
    *("anthropic-ratelimit-unified-status", "anthropic-organization-id", "set-cookie"),
    *("x-codex-turn-state", "x-codex-active-limit", "x-codex-promo-message", "authorization"),
    *("x-codex-primary-reset-at", "x-usage-ratelimit-session", "openai-organization"),
)
FIELDS = ("code", "type", "status", "message", "reason", "resets_at", "retry_after", "model")


@given(
    secret=SECRETS,
    provider=st.sampled_from(PROVIDERS),
    status_code=st.sampled_from([200, 400, 401, 402, 403, 404, 429, 500, 503, 529]),
    headers=st.dictionaries(
        st.sampled_from(HEADERS), st.sampled_from(["{}", "a {}!", "7", "{}=1"])
    ),
    fields=st.dictionaries(st.sampled_from(FIELDS), st.sampled_from(["{}", "on {}", "Rate {}", 7])),
    shown=st.sampled_from([str.lower, str.upper]),
)
def test_an_echoed_credential_is_in_no_record_line_or_table(
    *, secret, provider, status_code, headers, fields, shown
):
    clock = FakeClock()
    service = service_of("one", "two", providers=[provider], clock=clock)
    for state in service.pool.accounts:
        held = state.credentials["key"]
        held.secret._value = secret
    echo = shown(secret)
    error = {k: v.format(echo) if isinstance(v, str) else v for k, v in fields.items()}
    answer = UpstreamResponse(
        status=status_code,
        headers={name: value.format(echo) for name, value in headers.items()},
        payload={"type": "error", "error": error},
        in_stream=status_code == 200,
        wall_now=clock.wall_now(),
    )
    outcome = provider.classify(answer)
    if outcome.cls is OutcomeClass.OK:
        return
    lines: list[str] = []
    service.pool.decisions.subscribe(DecisionLog(lambda _level, text: lines.append(text)))
    facts = RequestFacts(provider=provider.name, kind="key", model="m")
    attempts = Attempts(pool=service.pool, facts=facts, limits=Limits(), chance=lambda: 0.5)
    attempts.begin(clock.now())
    reactions.refused(attempts, outcome, clock.now())
    records = json.dumps([d.as_dict(clock.now()) for d in service.pool.decisions])
    table = status_table(
        service.pool.accounts, service.sessions, service.pool.decisions, clock.now()
    )
    everything = "\n".join([records, *lines, *table]).lower()
    assert secret not in everything
    assert "turn-state" not in everything
    assert "cookie" not in everything


def test_what_is_the_same_again_is_put_into_words_when_its_line_is_due(monkeypatch):
    """A storm fails over hundreds of times a second, and one line tells of them."""
    worded = []
    line = decision_log.line
    monkeypatch.setattr(decision_log, "line", lambda d: worded.append(d.covers) or line(d))
    told = Told("one", "two")
    limit = Outcome(cls=OutcomeClass.RATE_LIMIT, scope=Scope.MODEL, cooldown_s=60.0, signal="429")
    for number in range(20):
        told.pool.health.mark_cooldown(
            told.keys[0], limit, now=told.clock.now(), model=f"m{number}", by=By.HAND
        )
    assert set(worded) == {"m0"}
    told.advance(REPEAT_S)
    assert set(worded) == {"m0", "m19"}
    assert (
        told.lines[-1]
        == "ALERT openai/one: on cooldown for 60 s (m19), by hand [19 more times in 5 s]"
    )

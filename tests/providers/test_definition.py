"""Providers of a user's own: what they can express, and how their credential is sent."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from account_pool.cli.classify import read_answer
from account_pool.config.loader import load
from account_pool.core.account import Account
from account_pool.core.credential import Credential, Secret
from account_pool.core.outcome import OutcomeClass, UpstreamResponse
from account_pool.core.reset_hints import MAX_WAIT_S
from account_pool.providers.base import HostRule, Provider
from account_pool.providers.definition import (
    SPELLINGS,
    Definition,
    LimitRule,
    OwnerPlace,
    Placement,
    Reset,
    build,
)
from account_pool.providers.registry import BUILT_IN

DATA = Path(__file__).parents[1] / "data"
VENDORS = (
    "groq", "mistral", "xai", "deepseek", "together", "fireworks", "cerebras", "perplexity",
)  # fmt: skip
OPENAI = BUILT_IN["openai"]
HOSTS = (HostRule("llm.example.com"),)
#: What the recorded answers lack: (vendor, status, headers, body).
MORE: tuple[tuple[str, int, dict[str, str], Any], ...] = (
    ("groq", 400, {}, {"error": {"code": "organization_restricted"}}),
    ("groq", 503, {}, {"error": {"message": "over capacity"}}),
    ("mistral", 429, {"x-ratelimitbysize-remaining-month": "0", "retry-after": "3"}, {}),
    ("mistral", 401, {}, {"message": "Unauthorized"}),
    ("xai", 400, {}, {"code": "x", "error": "Incorrect API key provided: xa***zz."}),
    ("together", 402, {}, {"error": {"message": "Credit limit exceeded", "type": "credit_limit"}}),
    ("together", 429, {}, {"error": {"message": "slow down", "type": "model_rate_limit"}}),
    ("cerebras", 429, {}, {"message": "x", "code": "queue_exceeded"}),
    ("cerebras", 403, {}, {"message": "Your trial has ended."}),
    ("perplexity", 429, {}, {"error": {"message": "x", "type": "request_rate_limit_exceeded"}}),
    ("perplexity", 500, {}, {}),
    ("deepseek", 503, {}, {"error": {"message": "busy"}}),
    ("fireworks", 412, {}, {"error": {"message": "Account acme2 is suspended"}}),
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Provider]:
    path = tmp_path_factory.mktemp("vendors") / "accounts.yaml"
    shutil.copy(DATA / "vendors.yaml", path)
    return load(path, {}).providers


def recorded() -> list[dict[str, Any]]:
    lines = (DATA / "limits.jsonl").read_text(encoding="utf-8").splitlines()
    answers = [json.loads(line) for line in lines]
    answers += [
        {"provider": vendor, "status": status, "headers": headers, "body": json.dumps(body)}
        for vendor, status, headers, body in MORE
    ]
    return [answer for answer in answers if answer["provider"] in VENDORS]


@pytest.mark.parametrize("answer", recorded(), ids=lambda a: f"{a['provider']}-{a['status']}")
def test_yaml_says_what_the_built_in_provider_says(written, answer):
    own, built_in = written["my-" + answer["provider"]], BUILT_IN[answer["provider"]]
    told = own.classify(read_answer(answer, own))
    expected = built_in.classify(read_answer(answer, built_in))
    assert (told.cls, told.scope, told.cooldown_s, told.replayable) == (
        expected.cls,
        expected.scope,
        expected.cooldown_s,
        expected.replayable,
    )


def test_every_vendor_is_compared():
    assert {answer["provider"] for answer in recorded()} == set(VENDORS)


# -- the credential


def credential(**companions: str) -> tuple[Account, Credential]:
    account = Account(provider="gw", label="a", companions=companions)
    return account, Credential(kind="key", secret=Secret("sk-fake-a"))


def test_a_header_of_its_own_takes_the_place_of_the_usual_one():
    gateway = build(OPENAI, "gw", HOSTS, Definition(credential=Placement("x-key", "Key ")))
    swap = gateway.swap(*credential())
    assert swap.headers == ((b"x-key", b"Key sk-fake-a"),)
    assert {b"authorization", b"x-key"} <= swap.drop
    assert {b"authorization", b"x-key"} <= gateway.credential_headers


def test_a_parameter_takes_the_place_of_headers():
    gateway = build(OPENAI, "gw", HOSTS, Definition(credential=Placement(query="key")))
    swap = gateway.swap(*credential())
    assert swap.headers == ()
    assert swap.query == (("key", "sk-fake-a"),)
    assert swap.drop_query == ("key",) == gateway.credential_query
    assert b"authorization" in swap.drop
    assert "sk-fake-a" not in repr(swap)


def test_companions_travel_and_the_clients_own_go():
    definition = Definition(drop=("x-team",), companions={"workspace": "x-workspace"})
    gateway = build(OPENAI, "gw", HOSTS, definition)
    swap = gateway.swap(*credential(workspace="w1"))
    assert dict(swap.headers) == {b"authorization": b"Bearer sk-fake-a", b"x-workspace": b"w1"}
    assert {b"x-team", b"x-workspace"} <= swap.drop
    assert b"x-workspace" not in dict(gateway.swap(*credential()).headers)
    assert "workspace" in gateway.companions


@pytest.mark.parametrize(
    "path", ["/v1beta/models/m:generateContent", "/v1beta/openai/chat/completions"]
)
@pytest.mark.parametrize("placement", [Placement("x-key"), Placement(query="token"), None])
def test_what_is_placed_is_placed_on_every_path(path, placement):
    companions = {"workspace": "x-workspace"}
    definition = Definition(credential=placement, drop=("x-team",), companions=companions)
    gateway = build(BUILT_IN["gemini"], "gw", HOSTS, definition)
    swap = gateway.swap(*credential(workspace="w1")).for_path(path)
    headers = dict(swap.headers)
    assert headers.pop(b"x-workspace") == b"w1"
    assert {b"x-team", b"x-workspace", *headers} <= swap.drop
    if placement is not None:
        assert headers == ({b"x-key": b"sk-fake-a"} if placement.header else {})
        assert swap.query == ((("token", "sk-fake-a"),) if placement.query else ())


def test_without_a_definition_it_is_the_built_in_one_elsewhere():
    gateway = build(OPENAI, "gw", HOSTS, Definition())
    assert gateway.swap is OPENAI.swap
    limited = UpstreamResponse(status=429, headers={"retry-after": "7"})
    assert gateway.classify(limited) == OPENAI.classify(limited)
    assert gateway.judge is OPENAI.judge
    assert (gateway.name, gateway.hosts, gateway.env) == ("gw", HOSTS, ())


def test_the_owner_is_in_a_header():
    gateway = build(OPENAI, "gw", HOSTS, Definition(owner=OwnerPlace(header="x-org")))
    assert gateway.owner({"x-org": "org-1"}) == "org-1"
    assert gateway.owner({}) is None


# -- resets


@pytest.mark.parametrize(
    ("spelling", "value", "expected"),
    [
        ("seconds", "2.5", 2.5),
        ("milliseconds", "2500", 2.5),
        ("epoch", "1796083202", 2.0),
        ("epoch_ms", "1796083202500", 2.5),
        ("duration", "1m2s", 62.0),
        ("rfc3339", "2026-12-01T00:00:02Z", 2.0),
        ("auto", "2.5", 2.5),
        ("auto", "1796083202", 2.0),
        ("auto", "2m", 120.0),
        ("seconds", "soon", None),
        ("seconds", "-1", None),
        ("epoch", "9" * 40, None),
        ("duration", "1" * 400 + "s", None),
    ],
)
def test_every_spelling_of_a_reset(spelling, value, expected):
    for reset, where in (
        (Reset(header="x-back", spelling=spelling), {"headers": {"x-back": value}}),
        (Reset(pointer=("back",), spelling=spelling), {"payload": {"back": value}}),
    ):
        rule = LimitRule(
            cls=OutcomeClass.RATE_LIMIT, source="x:1", status=frozenset({429}), resets=(reset,)
        )
        gateway = build(OPENAI, "gw", HOSTS, Definition(limits=(rule,)))
        told = gateway.classify(UpstreamResponse(status=429, wall_now=1796083200.0, **where))
        assert told.cooldown_s == expected


def test_every_spelling_is_tried_above():
    assert set(SPELLINGS) == {
        "seconds", "milliseconds", "epoch", "epoch_ms", "duration", "rfc3339", "auto",
    }  # fmt: skip


# -- hostile answers

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["code", "error", "back", "0", "x"]), inner, max_size=3)
    ),
    max_leaves=12,
)
_HOSTILE = tuple(
    LimitRule(
        cls=OutcomeClass.RATE_LIMIT,
        source="x:1",
        status=frozenset({status}),
        headers=(("x-kind", re.compile("a.*b")),) if status == 409 else (),
        pointer=pointer,
        equals=frozenset({"1302"}) if status == 200 else frozenset(),
        regex=re.compile("1") if status == 429 else None,
        message=re.compile("x") if status == 500 else None,
        resets=tuple(Reset(pointer=("error", "back"), spelling=s) for s in SPELLINGS),
        model=("error", "x"),
    )
    for status, pointer in ((200, ("code",)), (429, ("error", "code")), (409, None), (500, ("0",)))
)


@given(
    status=st.sampled_from([200, 409, 429, 500]),
    payload=_JSON,
    header=st.text(max_size=30),
    wall_now=st.floats(allow_nan=True),
)
def test_no_answer_makes_a_rule_fail_or_cool_for_ever(status, payload, header, wall_now):
    gateway = build(OPENAI, "gw", HOSTS, Definition(limits=_HOSTILE))
    gateway.judge(None, payload)
    told = gateway.classify(
        UpstreamResponse(
            status=status, headers={"x-kind": header}, payload=payload, wall_now=wall_now
        )
    )
    assert told.cooldown_s is None or 0 <= told.cooldown_s <= MAX_WAIT_S

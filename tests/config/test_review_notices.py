"""One login under two labels, and keys that look like another vendor's."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from tests.credentials.fakes import entry

from account_pool.config.review import Notices
from account_pool.core.account import AccountKey
from account_pool.core.credential import Credential, Secret
from account_pool.credentials.oauth import OAuthSource
from account_pool.credentials.sources import AccountEntry
from account_pool.providers.base import HostRule
from account_pool.providers.registry import BUILT_IN

REMEDY = "a limit of one is a limit of both: remove one of them"


def held(token: str, kind: str = "key", **companions: str) -> dict[str, Credential]:
    return {kind: Credential(kind=kind, secret=Secret(token), companions=companions)}


def said(notices: Notices, one: AccountEntry, credentials: dict[str, Credential]) -> list[str]:
    return [str(notice) for notice in notices.take(one, credentials)]


def test_one_token_under_two_labels_is_said_once() -> None:
    notices = Notices()
    a, b = entry("openai/a"), entry("openai/b")
    assert said(notices, a, held("sk-1")) == []
    text = f"openai/b: has the same token as openai/a; {REMEDY}"
    assert said(notices, b, held("sk-1")) == [text]
    assert [str(notice) for notice in notices] == [text]
    # Whichever of them is read again.
    assert said(notices, a, held("sk-1")) == []
    assert said(notices, b, held("sk-1")) == []
    assert said(notices, b, held("sk-2")) == []
    assert said(notices, a, held("sk-1")) == []
    assert list(notices) == []


def test_it_ends_with_either_account() -> None:
    for gone in ("openai/a", "openai/b"):
        notices = Notices()
        for key in ("openai/a", "openai/b"):
            notices.take(entry(key), held("sk-1"))
        notices.keep({AccountKey.parse("openai/a"), AccountKey.parse("openai/b")})
        assert len(list(notices)) == 1
        notices.keep({AccountKey.parse(gone)})
        assert len(said(notices, entry("openai/c"), held("sk-1"))) == 1
        assert notices.take(entry(gone), {}) == []


def test_where_the_limits_are_others_it_is_no_slip() -> None:
    notices = Notices()
    assert said(notices, entry("openai/a"), held("sk-1")) == []
    assert said(notices, entry("groq/b"), held("sk-1")) == []
    assert said(notices, entry("openai/c", companions={"openai_project": "p"}), held("sk-1")) == []
    assert said(notices, entry("openai/d"), held("sk-1", host="gw.example.com")) == []


def test_one_login_under_two_labels() -> None:
    notices = Notices()
    written = {"refresh_token": "rt-1"}
    one, two = (
        entry(f"codex/{label}", source=OAuthSource.from_written("codex", label, written, {}))
        for label in ("a", "b")
    )
    assert said(notices, one, held("at-1", "oauth")) == []
    assert said(notices, two, held("at-2", "oauth")) == [
        f"codex/b: has the same login as codex/a; {REMEDY}"
    ]


def test_one_account_by_two_logins_but_not_two_members_of_a_workspace() -> None:
    notices = Notices()
    assert said(notices, entry("codex/a"), held("at-1", "oauth", account_id="w")) == []
    assert said(notices, entry("codex/b"), held("at-2", "oauth", account_id="w")) == [
        f"codex/b: is the same account_id as codex/a; {REMEDY}"
    ]
    for label in ("c", "d"):
        mine = held(f"at-{label}", "oauth", account_id="w", user_id=f"user-{label}")
        assert said(notices, entry(f"codex/{label}"), mine) == []


def test_a_key_of_another_vendor() -> None:
    notices = Notices()
    one = entry("openai/a")
    text = "openai/a: its token looks like an API key of Anthropic; write provider: anthropic"
    assert said(notices, one, held("sk-ant-api03-x")) == [text]
    assert said(notices, one, held("sk-ant-api03-y")) == []
    assert [str(notice) for notice in notices] == [text]


def test_a_gateway_gives_out_keys_as_it_likes() -> None:
    notices = Notices()
    gateway = replace(BUILT_IN["openai"], added_hosts=frozenset({HostRule("gw.example.com")}))
    own = replace(BUILT_IN["openai"], name="my-gateway")
    assert said(notices, replace(entry("openai/a"), provider=gateway), held("sk-ant-x")) == []
    assert said(notices, replace(entry("gw/a"), provider=own), held("sk-ant-x")) == []
    at_host = entry("openai/b", companions={"host": "gw.example.com"})
    assert said(notices, at_host, held("sk-ant-x")) == []


@given(
    st.lists(
        st.tuples(st.sampled_from("abcd"), st.sampled_from(["", "sk-fake-1q", "ghp_2q"])),
        max_size=12,
    )
)
def test_no_text_has_a_token_and_what_is_gone_is_forgotten(steps: list[tuple[str, str]]) -> None:
    notices = Notices()
    now: dict[str, str] = {}
    for label, token in steps:
        texts = said(notices, entry(f"openai/{label}"), held(token) if token else {})
        now[label] = token
        assert not any(part in text for text in texts for part in ("1q", "2q"))
    twins = [t for t in set(now.values()) if t and list(now.values()).count(t) > 1]
    assert any("same token" in str(notice) for notice in notices) <= bool(twins)
    notices.keep(())
    assert list(notices) == [] and not notices._bearers and not notices._marks

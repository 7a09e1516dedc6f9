"""Claude subscriptions, as Claude Code uses them: api.anthropic.com with an OAuth token.

https://code.claude.com/docs/en/authentication. Such a token only serves Claude Code: no
request of another client is given one, and no client is made to look like it. Shares its
host with the API keys of `anthropic`, whose accounts come first for a client that runs
with a key. Limits are in `anthropic.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import msgspec
from msgspec.structs import replace

from account_pool.core.account import Account
from account_pool.core.credential import Credential
from account_pool.core.json_values import (
    NOT_READ,
    decoded,
    member_spans,
    replaced,
    top_member_spans,
)
from account_pool.core.meaning import LazyPattern
from account_pool.core.signals import SignalTable
from account_pool.providers import anthropic, envelopes, sessions
from account_pool.providers.anthropic import RULES, WAITS, WINDOW_RESETS
from account_pool.providers.base import (
    MODELS,
    HostRule,
    Provider,
    RequestHead,
    Route,
    Swap,
    bearer,
)

# -- who serves a request

_POOL_POST = frozenset({"/v1/messages", "/v1/messages/count_tokens"})
# What it asks when it has just been given a login. A real login is asked about itself.
_ABOUT_LOGIN = frozenset({"/api/oauth/claude_cli/roles", "/api/oauth/profile"})
_CLIENT = LazyPattern(r"claude-(?:cli|code)/", re.IGNORECASE)


def route(head: RequestHead) -> Route:
    """Say who serves a request.

    Batches and files belong to the account that made them and pass, as do settings and
    telemetry. `/api/oauth/usage` passes too: it is limited by itself, and its 429 must
    not be taken for one of the subscription.
    """
    if not _CLIENT.match(head.headers.get("user-agent", "")):
        return Route.PASS
    if head.method == "POST":
        pooled = head.path in _POOL_POST
    elif head.method == "GET":
        about_login = head.path in _ABOUT_LOGIN and not _has_login(head)
        pooled = about_login or MODELS.fullmatch(head.path) is not None
    else:
        pooled = False
    return Route.POOL if pooled else Route.PASS


def _has_login(head: RequestHead) -> bool:
    return bearer(head).startswith(_OAUTH)


# -- the credential

_OAUTH = "sk-ant-oat"
_FLAG = b"oauth-2025-04-20"


def misplaced(token: str) -> str | None:
    """Say where an API key belongs, and what a refresh token is for."""
    if token.startswith("sk-ant-api"):
        return "it is an API key: write provider: anthropic"
    if token.startswith("sk-ant-ort"):
        return "it is a refresh token: write it as refresh_token below oauth"
    return None


def swap(_account: Account, credential: Credential) -> Swap:
    """Put the token in `Authorization`, its flag in `anthropic-beta` and its account in the body.

    A client that runs with an API key sends `x-api-key` and not the flag; with the one or
    without the other every subscription is refused.
    """
    of_account = Swap(
        headers=((b"authorization", f"Bearer {credential.secret.reveal()}".encode()),),
        drop=_CREDENTIAL_HEADERS,
        edit=((b"anthropic-beta", with_flag),),
    )
    body = _body_for(credential.companions.get("account_id", ""))
    return replace(of_account, by_path=(("/v1/messages", replace(of_account, body=body)),))


_CREDENTIAL_HEADERS = frozenset({b"authorization", b"x-api-key"})


def with_flag(value: bytes | None) -> bytes:
    """Return `anthropic-beta` with the flag for subscriptions, the client's own kept."""
    if not value:
        return _FLAG
    flags = [flag.strip() for flag in value.split(b",")]
    return value if _FLAG in flags else value + b"," + _FLAG


# `metadata.user_id`: user_<hex>_account_<uuid>_session_<uuid>, from 2.1.78 on the text of
# a JSON object, whose quotes are escaped in the body around it.
_QUOTE = rb'\\(?:"|u0022)'
_ACCOUNT = LazyPattern(
    rb"(?<=_account_)[^_\"\\]*(?=_session_)"
    rb"|(?P<before>" + _QUOTE + rb"account_uuid" + _QUOTE + rb"\s*:\s*" + _QUOTE + rb")"
    rb"[^\"\\]*(?=" + _QUOTE + rb")"
)


def _body_for(account_id: str) -> Callable[[str, bytes], bytes]:
    """Return what puts *account_id* in place of the client's in `metadata.user_id`.

    Without one the client's goes all the same: it names another account than the token.
    Device and session stay, and every other byte.
    """
    ours = msgspec.json.encode(account_id)[1:-1]

    def name_account(found: re.Match[bytes]) -> bytes:
        return (found["before"] or b"") + ours

    def body(_path: str, content: bytes) -> bytes:
        for span in reversed(_user_ids(content)):
            user_id, found = _ACCOUNT.subn(name_account, content[slice(*span)])
            if not found:
                user_id = _respelt(user_id, account_id)
            content = replaced(content, [span], user_id)
        return content

    return body


_ACCOUNT_IN_TEXT = LazyPattern(r"(?<=_account_).*?(?=_session_)", re.DOTALL)


def _respelt(user_id: bytes, account_id: str) -> bytes:
    """Return *user_id*, a string of JSON, with *account_id*, whichever way it is spelt."""
    try:
        text = msgspec.json.decode(user_id, type=str)
    except NOT_READ:
        return user_id
    inner = decoded(text)
    if isinstance(inner, dict) and "account_uuid" in inner:
        named = msgspec.json.encode({**inner, "account_uuid": account_id}).decode()
    else:
        named = _ACCOUNT_IN_TEXT.sub(lambda _: account_id, text)
    return user_id if named == text else msgspec.json.encode(named)


def _user_ids(content: bytes) -> list[tuple[int, int]]:
    metadata = top_member_spans(content, "metadata")
    return [span for start, _ in metadata for span in member_spans(content, "user_id", start)]


# -- what a response says

#: Limits are those of a seat, not of its organisation.
SIGNALS = SignalTable(rules=RULES, judge=anthropic.judge, waits=WAITS)

PROVIDER = Provider(
    name="claude-code",
    hosts=(HostRule("api.anthropic.com"),),
    env=("CLAUDE_CODE_OAUTH_TOKEN",),
    route=route,
    credential_headers=_CREDENTIAL_HEADERS,
    conversation=sessions.conversation,
    created_ids=sessions.ids_in_response,
    windows=("5h", "7d"),
    swap=swap,
    judge=anthropic.judge,
    classify=SIGNALS.classify,
    signals=SIGNALS,
    refusal=anthropic.refusal,
    delay=envelopes.sdk_delay,
    delay_headers=envelopes.SDK_DELAY_HEADERS,
    # Claude Code does not try again by itself: it shows the moment to its user.
    instants=dict.fromkeys(WINDOW_RESETS, envelopes.epoch_seconds),
    token_kind="oauth",  # noqa: S106 - the word
    misplaced=misplaced,
    companions=frozenset({"account_id", "organization"}),
)

"""Gemini CLI with a Google login: Gemini Code Assist at cloudcode-pa.googleapis.com.

Paths, bodies and headers are those of google-gemini/gemini-cli `packages/core/src/
code_assist`. A login goes with the project Google made for its account, which stands in
the body of every request. Limits are those of `gemini.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import msgspec

from account_pool.core.account import Account
from account_pool.core.credential import Credential
from account_pool.core.json_values import member_spans, replaced, start_of_object, top_member_spans
from account_pool.core.meaning import LazyPattern
from account_pool.core.outcome import Scope
from account_pool.core.signals import SignalTable
from account_pool.providers import envelopes, gemini, sessions
from account_pool.providers.base import CannotSwap, HostRule, Provider, RequestHead, Route, Swap
from account_pool.providers.gemini import RULES, WAITS

# -- who serves a request

_METHOD = LazyPattern(r"/v1internal:(?P<method>[A-Za-z]+)")
_INFERENCE = frozenset({"countTokens", "generateContent", "streamGenerateContent"})
# What it asks before its first prompt, answered for the account and its project.
_ABOUT_ACCOUNT = frozenset(
    {"fetchAdminControls", "listExperiments", "loadCodeAssist", "retrieveUserQuota"}
)
_CLIENT = LazyPattern(r"GeminiCLI\b", re.IGNORECASE)
# Its set-up calls are made without a name of their own (code_assist/setup.ts).
_CLIENT_AT_START = LazyPattern(r"GeminiCLI\b|google-api-nodejs-client/", re.IGNORECASE)


def route(head: RequestHead) -> Route:
    """Pool requests of Gemini CLI, and only those that leave nothing behind.

    Signing up (`:onboardUser`), settings and telemetry pass.
    """
    found = _METHOD.fullmatch(head.path)
    if head.method != "POST" or not found:
        return Route.PASS
    client = head.headers.get("user-agent", "")
    if found["method"] in _INFERENCE:
        return Route.POOL if _CLIENT.search(client) else Route.PASS
    asked = found["method"] in _ABOUT_ACCOUNT and _CLIENT_AT_START.search(client)
    return Route.POOL if asked else Route.PASS


# -- the credential


def misplaced(token: str) -> str | None:
    """Say where an API key belongs, and what a refresh token is for."""
    if token.startswith("AIza"):
        return "it is an API key: write provider: gemini"
    if token.startswith("1//"):
        return "it is a refresh token: write it as refresh_token below oauth"
    return None


def swap(account: Account, credential: Credential) -> Swap:
    """Put the token in `Authorization` and the account's project in the body.

    A project of another account is refused, so inference without one is not sent.
    """
    return Swap(
        headers=((b"authorization", f"Bearer {credential.secret.reveal()}".encode()),),
        drop=_CREDENTIAL_HEADERS,
        body=_body_for(str(account.key), credential.companions.get("project")),
    )


_CREDENTIAL_HEADERS = frozenset({b"authorization", b"x-goog-api-key", b"x-goog-user-project"})


def _body_for(account: str, project: str | None) -> Callable[[str, bytes], bytes]:
    """Return what puts *project* wherever a body names one, and leaves every other byte.

    Not known yet: questions about the account are asked without one.
    """
    value = b"null" if project is None else msgspec.json.encode(project)

    def body(path: str, content: bytes) -> bytes:
        start = start_of_object(content)
        if start is None:
            raise CannotSwap("the request has no JSON body to put a project in")
        spans = top_member_spans(content, "project")
        if path.endswith((":generateContent", ":streamGenerateContent")):
            if project is None:
                raise CannotSwap(
                    f"{account}: its project is not known; write project: in its entry"
                )
            if not spans:
                return _with_first_member(content, start, b'"project":' + value)
        spans += top_member_spans(content, "cloudaicompanionProject")
        for metadata, _ in top_member_spans(content, "metadata"):
            spans += member_spans(content, "duetProject", metadata)
        return replaced(content, spans, value)

    return body


def _with_first_member(content: bytes, start: int, pair: bytes) -> bytes:
    rest = content[start + 1 :]
    comma = b"" if rest.lstrip()[:1] == b"}" else b","
    return content[: start + 1] + pair + comma + rest


# -- what a response says

#: Nearly all quotas here are counted per model.
SIGNALS = SignalTable(rules=RULES, judge=gemini.judge, rate_scope=Scope.MODEL, waits=WAITS)

# -- refusals of our own

_STAMP = LazyPattern(r'("quotaResetTimeStamp"\s*:\s*")[^"]*(")')
_SENTENCE = LazyPattern(r"(quota will reset after )[0-9][0-9a-z.]*?(?=\.?(?:[\s\"\\]|$))")


def delay_body(text: str, wait_s: float, wall_now: float) -> str:
    """Rewrite when the quota is back, in each of the spellings Gemini CLI reads."""
    text = gemini.delay_body(text, wait_s, wall_now)
    text = _STAMP.sub(rf"\g<1>{envelopes.rfc3339(wall_now + wait_s)}\g<2>", text)
    return _SENTENCE.sub(rf"\g<1>{envelopes.whole_seconds(wait_s)}s", text)


PROVIDER = Provider(
    name="gemini-cli",
    hosts=(HostRule("cloudcode-pa.googleapis.com"),),
    env=(),
    route=route,
    credential_headers=_CREDENTIAL_HEADERS,
    conversation=sessions.conversation,
    windows=(),
    swap=swap,
    judge=gemini.judge,
    classify=SIGNALS.classify,
    signals=SIGNALS,
    refusal=gemini.refusal,
    delay=envelopes.retry_after,
    delay_body=delay_body,
    token_kind="oauth",  # noqa: S106 - the word
    misplaced=misplaced,
    companions=frozenset({"project"}),
)

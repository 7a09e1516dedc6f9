"""The token endpoint of a login: what is sent, how long it may take, what the response means.

RFC 6749, sections 5 and 6, and what the vendors make of it (`vendor_logins.py` names their
clients). Nothing is believed further than needed: tokens must be able to stand in a header,
times must be plausible, texts are one short line without any token in it.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from account_pool.core.claims import ANSWER_S
from account_pool.core.credential import Secret
from account_pool.credentials.errors import CredentialError, ExchangeFailed
from account_pool.credentials.http import (
    OWN_NAME,
    Http,
    HttpFailed,
    HttpResponse,
    quoted,
    retry_after,
)
from account_pool.credentials.oauth import OAuthSettings
from account_pool.credentials.sources import usable
from account_pool.store.store import Tokens

#: An access token that says it lives longer than a year is not believed.
LONGEST_LIFE_S = 366 * 86400.0
MAX_MESSAGE_CHARS = 200
#: Seconds until a refresh is tried again that what was written makes impossible.
SETTINGS_WAIT_S = 600.0
#: Words: what has other digits may be a token.
_USUAL_CODE = re.compile(r"(?=.{1,60}\Z)[a-z]+[0-9]{0,2}(?:[_.-][a-z]+[0-9]{0,2})*\Z")

#: The refresh token is worth nothing any more: RFC 6749, section 5.2; codes of
#: ChatGPT logins: openai/codex `codex-rs/login/src/auth/manager.rs`.
ENDED_CODES = frozenset(
    {
        "invalid_grant",
        "refresh_token_expired",
        "refresh_token_reused",
        "refresh_token_invalidated",
        "refresh_token_revoked",
        "invalid_refresh_token",
        "bad_refresh_token",
        "token_revoked",
        "revoked",
        # The ChatGPT account itself: Soju06/codex-lb `app/core/balancer/logic.py`.
        "account_deactivated",
        "app_session_terminated",
    }
)
#: What was written in accounts.yaml is wrong: RFC 6749, section 5.2.
SETTINGS_CODES = frozenset(
    {
        "invalid_client",
        "unauthorized_client",
        "unsupported_grant_type",
        "invalid_scope",
        "invalid_request",
    }
)
_ACCOUNT_ID = re.compile(r"[A-Za-z0-9-]{1,100}\Z")


class LoginEnded(ExchangeFailed):
    """The login is over, unless somebody else has newer tokens of it."""

    passes = False


class WrongSettings(ExchangeFailed):
    """What was written in accounts.yaml is wrong."""

    passes = False


class AnswerLost(ExchangeFailed):
    """What came back says nothing of the refresh token: it may be spent."""


def request(settings: OAuthSettings, tokens: Tokens) -> tuple[dict[str, str], bytes]:
    """Return the headers and the body that ask for the next tokens."""
    fields = {
        "grant_type": "refresh_token",
        "refresh_token": tokens.refresh.reveal(),
        "client_id": settings.client_id,
        **settings.extra,
    }
    if settings.client_secret is not None:
        fields["client_secret"] = settings.client_secret.reveal()
    if settings.scope is not None:
        fields["scope"] = settings.scope
    is_json = settings.style == "json"
    headers = {
        "accept": "application/json",
        "content-type": "application/json" if is_json else "application/x-www-form-urlencoded",
        "user-agent": OWN_NAME,
    }
    return headers, (json.dumps(fields) if is_json else urlencode(fields)).encode()


def read(
    response: HttpResponse, asked_with: Tokens, wall_now: float, client_secret: Secret | None = None
) -> Tokens:
    """Return the tokens that follow *asked_with*. No text repeats these, or *client_secret*.

    A server that names no new refresh token goes on with the old one. Raises ExchangeFailed,
    or LoginEnded or AnswerLost, which are some.
    """
    secrets = (asked_with.refresh, asked_with.access, client_secret)
    if not 200 <= response.status < 300:
        raise read_refusal(response, secrets, wall_now)
    payload = response.json()
    fields: dict[str, Any] = payload if isinstance(payload, dict) else {}
    # Each is used whatever is wrong with the other: the old refresh token is spent.
    following = _refresh(fields.get("refresh_token")) or asked_with.refresh
    secret = _access(fields.get("access_token"))
    if secret is None and following == asked_with.refresh:
        if _reason(payload, secrets)[0]:  # some say with 200 what is wrong, as GitHub does
            raise read_refusal(response, secrets, wall_now)
        raise AnswerLost(f"the refresh answered {response.status} without a usable access token")
    return Tokens(
        access=secret,
        refresh=following,
        expires_at=_expiry(fields.get("expires_in"), wall_now),
        refreshed_at=wall_now,
        companions={**asked_with.companions, **_companions(fields)},
    )


def read_refusal(
    response: HttpResponse, secrets: Sequence[Secret | None], wall_now: float
) -> ExchangeFailed:
    """Say what a response other than 200 means."""
    code, message = _reason(response.json(), secrets)
    reason = " ".join(part for part in (code, f"({message})" if message else "") if part)
    if code in ENDED_CODES:
        return LoginEnded(reason)
    described = f"the refresh answered {response.status}" + (f": {reason}" if reason else "")
    if code in SETTINGS_CODES and response.status in (400, 401, 403):
        return WrongSettings(
            f"{described}; correct client_id, client_secret, scope and style of its oauth",
            SETTINGS_WAIT_S,
        )
    wait_s = retry_after(response.headers, wall_now, response.status)
    # Only what says that the request was wrong was not done (RFC 9110, section 15.5): a gateway
    # may have lost the response of a server that did it, and have its own instead.
    lost = not 400 <= response.status < 500
    return (AnswerLost if lost else ExchangeFailed)(described, wait_s)


def _access(text: Any) -> Secret | None:
    """Return an access token, None for what cannot stand in a header."""
    try:
        return usable(text, "it") if isinstance(text, str) else None
    except CredentialError:
        return None


def _refresh(text: Any) -> Secret | None:
    """Return a refresh token, None for what cannot be kept or sent.

    It travels in a body: it may hold a space (RFC 6749, appendix A.17), and more.
    """
    try:
        return Secret(text) if isinstance(text, str) and text.strip() and text.encode() else None
    except UnicodeEncodeError:
        return None


def _expiry(expires_in: Any, wall_now: float) -> float | None:
    """Return when the token ends by our own clock, None if the response does not say."""
    if isinstance(expires_in, str) and expires_in.isascii() and expires_in.isdigit():
        expires_in = int(expires_in[:10])
    if isinstance(expires_in, bool) or not isinstance(expires_in, int | float):
        return None
    return wall_now + expires_in if 0 < expires_in <= LONGEST_LIFE_S else None


def _companions(fields: Mapping[str, Any]) -> dict[str, str]:
    """Return what Claude says of the account beside the tokens."""
    account = fields.get("account")
    uuid = account.get("uuid") if isinstance(account, dict) else None
    return {"account_id": uuid} if isinstance(uuid, str) and _ACCOUNT_ID.match(uuid) else {}


def _reason(payload: Any, secrets: Sequence[Secret | None]) -> tuple[str, str]:
    """Return the code and the message of an error body, "" for none.

    `{"error": "code", "error_description": ...}` (RFC 6749), `{"error": {"code" or
    "type", "message"}}` (OpenAI, Anthropic), `{"code", "message"}`.
    """
    if not isinstance(payload, dict):
        return "", ""
    error = payload.get("error")
    inner = error if isinstance(error, dict) else payload
    codes = (error, inner.get("code"), inner.get("type"), inner.get("error"))
    usual = (c for c in codes if isinstance(c, str) and _USUAL_CODE.match(c))
    known = [c for c in usual if quoted(c, secrets) == c]
    code = next((c for c in known if c in ENDED_CODES | SETTINGS_CODES), next(iter(known), ""))
    message = inner.get("error_description") or inner.get("message") or ""
    if not isinstance(message, str):
        return code, ""
    return code, quoted(message, secrets, MAX_MESSAGE_CHARS)


# -- sending. Once the request has left, the refresh token may be spent: the response is worth
# waiting for, for minutes. A proxy that stops waits for it a little longer.

#: Seconds until the request has left; less than the claim lasts (core/claims.py).
CONNECT_S = 15.0
#: How often it is checked whether the proxy stops, in seconds.
LOOK_S = 0.1

#: Sends (url, headers, body) and returns the response; the last is called when the request is
#: about to leave. Raises HttpFailed, and what that raises.
Post = Callable[[str, dict[str, str], bytes, Callable[[], None]], HttpResponse]


@dataclass(slots=True)
class Stop:
    """Whether the proxy is shutting down; shared by threads.

    Attributes:
        by: until when a response is waited for then, seconds of `time.monotonic`; None: it runs.
    """

    by: float | None = None

    @property
    def is_set(self) -> bool:
        return self.by is not None


def post_with(
    http: Http, stop: Stop, *, connect_s: float = CONNECT_S, answer_s: float = ANSWER_S
) -> Post:
    """Return a `Post` that blocks its thread while *http* asks, until *stop* at most."""

    async def ask(
        url: str, headers: dict[str, str], content: bytes, sending: Callable[[], None]
    ) -> HttpResponse:
        left = False

        def leaves() -> None:
            nonlocal left
            sending()
            left = True

        asking = asyncio.create_task(
            http.ask(
                "POST",
                url,
                headers=headers,
                content=content,
                timeout_s=connect_s,
                answer_s=answer_s,
                sending=leaves,
            )
        )
        while not (await asyncio.wait({asking}, timeout=LOOK_S))[0]:
            # What has not left is not worth waiting for.
            if stop.by is not None and (not left or time.monotonic() >= stop.by):
                asking.cancel()
                raise HttpFailed("the proxy is shutting down", sent=left)
        return asking.result()

    def post(
        url: str, headers: dict[str, str], content: bytes, sending: Callable[[], None]
    ) -> HttpResponse:
        # A loop of its own: that of the proxy must be free to stop meanwhile.
        return asyncio.run(ask(url, headers, content, sending))

    return post

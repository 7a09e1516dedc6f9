"""A login that is refreshed: as its owner wrote it, and the token endpoint that renews it.

RFC 6749, sections 5 and 6, and what the vendors make of it (`vendor_logins.py` names their
clients). What becomes of the tokens at run time is `refreshable_token.py`. Nothing that a
server says is believed further than needed: tokens must be able to stand in a header, times
must be plausible, texts are one short line without any token in it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlencode

import msgspec
from msgspec.structs import replace

from account_pool.core.account import AccountKey, normalise_label
from account_pool.core.claims import ANSWER_S
from account_pool.core.credential import Secret
from account_pool.core.json_values import members
from account_pool.core.meaning import LazyPattern
from account_pool.credentials.http import (
    OWN_NAME,
    ExchangeFailed,
    Http,
    HttpFailed,
    HttpResponse,
    check_token_url,
    quoted,
    retry_after,
    seconds_in,
)
from account_pool.credentials.sources import (
    CredentialError,
    Reading,
    Source,
    check_written,
    expand,
    read_instant,
    token_in,
    usable_expanded,
    variables_in,
)
from account_pool.credentials.vendor_logins import VENDORS
from account_pool.store.store import Tokens

_HOW = "write oauth: {refresh_token: ..., access_token: ..., expires_at: ...}"

#: The keys of `oauth:`.
KEYS = (
    "access_token",
    "refresh_token",
    "expires_at",
    "refresh_expires_at",
    "token_url",
    "client_id",
    "client_secret",
    "scope",
    "style",
)
_STYLES = ("json", "form")


class OAuthSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where and how a login is refreshed (RFC 6749, section 6).

    Attributes:
        token_url: https, or http to this machine; ValueError otherwise.
        client_id: of the application the owner logged in with.
        client_secret: of it, None if it has none.
        scope: asked for, None to leave it as it was granted.
        style: how the request is written: "json", or "form" as the RFC has it.
        extra: further fields of the request.
        refresh_after_s: age in seconds at which a token is refreshed although it has
            not ended; None: only before it ends.
    """

    token_url: str
    client_id: str
    client_secret: Secret | None = None
    scope: str | None = None
    style: Literal["json", "form"] = "form"
    extra: Mapping[str, str] = msgspec.field(default_factory=dict)
    refresh_after_s: float | None = None

    def __post_init__(self) -> None:
        check_token_url(self.token_url)


@dataclass(frozen=True, slots=True, kw_only=True)
class OAuthSource(Source):
    """A login as it was written down; tokens and client may hold `${NAME}`.

    Its newest tokens may be in the store: `RefreshableToken` knows. Two sources are equal when they
    lead to the same login.
    """

    key: AccountKey
    settings: OAuthSettings
    refresh_token: Secret
    access_token: Secret | None = None
    expires_at: float | None = None
    refresh_expires_at: float | None = None
    environ: Mapping[str, str] = field(repr=False, compare=False)
    written_in: str = "accounts.yaml"

    @classmethod
    def from_written(
        cls, provider: str, label: str, written: Mapping[str, Any], environ: Mapping[str, str]
    ) -> OAuthSource:
        """Return the login that `oauth: {...}` describes.

        Raises CredentialError for what is missing, unknown or of the wrong kind. A
        variable that is not set is noticed by `read_now`.
        """
        if any(key not in KEYS for key in written):
            # The key itself may be a token: {sk-...} is a mapping in YAML.
            raise CredentialError("oauth has an unknown key", f"its keys are {', '.join(KEYS)}")
        settings = _settings(provider, written)
        refresh = _text(written, "refresh_token")
        if refresh is None:
            raise CredentialError("oauth has no refresh_token", _HOW)
        access = _text(written, "access_token")
        return cls(
            key=AccountKey(provider, normalise_label(label)),
            settings=settings,
            refresh_token=Secret(refresh),
            access_token=None if access is None else Secret(access),
            expires_at=read_instant(written.get("expires_at")),
            refresh_expires_at=read_instant(
                written.get("refresh_expires_at"), "refresh_expires_at"
            ),
            environ=environ,
        )

    def describe(self) -> str:
        return self.written_in

    @property
    def login_ends_at(self) -> float | None:
        return self.refresh_expires_at

    def fingerprint(self) -> str:
        return self.refresh_token.digest()

    def check_written(self) -> None:
        """Look for mistakes in the texts themselves. Raises CredentialError."""
        check_written(self.refresh_token, "the refresh_token")
        if self.access_token is not None:
            check_written(self.access_token, "the access_token")
        variables_in(self.settings.client_id)
        if self.settings.client_secret is not None:
            variables_in(self.settings.client_secret.reveal())

    def read_now(self) -> Reading | None:
        """Return the access token as written, None when there is only a refresh token.

        Raises CredentialError.
        """
        self.settings_now()
        access = self.tokens().access
        return None if access is None else Reading(secret=access)

    async def read(self) -> Reading:
        reading = self.read_now()
        if reading is None:
            raise CredentialError(
                "oauth has no access_token", "start the proxy: it gets one with the refresh token"
            )
        return reading

    def tokens(self) -> Tokens:
        """Return the tokens as written. Raises CredentialError."""
        access = self.access_token
        return Tokens(
            access=None if access is None else self._expanded(access, "the access_token"),
            refresh=self._expanded(self.refresh_token, "the refresh_token"),
            expires_at=self.expires_at,
        )

    def settings_now(self) -> OAuthSettings:
        """Return how the login is refreshed, variables filled in. Raises CredentialError."""
        # In a body, not in a header: any character may stand in them.
        client_id = expand(self.settings.client_id, self.environ)
        secret = self.settings.client_secret
        if secret is not None:
            secret = Secret(expand(secret.reveal(), self.environ))
        return replace(self.settings, client_id=client_id, client_secret=secret)

    def family(self) -> str:
        """Name the tokens that descend from the written refresh token.

        A new login has a new family, so what is written wins over what is stored. The
        label is no part of it: an account that is renamed keeps its login.
        Raises CredentialError.
        """
        refresh = self._expanded(self.refresh_token, "the refresh_token").reveal()
        return f"{self.key.provider}:{hashlib.sha256(refresh.encode()).hexdigest()}"

    def _expanded(self, text: Secret, what: str) -> Secret:
        return usable_expanded(text, self.environ, what)


def _text(written: Mapping[str, Any], key: str) -> str | None:
    """Return the text at *key*, None when it is not there. Raises CredentialError."""
    value = written.get(key)
    if value is None:
        return None
    if not isinstance(value, str) or not value.strip():
        raise CredentialError(f"the value of {key} is not text", f'write {key}: "..."')
    return value.strip()


def _settings(provider: str, written: Mapping[str, Any]) -> OAuthSettings:
    """Return what is written over what the vendor's login has. Raises CredentialError."""
    names = ("token_url", "client_id", "client_secret", "scope", "style")
    given = {name: text for name in names if (text := _text(written, name)) is not None}
    fields: dict[str, Any] = {**VENDORS.get(provider, {}), **given}
    missing = [name for name in ("token_url", "client_id") if name not in fields]
    if missing:
        raise CredentialError(
            f"oauth has no {' and no '.join(missing)}",
            f"write it: the refresh of {provider} is not built in",
        )
    if fields.get("style", "form") not in _STYLES:
        raise CredentialError("the style is neither json nor form", "write style: json or form")
    if "client_secret" in fields:
        fields["client_secret"] = Secret(fields["client_secret"])
    try:
        return OAuthSettings(**fields)
    except ValueError as error:
        raise CredentialError(
            f"the token_url cannot be used: {error}", "write an https address"
        ) from None


# -- the token endpoint: what is sent, how long it may take, what the response means

#: An access token that says it lives longer than a year is not believed.
LONGEST_LIFE_S = 366 * 86400.0
MAX_MESSAGE_CHARS = 200
#: Seconds until a refresh is tried again that what was written makes impossible.
SETTINGS_WAIT_S = 600.0
#: Words: what has other digits may be a token.
_USUAL_CODE = LazyPattern(r"(?=.{1,60}\Z)[a-z]+[0-9]{0,2}(?:[_.-][a-z]+[0-9]{0,2})*\Z")

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
_ACCOUNT_ID = LazyPattern(r"[A-Za-z0-9-]{1,100}\Z")


class LoginEnded(ExchangeFailed):
    """The login is over, unless somebody else has newer tokens of it."""

    def __init__(self, text: str, retry_after_s: float | None = None) -> None:
        super().__init__(text, retry_after_s, passes=False)


class AnswerLost(ExchangeFailed):
    """What came back says nothing of the refresh token: it may be spent."""


def refresh_request(settings: OAuthSettings, tokens: Tokens) -> tuple[dict[str, str], bytes]:
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


def read_tokens(
    response: HttpResponse, asked_with: Tokens, wall_now: float, client_secret: Secret | None = None
) -> Tokens:
    """Return the tokens that follow *asked_with*. No text repeats these, or *client_secret*.

    A server that names no new refresh token goes on with the old one. Raises ExchangeFailed,
    or LoginEnded or AnswerLost, which are some.
    """
    secrets = (asked_with.refresh, asked_with.access, client_secret)
    if not 200 <= response.status < 300:
        raise read_refusal(response, secrets, wall_now)
    fields = response.fields()
    # Each is used whatever is wrong with the other: the old refresh token is spent.
    following = _refresh(fields.get("refresh_token")) or asked_with.refresh
    secret = token_in(fields.get("access_token"))
    if secret is None and following == asked_with.refresh:
        if _reason(fields, secrets)[0]:  # some say with 200 what is wrong, as GitHub does
            raise read_refusal(response, secrets, wall_now)
        raise AnswerLost(f"the refresh answered {response.status} without a usable access token")
    life_s = seconds_in(fields.get("expires_in"), LONGEST_LIFE_S)
    return Tokens(
        access=secret,
        refresh=following,
        expires_at=None if life_s is None else wall_now + life_s,
        refreshed_at=wall_now,
        companions={**asked_with.companions, **_companions(fields)},
    )


def read_refusal(
    response: HttpResponse, secrets: Sequence[Secret | None], wall_now: float
) -> ExchangeFailed:
    """Say what a response other than 200 means."""
    code, message = _reason(response.fields(), secrets)
    reason = " ".join(part for part in (code, f"({message})" if message else "") if part)
    if code in ENDED_CODES:
        return LoginEnded(reason)
    described = f"the refresh answered {response.status}" + (f": {reason}" if reason else "")
    if code in SETTINGS_CODES and response.status in (400, 401, 403):
        return ExchangeFailed(
            f"{described}; correct client_id, client_secret, scope and style of its oauth",
            SETTINGS_WAIT_S,
            passes=False,
        )
    wait_s = retry_after(response.headers, wall_now, response.status)
    # Only what says that the request was wrong was not done (RFC 9110, section 15.5): a gateway
    # may have lost the response of a server that did it, and have its own instead.
    lost = not 400 <= response.status < 500
    return (AnswerLost if lost else ExchangeFailed)(described, wait_s)


def _refresh(text: Any) -> Secret | None:
    """Return a refresh token, None for what cannot be kept or sent.

    It travels in a body: it may hold a space (RFC 6749, appendix A.17), and more.
    """
    try:
        return Secret(text) if isinstance(text, str) and text.strip() and text.encode() else None
    except UnicodeEncodeError:
        return None


def _companions(fields: Mapping[str, Any]) -> dict[str, str]:
    """Return what Claude says of the account beside the tokens."""
    uuid = members(fields.get("account")).get("uuid")
    return {"account_id": uuid} if isinstance(uuid, str) and _ACCOUNT_ID.match(uuid) else {}


def _reason(payload: Mapping[str, Any], secrets: Sequence[Secret | None]) -> tuple[str, str]:
    """Return the code and the message of an error body, "" for none.

    `{"error": "code", "error_description": ...}` (RFC 6749), `{"error": {"code" or
    "type", "message"}}` (OpenAI, Anthropic), `{"code", "message"}`.
    """
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


class Stop(msgspec.Struct):
    """Whether the proxy is shutting down; shared by threads.

    Attributes:
        by: until when a response is waited for then, seconds of `time.monotonic`; None: it runs.
    """

    by: float | None = None

    @property
    def is_set(self) -> bool:
        return self.by is not None


def post_with(http: Http, stop: Stop) -> Post:
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
                timeout_s=CONNECT_S,
                answer_s=ANSWER_S,
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

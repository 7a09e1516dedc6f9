"""A login that is refreshed, as its owner wrote it: tokens, and where new ones come from.

Values only. What becomes of them at run time is `refreshable_token.py`; what the vendors'
servers answer is `token_endpoint.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from account_pool.core.account import AccountKey, normalise_label
from account_pool.core.credential import Secret
from account_pool.credentials.errors import CredentialError
from account_pool.credentials.http import check_token_url
from account_pool.credentials.reading import read_instant
from account_pool.credentials.sources import (
    Source,
    check_written,
    expand,
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


@dataclass(frozen=True, slots=True, kw_only=True)
class OAuthSettings:
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
    extra: Mapping[str, str] = field(default_factory=dict)
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
        _require_known(written)
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

    def read_now(self) -> Secret | None:
        """Return the access token as written, None when there is only a refresh token.

        Raises CredentialError.
        """
        self.settings_now()
        return self.tokens().access

    async def read(self) -> Secret:
        secret = self.read_now()
        if secret is None:
            raise CredentialError(
                "oauth has no access_token", "start the proxy: it gets one with the refresh token"
            )
        return secret

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


def _require_known(written: Mapping[str, Any]) -> None:
    for key in written:
        if key not in KEYS:
            # The key itself may be a token: {sk-...} is a mapping in YAML.
            raise CredentialError("oauth has an unknown key", f"its keys are {', '.join(KEYS)}")


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

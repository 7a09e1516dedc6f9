"""An account to be added, as it is sent: with the credential itself and no references to one.

Who has the admin token may give the pool a credential. A variable, a file, a command or an
address of the sender's choice would let him read what the proxy can read, and send it
anywhere: those are for accounts.yaml, whose owner is on this machine.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StringConstraints, field_validator

from account_pool.admin.bodies import AccountName, Shape
from account_pool.admin.errors import ApiError
from account_pool.core.credential import Secret
from account_pool.credentials.sources import literal
from account_pool.credentials.vendor_logins import VENDORS

#: The kinds of accounts.yaml that are refused here, by the code of the refusal.
_READ = {"command": "command", "env": "source", "file": "source", "keychain": "source"}
_SEND = "send the credential itself, or {oauth: {refresh_token: ...}}"
#: What `${NAME}` is read in, below `oauth`.
_EXPANDED = ("access_token", "refresh_token", "client_id", "client_secret")

Given = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class Tokens(Shape):
    """A login of a vendor whose refresh is built in."""

    refresh_token: Given
    access_token: Given | None = None
    expires_at: str | float | None = Field(
        None, description="RFC 3339, or seconds since the epoch."
    )
    client_id: Given | None = None
    client_secret: Given | None = None
    scope: Given | None = None
    style: Literal["json", "form"] | None = None


class Login(Shape):
    """A login that is refreshed."""

    oauth: Tokens


class NewAccount(AccountName):
    """One account with its credential, and any key that accounts.yaml has for it."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True, hide_input_in_errors=True)

    token: Given | Login = Field(
        description="The credential itself, in which $ is an ordinary character, or the login "
        f"of {', '.join(VENDORS)}. Variables, files, commands and keychain items are written in "
        "accounts.yaml. It is never shown again."
    )

    @field_validator("token", mode="before")
    @classmethod
    def _is_given(cls, value: Any) -> Any:
        """Say what is wrong in fewer words than pydantic has for a union."""
        if isinstance(value, str):
            return value
        if not isinstance(value, dict):
            raise _refused("invalid", "send text")
        for kind, code in _READ.items():
            if kind in value:
                raise _refused(
                    code, f"{kind} is for accounts.yaml: the proxy would read it; {_SEND}"
                )
        oauth = value.get("oauth")
        if len(value) != 1 or not isinstance(oauth, dict):
            raise _refused("invalid", _SEND)
        if "token_url" in oauth:
            raise _refused("source", f"a login with a token_url is for accounts.yaml; {_SEND}")
        if oauth.keys() - Tokens.model_fields.keys():
            raise _refused("invalid", "oauth takes " + ", ".join(Tokens.model_fields))
        return value

    def entry(self) -> dict[str, Any]:
        """Return it as it is written in accounts.yaml. Raises ApiError."""
        provider = self.provider.strip().lower()
        entry = {**self.model_dump(exclude={"token"}), "provider": provider}
        if isinstance(self.token, str):
            return {**entry, "token": _as_written(self.token)}
        if provider not in VENDORS:
            raise _refused(
                "source", f"oauth is for {', '.join(VENDORS)} here; write it in accounts.yaml"
            )
        tokens = self.token.oauth.model_dump(exclude_none=True)
        for name in _EXPANDED:
            if name in tokens:
                tokens[name] = _as_written(tokens[name])
        return {**entry, "token": {"oauth": tokens}}


def _refused(code: str, text: str) -> ApiError:
    return ApiError(422, code, f"token: {text}")


def _as_written(text: str) -> str:
    return literal(Secret(text))

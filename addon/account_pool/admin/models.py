"""What may be sent: shapes of bodies and queries. What is answered is in `openapi.py`.

Nothing that was sent is repeated in an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self, TypeVar

import msgspec
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from account_pool.admin.http import ApiError
from account_pool.core.credential import Secret
from account_pool.core.decisions import Kind
from account_pool.core.json_values import NOT_READ
from account_pool.core.request_rows import Status
from account_pool.credentials.sources import literal
from account_pool.credentials.vendor_logins import VENDORS
from account_pool.store.store import RequestQuery

#: How deep a body may be nested: what accounts.yaml takes is less.
MAX_DEPTH = 8

Text = Annotated[str, Field(min_length=1, max_length=256)]
#: As `normalise_label` takes one, which says what is wrong: white space is read as "-".
_STEERS = r"\u0000-\u0008\u000e-\u001b\u007f-\u0084\u0086-\u009f\u202a-\u202e\u2066-\u2069"
_LABEL = rf"^[^{_STEERS}]*[^\s{_STEERS}][^{_STEERS}]*$"
Label = Annotated[str, Field(min_length=1, max_length=256, json_schema_extra={"pattern": _LABEL})]
_KINDS = tuple(kind.value for kind in Kind)
STATUSES = tuple(status.value for status in Status)
#: The kinds of tokens, as rows name them.
TOKENS = ("input", "cached", "cache_write", "output", "reasoning")
#: What usage can be summed up by.
GROUPS = ("account", "provider", "model", "day", "hour", "tool")


def _instant(value: object) -> float:
    """Return seconds since the epoch. Raises ValueError."""
    try:
        at = datetime.fromisoformat(str(value))
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise ValueError(
            "write a day or an instant, such as 2026-08-01 or 2026-08-01T13:00:00Z (in a URL, + is "
            "%2B)"
        ) from None


Instant = Annotated[
    float,
    BeforeValidator(_instant),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]


class Shape(BaseModel):
    # What was sent stays out of every text pydantic makes: it may be a token.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        return ()


class Nothing(Shape):
    """An empty object."""


class LinkCode(Shape):
    """The code of a link to the dashboard."""

    code: Text = Field(description="What follows `#code=` in the link.")


class ProviderName(Shape):
    """One provider."""

    provider: Text = Field(description="A provider of the pool, such as openai.")


class AccountName(ProviderName):
    """One account."""

    label: Label = Field(description="The account's name, unique per provider.")


class Refresh(Shape):
    """Which accounts are meant; none named: all."""

    provider: Text | None = Field(None, description="Only those of this provider.")
    label: Label | None = Field(None, description="Only this one of that provider.")


class SessionKey(Shape):
    """One conversation."""

    key: Annotated[str, Field(min_length=1)] = Field(description="As reported by GET /sessions.")


class PinnedSession(AccountName):
    """One conversation, and the account that alone shall serve it."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": ["key"]}, {"required": ["session"]}]}
    )

    key: Annotated[str, Field(min_length=1)] = Field("", description="As GET /sessions reports it.")
    session: Text = Field(
        "", description="Instead of `key`: the client's own id; it need not have begun."
    )

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if bool(self.key) is bool(self.session):
            raise ValueError("send either key or session")
        return self


class _Query(BaseModel):
    # Queries are text: "10" is a number there.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class DecisionsQuery(_Query):
    """Which decisions are asked for."""

    limit: int = Field(100, ge=1, le=1000, description="Maximum number to return.")
    since: int = Field(0, ge=0, le=2**53, description="Only those with a number above this one.")
    account: Text | None = Field(None, description="Only those about provider/label.")
    kind: Literal[_KINDS] | None = Field(  # type: ignore[valid-type]
        None, description="Only those of this kind."
    )


class SessionsQuery(_Query):
    """How many sessions are asked for."""

    limit: int = Field(200, ge=1, le=10_000, description="Maximum number to return.")


class _SomeRequests(_Query):
    """Which requests are asked for."""

    from_: Instant | None = Field(
        None, alias="from", description="Only what began then or later: a day or an instant (UTC)."
    )
    to: Instant | None = Field(None, description="Only what began before.")
    account: Text | None = Field(None, description="Only of provider/label, or of a provider.")
    model: Text | None = Field(None, description="Only of this model.")
    tool: Text | None = Field(None, description="Only of this tool, as rows name it.")

    def which(self, **more: Any) -> RequestQuery:
        return RequestQuery(
            from_at=self.from_,
            to_at=self.to,
            account=self.account,
            model=self.model,
            tool=self.tool,
            **more,
        )


class _SomeRows(_SomeRequests):
    status: Literal[STATUSES] | None = Field(  # type: ignore[valid-type]
        None, description="Only those that ended so."
    )


class RequestsQuery(_SomeRows):
    """Which rows are asked for."""

    limit: int = Field(100, ge=1, le=1000, description="Maximum number to return.")
    since: int | None = Field(
        None, ge=0, le=2**53, description="Only those with a number above this one, the oldest."
    )
    before: int | None = Field(
        None, ge=0, le=2**53, description="Only those with a number below this one: the next page."
    )


class SeriesQuery(_SomeRows):
    """Which time is asked for, and in which steps."""

    step: int = Field(
        900,
        ge=1,
        le=31 * 86_400,
        description="Seconds of a bucket; more where that would be over 2,000 buckets.",
    )


class UsageQuery(_SomeRequests):
    """Which usage is asked for."""

    days: int = Field(
        30, ge=1, le=400, description="Number of days, today included (UTC), without from."
    )
    group: Literal[GROUPS] | None = Field(  # type: ignore[valid-type]
        None, description="What `groups` is summed up by."
    )


Model = TypeVar("Model", bound=BaseModel)


def read_body(shape: type[Model], body: bytes) -> Model:
    """Return *body* as *shape*. Raises ApiError."""
    try:
        value = msgspec.json.decode(body)
    except NOT_READ:
        raise ApiError(400, "not_json", "the body is not JSON") from None
    if not isinstance(value, dict):
        raise ApiError(422, "invalid", "the body is not a JSON object")
    if _is_deep(value):
        raise ApiError(422, "invalid", "the body is nested too deeply")
    return _checked(shape, value)


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
    return bool(level)


def read_query(shape: type[Model], pairs: list[tuple[str, str]]) -> Model:
    """Return the query *pairs* as *shape*. Raises ApiError."""
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ApiError(422, "invalid", "a query parameter appears twice")
    return _checked(shape, values)


def _checked(shape: type[Model], values: Mapping[str, Any]) -> Model:
    try:
        return shape.model_validate(values)
    except ValidationError as e:
        first = e.errors(include_url=False, include_context=False, include_input=False)[0]
        accepted = ", ".join(field.alias or name for name, field in shape.model_fields.items())
        unknown = first["type"] == "extra_forbidden"
        name = "" if unknown else "".join(f"{part}: " for part in first["loc"][:1])
        text = f"there is an unknown key; the keys are: {accepted or 'none'}"
        # What our own validators say comes with a prefix.
        said = text if unknown else f"{name}{first['msg'].removeprefix('Value error, ')}"
        raise ApiError(422, "invalid", said) from None


# -- an account to be added: with the credential itself, and no reference to one
#
# Whoever has the admin token may give the pool a credential. A variable, a file, a command or
# an address of the sender's choice would let them read what the proxy can read, and send it
# anywhere: those are for accounts.yaml, whose owner is on this machine.

#: The kinds of accounts.yaml that are refused here, by the code of the refusal.
_READ = {"command": "command", "env": "source", "file": "source", "keychain": "source"}
_SEND = "send the credential itself, or {oauth: {refresh_token: ...}}"
#: What `${NAME}` is read in, below `oauth`.
_EXPANDED = ("access_token", "refresh_token", "client_id", "client_secret")

Given = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class Tokens(Shape):
    """A login of a vendor with a built-in refresh."""

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

    model_config = ConfigDict(extra="allow")

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

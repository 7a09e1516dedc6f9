"""What may be sent and what is answered: shapes of bodies and queries, schemas of responses.

Nothing that was sent is repeated in an error.
"""

from __future__ import annotations

from collections.abc import Mapping
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
from account_pool.admin.metrics import STATES
from account_pool.core.credential import Secret
from account_pool.core.decisions import Kind
from account_pool.core.outcome import OutcomeClass
from account_pool.core.request_rows import Status
from account_pool.credentials.sources import literal
from account_pool.credentials.vendor_logins import VENDORS
from account_pool.store.store import RequestQuery

#: How deep a body may be nested: what accounts.yaml takes is less.
MAX_DEPTH = 8

Text = Annotated[str, Field(min_length=1, max_length=256)]
_KINDS = tuple(kind.value for kind in Kind)
_STATUSES = tuple(status.value for status in Status)
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

    label: Text = Field(description="The account's name, unique per provider.")


class Refresh(Shape):
    """Which accounts are meant; none named: all."""

    provider: Text | None = Field(None, description="Only those of this provider.")
    label: Text | None = Field(None, description="Only this one of that provider.")


class SessionKey(Shape):
    """One conversation."""

    key: Annotated[str, Field(min_length=1)] = Field(description="As reported by GET /sessions.")


class PinnedSession(AccountName):
    """One conversation, and the account that alone shall serve it."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        hide_input_in_errors=True,
        json_schema_extra={"oneOf": [{"required": ["key"]}, {"required": ["session"]}]},
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


class RequestsQuery(_SomeRequests):
    """Which rows are asked for."""

    status: Literal[_STATUSES] | None = Field(  # type: ignore[valid-type]
        None, description="Only those that ended so."
    )
    limit: int = Field(100, ge=1, le=1000, description="Maximum number to return.")
    since: int | None = Field(
        None, ge=0, le=2**53, description="Only those with a number above this one, the oldest."
    )
    before: int | None = Field(
        None, ge=0, le=2**53, description="Only those with a number below this one: the next page."
    )


class SeriesQuery(_SomeRequests):
    """Which time is asked for, and in which steps."""

    status: Literal[_STATUSES] | None = Field(  # type: ignore[valid-type]
        None, description="Only those that ended so."
    )
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
    except (msgspec.DecodeError, UnicodeError, RecursionError):
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


# -- what is answered, in JSON Schema 2020-12, for the description of the API

Schema = Mapping[str, Any]


def _of(kind: str, about: str = "", **more: Any) -> Schema:
    """Return the schema of a *kind*; *about* is its description."""
    return {"type": kind, **more, **({"description": about} if about else {})}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _object(**members: Schema) -> Schema:
    """Return the schema of an object that has these members, always, and no others."""
    return {
        "type": "object",
        "properties": members,
        "required": list(members),
        "additionalProperties": False,
    }


def _list(of: Schema) -> Schema:
    return _of("array", items=of)


def _by_name(of: Schema) -> Schema:
    return _of("object", additionalProperties=of)


def _about(schema: Schema, about: str) -> Schema:
    return {**schema, "description": about}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


_TEXT, _BOOL = _of("string"), _of("boolean")
_COUNT, _SECONDS = _of("integer", minimum=0), _of("number", minimum=0)
_INSTANT = _of("string", "UTC", format="date-time")
_DAY = _of("string", format="date")
_KEY = _of("string", "provider/label")
_ACCOUNTS_FILE = _or_null(_of("string", "path of the file the accounts are of; null: none"))
_AMOUNTS: Mapping[str, Schema] = {
    "requests": _COUNT,
    "input_tokens": _about(_COUNT, "cached ones included"),
    "cached_tokens": _COUNT,
    "output_tokens": _about(_COUNT, "reasoning included"),
    "reasoning_tokens": _COUNT,
    "cache_write_tokens": _about(_COUNT, "part of the input, where the provider tells"),
}
_NUMBER = _of("number")
_COSTS: Mapping[str, Schema] = {
    "cost_usd": _about(_or_null(_NUMBER), "null: no price is known, as for the other two"),
    "saved_usd": _about(_or_null(_NUMBER), "what subscriptions served, at list prices"),
    "premium_requests": _about(_or_null(_NUMBER), "of Copilot's allowance"),
    "unpriced_requests": _about(_COUNT, "of which no price is known"),
}
_MIDDLE = _or_null(_object(p50=_SECONDS, p95=_SECONDS))
_CAUSE: Mapping[str, Schema] = {
    "class": {"enum": [cls.value for cls in OutcomeClass]},
    "signal": _of("string", "the evidence in a few words"),
    "evidence": _about(_by_name(_TEXT), "the header values that show it"),
}

#: By name, in the order of the endpoints.
SCHEMAS: Mapping[str, Schema] = {
    "Error": _object(
        error=_object(code=_of("string", "for programs"), message=_of("string", "for people"))),
    "Summary": _object(
        total=_COUNT, available=_COUNT, cooling_down=_COUNT, disabled=_COUNT, in_flight=_COUNT),
    "Cooldown": _object(
        model=_or_null(_of("string", "a model or a glob; null: all")), **_CAUSE,
        since_at=_or_null(_INSTANT), until_at=_or_null(_INSTANT), remaining_s=_SECONDS,
        streak=_COUNT),
    "AskedLast": _object(
        model=_or_null(_of("string", "a model; null: all")), **_CAUSE,
        since_at=_or_null(_INSTANT), until_at=_or_null(_INSTANT), remaining_s=_SECONDS),
    "Headroom": _object(
        window=_of("string", "5h, 7d, tokens ..."), model=_or_null(_TEXT),
        remaining=_of("number", minimum=0, maximum=1),
        resets_at=_or_null(_INSTANT), resets_s=_or_null(_SECONDS)),
    "Account": _object(
        key=_KEY, provider=_TEXT, label=_TEXT,
        state={"enum": list(STATES)}, reason=_of("string", "empty while available"),
        in_flight=_COUNT, oldest_s=_or_null(_SECONDS),
        departures=_about(_COUNT, "clients that left before the first byte"),
        broken=_about(_COUNT, "connections that broke before the first byte"),
        served=_COUNT, sessions=_COUNT,
        priority=_of("integer"), weight=_of("integer", minimum=1),
        models=_list(_TEXT), reserve=_by_name(_of("number")),
        max_concurrent=_or_null(_of("integer", minimum=1)), min_interval_s=_SECONDS,
        placeholder=_of("string", "what flows show instead of the credential"),
        cooldowns=_list(_ref("Cooldown")),
        asked_last=_about(_list(_ref("AskedLast")),
            "refusals that may be its own fault: others are asked before it"),
        disabled=_or_null(_object(**_CAUSE, since_at=_or_null(_INSTANT))),
        problem=_or_null(_of("string", "what is wrong with its credential")),
        headroom=_list(_ref("Headroom")),
        tightest=_about(_or_null(_ref("Headroom")),
            "the window with the least left; null: none is known"),
        look_up=_about(_or_null(_ref("LookUp")),
            "what came of asking its provider what is left; null: it was not asked"),
        usage=_about(_object(**_AMOUNTS), "today, UTC")),
    "Pool": _object(
        accounts_file=_ACCOUNTS_FILE, accounts=_list(_ref("Account")), summary=_ref("Summary"),
        providers=_by_name(_ref("Summary")),
        warnings=_about(_list(_TEXT),
            "what looks wrong with accounts.yaml, a credential or the clock, and stops nothing")),
    "OneProvider": _object(
        provider=_TEXT, accounts=_list(_ref("Account")), summary=_ref("Summary")),
    "LookUp": _object(
        age_s=_or_null(_about(_SECONDS, "since the last answer; null: there was none")),
        problem=_or_null(_of("string", "why there was none the last time")),
        reset_credits=_or_null(_about(_COUNT, "resets that its owner may still use (Codex)"))),
    "Refreshed": _object(
        accounts=_list(_object(
            key=_KEY, headroom=_list(_ref("Headroom")), tightest=_or_null(_ref("Headroom")),
            look_up=_or_null(_ref("LookUp"))))),
    "OneAccount": _object(account=_ref("Account")),
    "Added": _object(
        account=_ref("Account"),
        written_to=_of("string", "the name of accounts.yaml, or `store`")),
    "Removed": _object(
        removed=_KEY,
        written_to=_or_null(_of("string",
            "where it was removed; null: nowhere, so it comes back when the proxy restarts or "
            "reloads its accounts"))),
    "Next": _object(next=_or_null(_KEY)),
    "Cleared": _object(cleared=_list(_ref("Cooldown")), account=_ref("Account")),
    "Revealed": _object(key=_KEY, credentials=_by_name(_TEXT)),
    "Link": _object(
        url=_of("string", "opens the dashboard, logged in"), expires_in_s=_SECONDS),
    "Token": _object(token=_of("string", "the admin token")),
    "Decision": _object(
        number=_COUNT, kind=_TEXT, at=_INSTANT, by=_TEXT, provider=_TEXT,
        account=_or_null(_KEY), to=_or_null(_KEY), model=_or_null(_TEXT), scope=_or_null(_TEXT),
        signal=_or_null(_TEXT), unknown=_or_null(_BOOL), evidence=_by_name(_TEXT),
        reset_named=_or_null(_BOOL), reason=_or_null(_TEXT), effect=_or_null(_TEXT),
        covers=_or_null(_TEXT), until=_or_null(_INSTANT), told_s=_or_null(_SECONDS),
        session=_or_null(_of("string", "a hash")), ends=_or_null(_COUNT),
        ended_at=_or_null(_INSTANT), released_by=_or_null(_TEXT), waited_s=_or_null(_SECONDS),
        times=_COUNT, text=_of("string", "one line for people"), **{"class": _or_null(_TEXT)}),
    "Decisions": _object(
        decisions=_list(_ref("Decision")),
        next=_about(_COUNT, "pass it as ?since= in the next request")),
    "HeadroomDay": _object(
        every_s=_SECONDS,
        samples=_about(
            _list(_object(
                at=_INSTANT,
                left=_by_name(_of("number",
                    "by provider: the share its best account had left; 0: none could serve")))),
            "oldest first")),
    "Providers": _object(
        providers=_list(_object(
            name=_TEXT, hosts=_list(_TEXT),
            env=_about(_list(_TEXT), "variables that usually hold a credential"),
            companions=_about(_list(_TEXT), "keys of accounts.yaml beside the token"),
            login=_of("boolean", "POST /account-pool/add takes a login of it")))),
    "Session": _object(
        key=_TEXT, account=_KEY, used_at=_INSTANT, idle_s=_SECONDS,
        pinned=_of("boolean", "this account alone serves it"),
        session=_or_null(_of("string", "a hash, as in requests and decisions")),
        turns=_about(_COUNT, "requests in flight")),
    "Sessions": _object(
        sessions=_list(_ref("Session")), total=_about(_COUNT, "how many are known")),
    "Pinned": _object(key=_about(_TEXT, "as GET /sessions reports it"), account=_KEY),
    "Closed": _object(closed=_TEXT),
    "Usage": _object(
        days=_list(_object(day=_DAY, account=_KEY, model=_TEXT, **_AMOUNTS, **_COSTS)),
        group=_or_null(_about({"enum": list(GROUPS)}, "as asked")),
        groups=_about(
            _list(_of("object", "", required=[*_AMOUNTS, *_COSTS],
                properties={**_AMOUNTS, **_COSTS},
                additionalProperties=_TEXT)),
            "with `group`: the sums by it, under its name; days and hours newest first, all else "
            "by tokens"),
        unpriced=_about(
            _list(_object(provider=_TEXT, model=_TEXT, requests=_COUNT)),
            "models of which no price is known: `cost_usd` is without them"),
        subscriptions=_list(_object(
            account=_KEY, saved_usd=_about(_NUMBER, "at list prices"),
            monthly_usd=_or_null(_about(_NUMBER, "as written in accounts.yaml; null: it is not")),
            flat_usd=_or_null(_about(_NUMBER, "of that for the time that was asked for")))),
        windows=_list(_object(
            day=_DAY, account=_KEY, window=_TEXT, resets=_COUNT,
            left=_of("number",
                "share that was left when the window was reset, 0 to 1: the mean of the day")))),
    "Request": _object(
        number=_about(_COUNT, "ascending in the order in which requests ended"),
        at=_about(_INSTANT, "when it was complete"), provider=_TEXT,
        account=_or_null(_about(_KEY, "who served it, or refused it last; null: none was asked")),
        model=_or_null(_TEXT), endpoint=_of("string", "its path without ids"),
        tool=_of("string", "by User-Agent, or the name given to proxyauth"),
        session=_or_null(_of("string", "a hash, as of decisions")),
        status={"enum": list(_STATUSES)},
        http_status=_or_null(_of("integer",
            "of the response; 101: the handshake of a WebSocket, whose turns have null")),
        attempts=_COUNT, failovers=_COUNT, wait_s=_SECONDS,
        first_byte_s=_or_null(_about(_SECONDS, "null: there was no good answer")),
        duration_s=_SECONDS,
        tokens=_object(**{name: _or_null(_COUNT) for name in TOKENS}),
        cost_usd=_or_null(_of("number", "null: no price is known")),
        price=_or_null(_of("string",
            "where it is from: accounts.yaml, or the list; empty: none is known; null: not yet")),
        saved=_about(_BOOL, "a subscription has paid: `cost_usd` was saved"),
        premium_requests=_or_null(_of("number", "of Copilot's allowance"))),
    "Requests": _object(
        requests=_about(_list(_ref("Request")), "newest first"),
        next=_about(_COUNT, "pass it as ?since= in the next request"),
        older=_or_null(_of("integer", "pass it as ?before= for the next page; null: no more")),
        kept_days=_about(_COUNT, "pool_requests_kept"),
        problem=_or_null(_of("string", "why the state database cannot be asked"))),
    "Series": _object(
        **{"from": _INSTANT}, to=_INSTANT, step_s=_COUNT,
        buckets=_list(_object(
            at=_INSTANT, requests=_COUNT, ok=_COUNT, refused=_COUNT, aborted=_COUNT,
            failovers=_COUNT, waited=_about(_COUNT, "requests that were held"), wait_s=_SECONDS,
            tokens=_object(**dict.fromkeys(TOKENS, _COUNT)), cost_usd=_of("number"),
            saved_usd=_of("number"),
            unpriced_requests=_about(_COUNT, "answers of which no price is known (yet)"),
            duration_s=_about(_MIDDLE, "of good answers, null: there was none"),
            first_byte_s=_MIDDLE)),
        problem=_or_null(_of("string", "why the state database cannot be asked"))),
    "Health": _object(
        status={"const": "ok"}, version=_TEXT, uptime_s=_SECONDS,
        size=_about(_COUNT, "accounts"), busy=_about(_COUNT, "accounts with a request in flight"),
        pid=_COUNT, instance=_of("string", "of this run of the proxy"), ready=_BOOL,
        stopping=_about(_BOOL, "it was asked to end, and finishes what is in flight"),
        failed_tasks=_about(
            _list(_object(
                name=_TEXT, failures=_COUNT, error=_of("string", "the type of the last error"),
                running=_of("boolean", "it was begun again"))),
            "background tasks that have failed since the start"),
        state_problem=_or_null(_of("string", "why the state is kept in memory only")),
        notify=_about(
            _list(_object(
                target=_of("string", "its scheme and host, or its program"),
                problem=_or_null(_of("string", "why the last notification did not arrive")))),
            "where notifications go"),
        accounts_file=_ACCOUNTS_FILE,
        workers=_about(
            _list(_object(number=_COUNT, pid=_COUNT, uptime_s=_SECONDS, busy=_COUNT)),
            "the processes that serve, where there are several; `pid` is that of their launcher")),
}  # fmt: skip

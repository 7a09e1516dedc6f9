"""What may be sent: the shapes of bodies and queries. Nothing that was sent is repeated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from account_pool.admin.errors import ApiError
from account_pool.core.decisions import Kind

#: How deep a body may be nested: what accounts.yaml takes is less.
MAX_DEPTH = 8

Text = Annotated[str, Field(min_length=1, max_length=256)]
_KINDS = tuple(kind.value for kind in Kind)


class Shape(BaseModel):
    # What was sent stays out of every text pydantic makes: it may be a token.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)


class ProviderName(Shape):
    """One provider."""

    provider: Text = Field(description="A provider of the pool, such as openai.")


class AccountName(ProviderName):
    """One account."""

    label: Text = Field(description="The account's name, unique per provider.")


class SessionKey(Shape):
    """One conversation."""

    key: Annotated[str, Field(min_length=1)] = Field(description="As reported by GET /sessions.")


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


class UsageQuery(_Query):
    """How many days are asked for."""

    days: int = Field(30, ge=1, le=400, description="Number of days, today included (UTC).")


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
        accepted = ", ".join(shape.model_fields)
        unknown = first["type"] == "extra_forbidden"
        name = "" if unknown else "".join(f"{part}: " for part in first["loc"][:1])
        text = f"there is an unknown key; the keys are: {accepted or 'none'}"
        raise ApiError(422, "invalid", text if unknown else f"{name}{first['msg']}") from None

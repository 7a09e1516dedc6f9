"""The usual shape of an account and of a provider, checked without pydantic.

To import pydantic and to make its models costs a start 80 ms and 9 MB. So what msgspec finds
right is right, and whatever it does not take is asked of `models.py`, which knows all keys and
has words for what is wrong. `tests/config/test_shapes.py` holds the two together.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from account_pool.config.document import Document, Loc

_Text = Annotated[str, msgspec.Meta(min_length=1)]
_Positive = Annotated[int, msgspec.Meta(ge=1)]
_Seconds = Annotated[float, msgspec.Meta(ge=0.0, le=sys.float_info.max)]

#: The keys of a `token:` mapping.
TOKEN_KEYS = ("env", "file", "pointer", "command", "keychain", "oauth")
#: Keys of an account that travel with its credential: `Account.companions`.
COMPANIONS = ("account_id", "project", "organization", "openai_project", "host", "deployments")


class AccountShape(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """One account; `models.AccountShape` says what each key is."""

    provider: _Text
    label: _Text
    token: Any
    account_type: Literal["individual", "business", "enterprise"] | None = None
    priority: int = 0
    weight: _Positive = 1
    models: list[_Text] = []
    max_concurrent: _Positive | None = None
    min_interval: _Seconds = 0.0
    enabled: bool = True
    reserve: dict[str, Any] = {}
    account_id: _Text | None = None
    project: _Text | None = None
    organization: _Text | None = None
    openai_project: _Text | None = None
    host: _Text | None = None
    deployments: dict[str, _Text] | None = None


class ProviderShape(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """What most providers hold; the rest is in `models.ProviderShape`."""

    like: _Text | None = None
    hosts: list[_Text] = []
    token_url: _Text | None = None
    paths: list[_Text] = []
    drop: list[_Text] = []
    companions: dict[str, _Text] = {}


def read_account(document: Document, loc: Loc, value: Mapping[str, Any]) -> AccountShape | None:
    """Return the account *value* describes; None if its shape is wrong, which is noted then."""
    try:
        return msgspec.convert(value, AccountShape)
    except msgspec.ValidationError:
        from account_pool.config import models  # noqa: PLC0415 - pydantic, as said above

        made = models.check_shape(document, loc, models.AccountShape, value)
        return None if made is None else AccountShape(**made.model_dump())


def check_provider(document: Document, loc: Loc, value: Any) -> None:
    """Note everything wrong with the shape of *value*."""
    try:
        msgspec.convert(value, ProviderShape)
    except msgspec.ValidationError:
        from account_pool.config import models  # noqa: PLC0415 - as above

        models.check_shape(document, loc, models.ProviderShape, value)


def check_part(document: Document, loc: Loc, kind: str, value: Any) -> bool:
    """Note everything wrong with a part of a definition; return whether it is right."""
    from account_pool.config import models  # noqa: PLC0415 - as above

    return models.check_shape(document, loc, models.PARTS[kind], value) is not None

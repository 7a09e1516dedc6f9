"""The shape of accounts.yaml: its keys, what they take, and what is said of any other value.

Only shape: what a value refers to (a provider, a variable, a file) is checked in `loader.py` and
`providers.py`. msgspec says whether a value fits; it names the first mistake only and may quote it,
so of one that does not fit all mistakes are found here. The descriptions are what an editor shows.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, inspect

from account_pool.config.document import Document, Loc
from account_pool.config.options import POOL_OPTIONS, PoolOption
from account_pool.config.problems import MISSING, REMEDIES, UNKNOWN_KEY
from account_pool.core.wrong import Wrong, shown, unknown
from account_pool.providers.definition import CLASSES, SPELLINGS
from account_pool.store.pool_state import REFERENCES

#: The keys of a `token:` mapping.
TOKEN_KEYS = ("env", "file", "pointer", "command", "keychain", "oauth")
#: Keys of an account that travel with its credential: `Account.companions`.
COMPANIONS = ("account_id", "project", "organization", "openai_project", "host", "deployments")

_TYPES, _SCOPES = (
    ("individual", "business", "enterprise"),
    ("account", "account+model", "server", "none"),
)
_CLASSES, _SPELLINGS = tuple(str(cls) for cls in CLASSES), tuple(SPELLINGS)
_REMEDIES = {**REMEDIES, "class": "write one of " + ", ".join(_CLASSES)}
_TEXT_REMEDY = "write text, in quotes"
_SECTION_REMEDY = "write `hosts: [...]` below it"

Schema = dict[str, Any]
Shape = TypeVar("Shape", bound=msgspec.Struct)


def _object(required: str = "", /, **members: Schema) -> Schema:
    """Return the schema of a mapping with these keys and no others."""
    schema: Schema = {"type": "object", "properties": members, "additionalProperties": False}
    return {**schema, "required": [required]} if required else schema


def _text(description: str = "", **more: Any) -> Schema:
    return {"type": "string", **({"description": description} if description else {}), **more}


_OAUTH_SCHEMA = {
    **_object(
        "refresh_token",
        access_token=_text(),
        refresh_token=_text(),
        expires_at={
            "type": ["string", "number"],
            "description": "RFC 3339, or seconds since the epoch",
        },
        refresh_expires_at={
            "type": ["string", "number"],
            "description": "When the login ends however often it is refreshed",
        },
        token_url=_text("https; built in for codex, claude-code"),
        client_id=_text(),
        client_secret=_text(),
        scope=_text(),
        style={"enum": ["json", "form"], "description": "how the refresh is written"},
    ),
    "description": "A login that is refreshed: the tokens, and where new ones come from.",
}
_TOKEN_SCHEMA = {
    "description": "Where the credential comes from. A string may hold ${ENV}; $$ is a dollar "
    "sign.",
    "oneOf": [
        _text(minLength=1),
        _object("env", env=_text("an environment variable")),
        _object(
            "file",
            file=_text("a file only its owner may read"),
            pointer=_text("RFC 6901: where the token is in the JSON of the file", pattern="^/"),
        ),
        _object(
            "keychain",
            keychain=_text("an item of the system's keychain"),
            pointer=_text("RFC 6901: where in the JSON of the item", pattern="^/"),
        ),
        _object("command", command=_text("prints the token; no shell")),
        _object("oauth", oauth=_OAUTH_SCHEMA),
    ],
}
_TARGET_SCHEMA: Schema = {
    "oneOf": [
        _text("https://..., ntfy:TOPIC, desktop, or a command; no shell"),
        _object("env", env=_text("an environment variable that holds one of these")),
    ]
}
_TARGETS_SCHEMA: Schema = {
    "oneOf": [*_TARGET_SCHEMA["oneOf"], {"type": "array", "items": _TARGET_SCHEMA}]
}
_USD: Schema = {"type": "number", "minimum": 0}
_PRICE_SCHEMA: Schema = _object(
    account=_text("provider/label; or name a provider"),
    provider=_text("such as openai"),
    model=_text("a name or a glob; all if there is none"),
    input={**_USD, "description": "USD for a million tokens"},
    output=_USD,
    cached={**_USD, "description": "read from the prompt cache; as input if there is none"},
    cache_write=_USD,
    monthly={**_USD, "description": "what the subscription costs a month"},
    premium={**_USD, "description": "Copilot's premium requests for a prompt"},
)
_REFERENCE_SCHEMA: Schema = {
    "oneOf": [
        _object("env", env=_text("an environment variable")),
        _object("file", file=_text("a file only its owner may read")),
        _object("command", command=_text("prints the secret; no shell")),
    ]
}
_STATE_SCHEMA: Schema = {
    "oneOf": [
        _text("path of a database, memory: for none, or the URL of Redis or Valkey"),
        _object("url", url=_text(), **dict.fromkeys(REFERENCES, _REFERENCE_SCHEMA)),
    ]
}
#: Options that a file may write as lists and mappings.
_WRITTEN: Mapping[str, Schema] = {
    "state": _STATE_SCHEMA,
    "notify": _TARGETS_SCHEMA,
    "prices": {"type": "array", "items": _PRICE_SCHEMA},
}
_RESERVE_SCHEMA: Schema = {
    "type": "object",
    "additionalProperties": _text(pattern=r"^[0-9]{1,2}(\.[0-9]+)?\s*%$"),
}


_Text = Annotated[str, Meta(min_length=1)]
_Positive = Annotated[int, Meta(ge=1)]
_Seconds = Annotated[float, Meta(ge=0.0, le=sys.float_info.max)]
_Status = Annotated[int, Meta(ge=100, le=599)]
# msgspec sorts choices; people read them in this order.
_Type = Annotated[Literal[_TYPES], Meta(extra_json_schema={"enum": list(_TYPES)})]  # type: ignore[valid-type]
_Scope = Annotated[Literal[_SCOPES], Meta(extra_json_schema={"enum": list(_SCOPES)})]  # type: ignore[valid-type]
_Class = Annotated[Literal[_CLASSES], Meta(extra_json_schema={"enum": list(_CLASSES)})]  # type: ignore[valid-type]
_Spelling = Annotated[Literal[_SPELLINGS], Meta(extra_json_schema={"enum": list(_SPELLINGS)})]  # type: ignore[valid-type]


def _says(description: str, schema: Schema | None = None) -> Meta:
    return Meta(description=description, extra_json_schema=schema)


class _Shape(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A mapping of the file."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(...)"  # a value may be a credential


class AccountShape(_Shape, frozen=True, kw_only=True):
    """One account."""

    provider: Annotated[_Text, _says("A built-in provider, or one defined under providers.")]
    label: Annotated[_Text, _says("The account's name, unique per provider.")]
    token: Annotated[Any, Meta(extra_json_schema=_TOKEN_SCHEMA)]
    account_type: Annotated[
        _Type | None, _says("The plan of a Copilot account; default: individual.")
    ] = None
    priority: Annotated[int, _says("Lower is preferred.")] = 0
    weight: Annotated[_Positive, _says("Share of the traffic within its priority.")] = 1
    models: Annotated[
        list[_Text], _says("Globs of models it may serve; !glob excludes. Default: all.")
    ] = []
    max_concurrent: Annotated[
        _Positive | None, _says("Maximum number of requests at once; default: no limit.")
    ] = None
    min_interval: Annotated[_Seconds, _says("Seconds between the starts of requests.")] = 0.0
    enabled: Annotated[bool, _says("false keeps it in the file but out of use.")] = True
    reserve: Annotated[
        dict[str, Any],
        _says("Share of each window that is left to the owner, such as 5h: 15%.", _RESERVE_SCHEMA),
    ] = {}
    account_id: Annotated[_Text | None, _says("Account of a Codex or Claude login.")] = None
    project: Annotated[_Text | None, _says("Project of a Gemini CLI account.")] = None
    organization: Annotated[_Text | None, _says("Organization, as the vendor names it.")] = None
    openai_project: Annotated[_Text | None, _says("OpenAI project.")] = None
    host: Annotated[_Text | None, _says("The one host this account's requests go to.")] = None
    deployments: Annotated[dict[str, _Text] | None, _says("Azure: model to deployment.")] = None


class PlaceShape(_Shape, frozen=True, kw_only=True):
    """Where the credential goes: one of header and query."""

    header: Annotated[_Text | None, _says("The header that carries it.")] = None
    prefix: Annotated[
        str | None, _says('Text before it; default for authorization: "Bearer ".')
    ] = None
    query: Annotated[_Text | None, _says("The query parameter that carries it.")] = None


class CredentialShape(PlaceShape, frozen=True, kw_only=True):
    """The same, and where it goes on some paths."""

    by_path: Annotated[
        dict[str, PlaceShape],
        _says("Part of a path: where the credential goes on such paths instead."),
    ] = {}


# Where one of these may be a text as well, `definition_reader` says which of both it is.


class OwnerShape(_Shape, frozen=True, kw_only=True):
    """Where an answer names whose limits it is about: one of them."""

    header: Annotated[_Text | None, _says("A header.")] = None
    pointer: Annotated[_Text | None, _says("RFC 6901: a value of the JSON body or event.")] = None
    message: Annotated[_Text | None, _says("Pattern with one group for the sentence.")] = None


class ResetShape(_Shape, frozen=True, kw_only=True, rename={"spelling": "as"}):
    """Where a reset is named: one of header and pointer."""

    header: _Text | None = None
    pointer: _Text | None = None
    spelling: _Spelling = "auto"


_SCALAR: Schema = {"type": ["string", "number", "boolean"]}
_ONE_OR_MORE: Schema = {
    "anyOf": [_SCALAR, {"type": "array", "items": _SCALAR, "minItems": 1}, {"type": "null"}]
}


class LimitShape(_Shape, frozen=True, kw_only=True, rename={"cls": "class"}):
    """What an answer means. Every condition that is given must hold."""

    cls: Annotated[_Class, _says("What it means.")]
    scope: Annotated[
        _Scope | None, _says("How far it reaches; default: what is usual for the class.")
    ] = None
    status: Annotated[
        list[_Status], _says("HTTP statuses; 200: an error inside a successful answer.")
    ] = []
    header: Annotated[dict[str, _Text], _says("Header and the pattern it must match.")] = {}
    codes: Annotated[
        Any, _says("A code of the error, wherever it stands, or a list of such.", _ONE_OR_MORE)
    ] = None
    pointer: Annotated[_Text | None, _says("RFC 6901: a value of the JSON body or event.")] = None
    equals: Annotated[
        Any, _says("The value required at pointer, or a list of accepted values.", _ONE_OR_MORE)
    ] = None
    regex: Annotated[_Text | None, _says("Pattern for the value at pointer.")] = None
    message: Annotated[_Text | None, _says("Pattern for the error message.")] = None
    reset: Annotated[
        Any,
        _says(
            "Where the reset is named; default: the usual places.",
            {"anyOf": [{"enum": ["message", "none", None]}, {"$ref": "#/$defs/ResetShape"}]},
        ),
    ] = None
    model: Annotated[_Text | None, _says("RFC 6901: the model the answer names.")] = None
    missing_model: Annotated[
        bool, _says("With class request_error: another account may have the model.")
    ] = False
    shared: Annotated[
        bool | None, _says("Whether the limit is that of the owner, and of all its accounts.")
    ] = None
    why: Annotated[_Text | None, _says("What the log says of it; default the line.")] = None


class ProviderShape(_Shape, frozen=True, kw_only=True):
    """More hosts for a built-in provider, or a provider of the user's own."""

    like: Annotated[
        _Text | None, _says("The built-in provider whose API it speaks; default: openai.")
    ] = None
    hosts: Annotated[list[_Text], _says("host, host:port or *.domain.")] = []
    token_url: Annotated[_Text | None, _says("Copilot: address of the token exchange.")] = None
    paths: Annotated[
        list[_Text],
        _says('Requests that are pooled, such as "/v1/chat/*" or "GET /v1/models*".'),
    ] = []
    credential: Annotated[CredentialShape | None, _says("Where the credential goes.")] = None
    drop: Annotated[list[_Text], _says("More headers of the client's own account.")] = []
    companions: Annotated[
        dict[str, _Text], _says("Account key to the header that carries it.")
    ] = {}
    owner: Annotated[
        Any,
        _says(
            "Header that names whose limits an answer is about, or where else it does.",
            {"anyOf": [{"type": ["string", "null"]}, {"$ref": "#/$defs/OwnerShape"}]},
        ),
    ] = None
    time_zone: Annotated[
        _Text | None, _says("That of dates which name none, such as Asia/Shanghai; default UTC.")
    ] = None
    limits: Annotated[
        list[LimitShape], _says("Rules that come before those of `like`, in order.")
    ] = []


#: What a definition has besides, by the name `definition_reader` has for it.
PARTS: Mapping[str, type[_Shape]] = {"owner": OwnerShape, "reset": ResetShape}


# -- what is said of a value


def read_shape(document: Document, loc: Loc, shape: type[Shape], value: Any) -> Shape | None:
    """Return *value* as *shape*; None if it is none: everything wrong with it is noted then."""
    try:
        return msgspec.convert(value, shape)
    except msgspec.ValidationError:
        found = list(_wrong(inspect.type_info(shape), value, loc))
    for at, wrong in found or [
        (loc, Wrong("is not accepted", "compare it with accounts.example.yaml"))
    ]:
        document.problem(at, wrong.wrong, wrong.remedy)
    return None


def _wrong(kind: inspect.Type, value: Any, at: Loc) -> Iterator[tuple[Loc, Wrong]]:
    """Yield where *value*, at *at*, is not of this *kind*, and what is wrong there."""
    key = next((str(step) for step in reversed(at) if isinstance(step, str)), "")
    remedy = _REMEDIES.get(key, _TEXT_REMEDY)
    said: str | Wrong | None = None
    match kind:
        case inspect.AnyType():
            return
        case inspect.UnionType(types=kinds) if value is None and inspect.NoneType() in kinds:
            return
        case inspect.UnionType(types=kinds):
            yield from _wrong(next(k for k in kinds if k != inspect.NoneType()), value, at)
        case inspect.Metadata(inspect.LiteralType(), {"enum": choices}) if isinstance(value, str):
            if value not in choices:
                said = Wrong(f"{shown(value)} is not accepted", unknown(value, choices))
        case inspect.Metadata(inner):
            yield from _wrong(inner, value, at)
        case inspect.StructType() if isinstance(value, dict):
            yield from _wrong_keys(kind, value, at)
        case inspect.StructType():
            said, remedy = "is not a mapping", _SECTION_REMEDY
        case inspect.DictType(value_type=inner) if isinstance(value, dict):
            for name, one in value.items():
                yield from _wrong(inner, one, (*at, name))
        case inspect.DictType():
            said = "is not a mapping"
        case inspect.ListType(item_type=inner) if isinstance(value, list):
            for i, one in enumerate(value):
                yield from _wrong(inner, one, (*at, i))
        case inspect.ListType():
            said = "is not a list"
        case inspect.BoolType():
            said = None if isinstance(value, bool) else "is not true or false"
        case inspect.StrType(min_length=least):
            said = _wrong_text(value, least)
        case inspect.IntType() | inspect.FloatType():
            said = _wrong_number(kind, value)
        case _:
            said = "is not accepted"
    if value is None and said is not None:
        said = "has no value"
    elif isinstance(said, str) and said.startswith("is not"):
        said = f"{shown(value)} {said}"
    if said is not None:
        yield at, said if isinstance(said, Wrong) else Wrong(said, remedy)


def _wrong_keys(
    kind: inspect.StructType, value: dict[str, Any], at: Loc
) -> Iterator[tuple[Loc, Wrong]]:
    known = [field.encode_name for field in kind.fields]
    for field in kind.fields:
        name = field.encode_name
        if name in value:
            yield from _wrong(field.type, value[name], (*at, name))
        elif field.required:
            yield (*at, name), Wrong(MISSING, _REMEDIES.get(name, _TEXT_REMEDY))
    for name in value:
        if name not in known:
            yield (*at, name), Wrong(UNKNOWN_KEY, unknown(name, known))


def _wrong_text(value: Any, least: int | None) -> str | Wrong | None:
    if isinstance(value, str):
        return "is empty" if least and not value else None
    if isinstance(value, int | float):
        # 007 and 1e3 would change on their way to text: only the owner knows what was meant.
        return Wrong(f"{shown(value)} is not text", "put it in quotes")
    return "is not text"


def _wrong_number(kind: inspect.IntType | inspect.FloatType, value: Any) -> str | None:
    is_whole = isinstance(kind, inspect.IntType)
    if isinstance(value, bool) or not isinstance(value, int if is_whole else int | float):
        return "is not a whole number" if is_whole else "is not a number"
    if not is_whole and not (math.isfinite(value) and abs(value) <= sys.float_info.max):
        return "is not a finite number"
    if kind.ge is not None and value < kind.ge:
        return f"{shown(value)} is less than {kind.ge:g}"
    if kind.le is not None and value > kind.le:
        return f"{shown(value)} is more than {kind.le:g}"
    return None


# -- for editors


def json_schema() -> Schema:
    """Return the JSON schema of accounts.yaml, for editors that complete and check it."""
    shapes = (AccountShape, ProviderShape, *PARTS.values())
    _, parts = msgspec.json.schema_components(shapes, ref_template="#/$defs/{name}")
    parts["OwnerShape"] |= {"minProperties": 1, "maxProperties": 1}
    parts["PoolShape"] = _object(
        **{o.name: _option_schema(o) for o in POOL_OPTIONS if not o.not_in_file}
    )
    accounts = {"type": "array", "items": {"$ref": "#/$defs/AccountShape"}}
    providers = {"type": "object", "additionalProperties": {"$ref": "#/$defs/ProviderShape"}}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Accounts",
        **_object(
            "accounts",
            accounts={"description": "The accounts of the pool.", **accounts},
            providers={"description": "More hosts or providers.", "default": {}, **providers},
            pool={
                "description": "Options, without their prefix pool_.",
                "default": {},
                "$ref": "#/$defs/PoolShape",
            },
        ),
        "$defs": parts,
    }


_JSON_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean"}


def _option_schema(option: PoolOption) -> Schema:
    schema: Schema = {"type": _JSON_TYPES[option.type]}
    if option.type in (int, float):
        schema["minimum"] = option.minimum
    if option.choices:
        schema["enum"] = list(option.choices)
    more = [{"type": "array", "items": {"type": "string"}}] if option.reader else []
    more += [{"type": "boolean"}] if option.is_switch else []
    if option.writer:
        schema = _WRITTEN[option.name]
    elif more:
        schema = {"anyOf": [schema, *more]}
    return {**schema, "description": option.help, "default": option.default}

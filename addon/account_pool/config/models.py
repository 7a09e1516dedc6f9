"""The shape of accounts.yaml: its keys, what they take, and what is said of any other value.

Only shape: what a value refers to (a provider, a variable, a file) is checked in
`accounts.py` and `providers.py`. The descriptions are what an editor shows. Most files are
right: `shapes.py` sees that of them in no time, and this is imported for what it does not take.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema, create_model

from account_pool.config.document import Document, Loc
from account_pool.config.options import POOL_OPTIONS
from account_pool.config.problems import MISSING, REMEDIES, UNKNOWN_KEY, Wrong, shown, unknown
from account_pool.providers.definition import CLASSES, SPELLINGS

Text = Annotated[str, Field(min_length=1)]

_CLASSES = tuple(str(cls) for cls in CLASSES)
_REMEDIES = {**REMEDIES, "class": "write one of " + ", ".join(_CLASSES)}

Schema = dict[str, Any]
Model = TypeVar("Model", bound=BaseModel)


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
#: Options that a file may write as lists and mappings.
_WRITTEN: Mapping[str, Schema] = {
    "notify": _TARGETS_SCHEMA,
    "prices": {"type": "array", "items": _PRICE_SCHEMA},
}
_RESERVE_SCHEMA: Schema = {
    "type": "object",
    "additionalProperties": _text(pattern=r"^[0-9]{1,2}(\.[0-9]+)?\s*%$"),
}
_POINTER_SCHEMA = _text("RFC 6901", pattern="^/")
_RESET_SCHEMA: Schema = {
    "description": "Where the reset is named; default: the usual places.",
    "oneOf": [
        {"enum": ["message", "none"]},
        _object(header=_text(), pointer=_POINTER_SCHEMA, **{"as": {"enum": list(SPELLINGS)}}),
    ],
}
_SCALARS = ["string", "number", "boolean"]
_EQUALS_SCHEMA: Schema = {
    "description": "The value required at pointer, or a list of accepted values.",
    "oneOf": [{"type": _SCALARS}, {"type": "array", "items": {"type": _SCALARS}, "minItems": 1}],
}
_CODES_SCHEMA: Schema = {
    **_EQUALS_SCHEMA,
    "description": "A code of the error, wherever it stands, or a list of which it must be one.",
}
_OWNER_SCHEMA: Schema = {
    "description": "Header that names whose limits an answer is about, or where else it does.",
    "oneOf": [
        _text(minLength=1),
        {
            **_object(
                header=_text(),
                pointer=_POINTER_SCHEMA,
                message=_text("a pattern with one group"),
            ),
            "minProperties": 1,
            "maxProperties": 1,
        },
    ],
}


class _Shape(BaseModel):
    # The input stays out of every text pydantic makes: it may be a token.
    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, hide_input_in_errors=True, allow_inf_nan=False
    )


class AccountShape(_Shape):
    """One account."""

    provider: Text = Field(description="A built-in provider, or one defined under providers.")
    label: Text = Field(description="The account's name, unique per provider.")
    token: Annotated[Any, WithJsonSchema(_TOKEN_SCHEMA)]
    account_type: Literal["individual", "business", "enterprise"] | None = Field(
        None, description="The plan of a Copilot account; default: individual."
    )
    priority: int = Field(0, description="Lower is preferred.")
    weight: int = Field(1, ge=1, description="Share of the traffic within its priority.")
    models: list[Text] = Field(
        [], description="Globs of models it may serve; !glob excludes. Default: all."
    )
    max_concurrent: int | None = Field(
        None, ge=1, description="Maximum number of requests at once; default: no limit."
    )
    min_interval: float = Field(0.0, ge=0, description="Seconds between the starts of requests.")
    enabled: bool = Field(True, description="false keeps it in the file but out of use.")
    reserve: Annotated[dict[str, Any], WithJsonSchema(_RESERVE_SCHEMA)] = Field(
        {}, description="Share of each window that is left to the owner, such as 5h: 15%."
    )
    account_id: Text | None = Field(None, description="Account of a Codex or Claude login.")
    project: Text | None = Field(None, description="Project of a Gemini CLI account.")
    organization: Text | None = Field(None, description="Organization, as the vendor names it.")
    openai_project: Text | None = Field(None, description="OpenAI project.")
    host: Text | None = Field(None, description="The one host this account's requests go to.")
    deployments: dict[str, Text] | None = Field(None, description="Azure: model to deployment.")


class PlaceShape(_Shape):
    """Where the credential goes: one of header and query."""

    header: Text | None = Field(None, description="The header that carries it.")
    prefix: str | None = Field(
        None, description='Text before it; default for authorization: "Bearer ".'
    )
    query: Text | None = Field(None, description="The query parameter that carries it.")


class CredentialShape(PlaceShape):
    """The same, and where it goes on some paths."""

    by_path: dict[str, PlaceShape] = Field(
        {}, description="Part of a path: where the credential goes on such paths instead."
    )


class LimitShape(_Shape):
    """What an answer means. Every condition that is given must hold."""

    cls: Literal[_CLASSES] = Field(alias="class", description="What it means.")  # type: ignore[valid-type]
    scope: Literal["account", "account+model", "server", "none"] | None = Field(
        None, description="How far it reaches; default: what is usual for the class."
    )
    status: list[Annotated[int, Field(ge=100, le=599)]] = Field(
        [], description="HTTP statuses; 200: an error inside a successful answer."
    )
    header: dict[str, Text] = Field({}, description="Header and the pattern it must match.")
    codes: Annotated[Any, WithJsonSchema(_CODES_SCHEMA)] = None
    pointer: Text | None = Field(None, description="RFC 6901: a value of the JSON body or event.")
    equals: Annotated[Any, WithJsonSchema(_EQUALS_SCHEMA)] = None
    regex: Text | None = Field(None, description="Pattern for the value at pointer.")
    message: Text | None = Field(None, description="Pattern for the error message.")
    reset: Annotated[Any, WithJsonSchema(_RESET_SCHEMA)] = None
    model: Text | None = Field(None, description="RFC 6901: the model the answer names.")
    missing_model: bool = Field(
        False, description="With class request_error: another account may have the model."
    )
    shared: bool | None = Field(
        None, description="Whether the limit is that of the owner, and of all its accounts."
    )
    why: Text | None = Field(None, description="What the log says of it; default the line.")


class OwnerShape(_Shape):
    """Where an answer names whose limits it is about: one of them."""

    header: Text | None = Field(None, description="A header.")
    pointer: Text | None = Field(None, description="RFC 6901: a value of the JSON body or event.")
    message: Text | None = Field(None, description="Pattern with one group for the sentence.")


class ResetShape(_Shape):
    """Where a reset is named: one of header and pointer."""

    header: Text | None = None
    pointer: Text | None = None
    spelling: Literal[tuple(SPELLINGS)] = Field("auto", alias="as")  # type: ignore[valid-type]


class ProviderShape(_Shape):
    """More hosts for a built-in provider, or a provider of the user's own."""

    like: Text | None = Field(
        None, description="The built-in provider whose API it speaks; default: openai."
    )
    hosts: list[Text] = Field([], description="host, host:port or *.domain.")
    token_url: Text | None = Field(None, description="Copilot: address of the token exchange.")
    paths: list[Text] = Field(
        [], description='Requests that are pooled, such as "/v1/chat/*" or "GET /v1/models*".'
    )
    credential: CredentialShape | None = Field(None, description="Where the credential goes.")
    drop: list[Text] = Field([], description="More headers of the client's own account.")
    companions: dict[str, Text] = Field(
        {}, description=("Account key to the header that carries it.")
    )
    owner: Annotated[Any, WithJsonSchema(_OWNER_SCHEMA)] = None
    time_zone: Text | None = Field(
        None, description="That of dates which name none, such as Asia/Shanghai; default UTC."
    )
    limits: list[LimitShape] = Field(
        [], description=("Rules that come before those of `like`, in order.")
    )


#: What a definition has besides, by the name `definition_reader` has for it.
PARTS: Mapping[str, type[BaseModel]] = {"owner": OwnerShape, "reset": ResetShape}


def _pool_shape() -> type[_Shape]:
    """Make the shape of `pool:` from the table of options, for the JSON schema only."""
    fields: dict[str, Any] = {}
    for option in POOL_OPTIONS:
        if option.not_in_file:
            continue
        kind: Any = Literal[option.choices] if option.choices else option.type
        kind = kind | list[str] if option.reader else kind
        if option.writer:
            kind = Annotated[Any, WithJsonSchema(_WRITTEN[option.name])]
        kind = kind | bool if option.is_switch else kind
        minimum = option.minimum if option.type in (int, float) else None
        field: Any = Field(option.default, description=option.help, ge=minimum)
        fields[option.name] = (kind, field)
    return create_model("PoolShape", __base__=_Shape, **fields)


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of accounts.yaml, for editors that complete and check it."""
    shape = create_model(
        "Accounts",
        __base__=_Shape,
        accounts=(list[AccountShape], Field(description="The accounts of the pool.")),
        providers=(dict[str, ProviderShape], Field({}, description="More hosts or providers.")),
        pool=(_pool_shape(), Field({}, description="Options, without their prefix pool_.")),
    )
    schema = shape.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


_TEXT_REMEDY = "write text, in quotes"
_SECTION_REMEDY = "write `hosts: [...]` below it"

#: What a value is not, by pydantic's name of the error.
_KINDS: Mapping[str, str] = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "literal_error": "accepted",
}


def check_shape(document: Document, loc: Loc, shape: type[Model], value: Any) -> Model | None:
    """Return *value* in its *shape*; None if that is wrong, and all that is wrong is noted."""
    try:
        return shape.model_validate(value)
    except ValidationError as found:
        for error in found.errors(include_url=False, include_input=False):
            steps = tuple(step for step in error["loc"] if step != "[key]")
            at = (*loc, *steps)
            accepted = keys_of(_shape_at(shape, steps[:-1]))
            wrong = _explain(error["type"], error.get("ctx", {}), at, document, accepted)
            document.problem(at, wrong.wrong, wrong.remedy)
        return None


def _choices(context: Mapping[str, Any]) -> list[str]:
    """Return what pydantic says it expected: "'a', 'b' or 'c'"."""
    return re.findall(r"'([^']*)'", str(context.get("expected")))


def keys_of(shape: type[BaseModel]) -> tuple[str, ...]:
    """Return the keys of *shape* as they are written."""
    return tuple(field.alias or name for name, field in shape.model_fields.items())


def _shape_at(shape: type[BaseModel], steps: tuple[str | int, ...]) -> type[BaseModel]:
    """Return the shape of what *steps* lead to inside *shape*."""
    for step in steps:
        field = shape.model_fields.get(str(step))
        inner = _shape_in(field.annotation) if field is not None else None
        shape = inner or shape
    return shape


def _shape_in(annotation: Any) -> type[BaseModel] | None:
    """Return the shape in an annotation such as `list[LimitShape] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_shape_in, get_args(annotation))), None)


def _explain(
    kind: str, context: Mapping[str, Any], at: Loc, document: Document, accepted: tuple[str, ...]
) -> Wrong:
    key = next((str(step) for step in reversed(at) if isinstance(step, str)), "")
    value = document.value(at)
    if kind == "extra_forbidden":
        return Wrong(UNKNOWN_KEY, unknown(key, accepted))
    remedy = _SECTION_REMEDY if kind == "model_type" else _REMEDIES.get(key, _TEXT_REMEDY)
    if kind == "missing":
        return Wrong(MISSING, remedy)
    if value is None:
        return Wrong("has no value", remedy)
    if kind == "string_too_short":
        return Wrong("is empty", remedy)
    if kind == "greater_than_equal":
        return Wrong(f"{shown(value)} is less than {context['ge']:g}", remedy)
    if kind == "less_than_equal":
        return Wrong(f"{shown(value)} is more than {context['le']:g}", remedy)
    if kind == "literal_error" and isinstance(value, str):
        return Wrong(f"{shown(value)} is not accepted", unknown(value, _choices(context)))
    if kind == "string_type" and isinstance(value, int | float):
        # 007 and 1e3 would change on their way to text: only the owner knows what was meant.
        return Wrong(f"{shown(value)} is not text", "put it in quotes")
    return Wrong(f"{shown(value)} is not {_KINDS.get(kind, 'accepted')}", remedy)

"""The shape of accounts.yaml: which keys there are and what they take.

Only shape: what a value refers to (a provider, a variable, a file) is checked in
`accounts.py` and `user_providers.py`. The descriptions are what an editor shows.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, create_model

from account_pool.config.pool_options import POOL_OPTIONS

Text = Annotated[str, Field(min_length=1)]

#: The keys of a `token:` mapping.
TOKEN_KEYS = ("env", "file", "pointer", "command")
#: Keys of an account that travel with its credential: `Account.companions`.
COMPANIONS = ("account_id", "project", "organization", "openai_project", "host", "deployments")

_TOKEN_SCHEMA = {
    "description": "Where the credential comes from. A string may hold ${ENV}; $$ is a dollar "
    "sign.",
    "oneOf": [
        {"type": "string", "minLength": 1},
        {
            "type": "object",
            "properties": {"env": {"type": "string", "description": "an environment variable"}},
            "required": ["env"],
            "additionalProperties": False,
        },
        {
            "type": "object",
            "properties": {
                "file": {"type": "string", "description": "a file only its owner may read"},
                "pointer": {
                    "type": "string",
                    "pattern": "^/",
                    "description": "RFC 6901: where in the JSON of the file",
                },
            },
            "required": ["file"],
            "additionalProperties": False,
        },
        {
            "type": "object",
            "properties": {
                "command": {"type": "string", "description": "prints the token; no shell"}
            },
            "required": ["command"],
            "additionalProperties": False,
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
        None, description="The plan of a Copilot account; default individual."
    )
    priority: int = Field(0, description="Lower is preferred.")
    weight: int = Field(1, ge=1, description="Share of the traffic within its priority.")
    models: list[Text] = Field([], description="Globs it may serve; !glob excludes. Default all.")
    max_concurrent: int | None = Field(
        None, ge=1, description="Most requests at once; default no limit."
    )
    min_interval: float = Field(0.0, ge=0, description="Seconds between the starts of requests.")
    enabled: bool = Field(True, description="false keeps it in the file but out of use.")
    account_id: Text | None = Field(None, description="ChatGPT account of a Codex token.")
    project: Text | None = Field(None, description="Project of a Gemini CLI account.")
    organization: Text | None = Field(None, description="OpenAI organization.")
    openai_project: Text | None = Field(None, description="OpenAI project.")
    host: Text | None = Field(None, description="The one host this account's requests go to.")
    deployments: dict[str, Text] | None = Field(None, description="Azure: model to deployment.")


class ProviderShape(_Shape):
    """More hosts for a built-in provider, or a provider of the user's own."""

    like: Text | None = Field(None, description="The built-in provider whose API it speaks.")
    hosts: list[Text] = Field([], description="host, host:port or *.domain.")
    token_url: Text | None = Field(None, description="Copilot: address of the token exchange.")


def _pool_shape() -> type[_Shape]:
    """Make the shape of `pool:` from the table of options, for the JSON schema only."""
    fields: dict[str, Any] = {}
    for option in POOL_OPTIONS:
        if option.not_in_file:
            continue
        kind: Any = Literal[option.choices] if option.choices else option.type
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

"""The JSON schema for editors says what `load` accepts."""

from __future__ import annotations

import json
from typing import Any

from account_pool.config.options import POOL_OPTIONS
from account_pool.config.shapes import json_schema


def parts() -> tuple[dict[str, Any], dict[str, Any]]:
    schema = json_schema()
    return schema, schema["$defs"]


def test_it_is_json_and_closed() -> None:
    schema, definitions = parts()
    assert json.loads(json.dumps(schema)) == schema
    for shape in (schema, *definitions.values()):
        assert shape["additionalProperties"] is False
    assert schema["required"] == ["accounts"]
    assert list(schema["properties"]) == ["accounts", "providers", "pool"]


def test_accounts_have_every_key_described() -> None:
    _, definitions = parts()
    account = definitions["AccountShape"]
    assert account["required"] == ["provider", "label", "token"]
    assert all("description" in key for key in account["properties"].values())
    forms = account["properties"]["token"]["oneOf"]
    assert [form.get("required", form["type"]) for form in forms] == [
        "string",
        ["env"],
        ["file"],
        ["keychain"],
        ["command"],
        ["oauth"],
    ]


def test_every_option_of_the_file_is_there_with_its_default() -> None:
    _, definitions = parts()
    options = {o.name: o.default for o in POOL_OPTIONS if not o.not_in_file}
    keys = definitions["PoolShape"]["properties"]
    assert {name: key["default"] for name, key in keys.items()} == options
    assert keys["strategy"]["enum"][0] == "round-robin"
    assert keys["max_attempts"]["minimum"] == 1
    texts = {"type": "array", "items": {"type": "string"}}
    assert keys["allow_hosts"]["anyOf"] == [{"type": "string"}, texts]
    assert keys["fast"]["anyOf"] == [{"type": "string"}, texts, {"type": "boolean"}]

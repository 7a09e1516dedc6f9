"""Says in our words what pydantic found wrong with a part of accounts.yaml."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from account_pool.config.document import Document, Loc
from account_pool.config.problems import MISSING, UNKNOWN_KEY, Wrong, shown, unknown
from account_pool.providers.user_defined import CLASSES

#: What is accepted, by key.
REMEDIES: Mapping[str, str] = {
    "provider": "write the name of a provider, such as openai",
    "label": "write a name for the account, such as work",
    "token": "write token: ${NAME_OF_A_VARIABLE}, or one of {env: ...}, {file: ...}, "
    "{command: ...}, {keychain: ...}, {oauth: ...}",
    "account_type": "write one of individual, business, enterprise",
    "priority": "write a number such as 0 or 1",
    "weight": "write a number such as 1 or 2",
    "models": 'write a list such as ["gpt-*", "!gpt-5-pro*"]',
    "max_concurrent": "write a number such as 8, or leave it out for no limit",
    "min_interval": "write seconds, such as 0.5",
    "enabled": "write true or false",
    "deployments": "write a mapping such as {gpt-4o: my-deployment}",
    "like": "write the name of a built-in provider, such as openai",
    "hosts": 'write a list such as ["llm.example.com", "localhost:9443"]',
    "token_url": "write an address such as https://api.github.com/copilot_internal/v2/token",
    "paths": 'write a list such as ["/v1/chat/completions", "GET /v1/models*"]',
    "credential": 'write {header: authorization, prefix: "Bearer "} or {query: key}',
    "drop": 'write a list of headers such as ["x-team"]',
    "companions": "write a mapping such as {organization: x-organization}",
    "limits": "list rules such as {status: [429], class: rate_limit}",
    "status": "write a list of statuses such as [429]",
    "class": "write one of " + ", ".join(CLASSES),
    "header": 'write {x-some-header: "pattern"} in a rule, the name of a header elsewhere',
}
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


def check_shape(document: Document, loc: Loc, shape: type[BaseModel], value: Any) -> bool:
    """Note everything wrong with the shape of *value*; return whether it is right."""
    try:
        shape.model_validate(value)
    except ValidationError as found:
        for error in found.errors(include_url=False, include_input=False):
            steps = tuple(step for step in error["loc"] if step != "[key]")
            at = (*loc, *steps)
            accepted = keys_of(_shape_at(shape, steps[:-1]))
            wrong = _explain(error["type"], error.get("ctx", {}), at, document, accepted)
            document.problem(at, wrong.wrong, wrong.remedy)
        return False
    return True


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
    remedy = _SECTION_REMEDY if kind == "model_type" else REMEDIES.get(key, _TEXT_REMEDY)
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

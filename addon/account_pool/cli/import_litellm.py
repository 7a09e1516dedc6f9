"""The accounts in the model_list of LiteLLM's config.yaml; see `import_formats.py`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from account_pool.cli.import_items import (
    Documents,
    Found,
    Left,
    as_literal,
    at_host,
    dicts,
    settings_of,
    single,
    text_of,
    with_key,
)
from account_pool.providers.registry import BUILT_IN
from account_pool.providers.token_forms import hidden

#: Its names of providers, where ours differ.
_LITELLM: Mapping[str, str] = {
    "text-completion-openai": "openai",
    "together_ai": "together",
    "fireworks_ai": "fireworks",
    "cohere_chat": "cohere",
    "volcengine": "ark",
    "github": "github-models",
}
_LITELLM_NOT: Mapping[str, str] = {
    "bedrock": "AWS signs each request",
    "sagemaker": "AWS signs each request",
    "vertex_ai": "its requests name a project of Google Cloud in their path",
    "chatgpt": "log in for the pool: account-pool login codex",
    "github_copilot": "log in for the pool: account-pool login copilot",
}
#: How it tells the provider of a model that names none.
_BY_MODEL = (
    (("gpt-", "o1", "o3", "o4", "chatgpt-", "text-embedding-"), "openai"),
    (("claude",), "anthropic"),
    (("gemini",), "gemini"),
)


def read_litellm(documents: Documents) -> list[Found | Left] | None:
    """Return what LiteLLM keeps; None where *documents* are of another program."""
    config = single(documents)
    if not isinstance(config, dict) or not isinstance(config.get("model_list"), list):
        return None
    items: list[Found | Left] = []
    seen: set[str] = set()
    renamed: list[str] = []
    bounded = False
    for entry in dicts(config["model_list"]):
        params = entry.get("litellm_params")
        params = params if isinstance(params, dict) else {}
        item = _litellm_account(params)
        # Most keys serve several models: they are one account here.
        same = (
            json.dumps([item.provider, item.written.get("token"), item.written.get("host")])
            if (isinstance(item, Found))
            else json.dumps([item.what, item.why])
        )
        if same not in seen:
            seen.add(same)
            items.append(item)
        model, name = str(params.get("model", "")), str(entry.get("model_name", ""))
        if name not in (model, model.partition("/")[2]) and "*" not in name:
            renamed.append(name)
        bounded = bounded or bool({"rpm", "tpm"} & params.keys())
    if renamed:
        some = ", ".join(hidden(name) for name in dict.fromkeys(renamed[:5]))
        items.append(Left(f"model names of its own ({some})", "clients name the vendors' models"))
    if bounded:
        items.append(Left("rpm and tpm", "limits are learnt from the vendors' responses"))
    return [*items, *_litellm_settings(config)]


def _litellm_settings(config: Mapping[str, Any]) -> Iterator[Left]:
    sections = [
        config.get(name) for name in ("general_settings", "router_settings", "litellm_settings")
    ]
    settings = {k: v for one in sections if isinstance(one, dict) for k, v in one.items()}
    if settings.get("master_key"):
        yield Left("master_key and virtual keys", "clients of the pool need no key of its own")
    if any("fallbacks" in str(name) for name in settings):
        yield Left("fallbacks", "a request moves to another account, never to another model")


def _litellm_account(params: dict[str, Any]) -> Found | Left:
    model = str(params.get("model", ""))
    prefix, slash, _ = model.partition("/")
    provider = _LITELLM.get(prefix, prefix) if slash else _of_model(model)
    if prefix in _LITELLM_NOT:
        return Left(f"accounts of {prefix}", _LITELLM_NOT[prefix])
    settings = _litellm_limits(params)
    url = text_of(params.get("api_base")) or text_of(params.get("base_url"))
    if provider not in BUILT_IN and not (url and provider):
        return Left(hidden(model), "which vendor serves it is not known here")
    token = _litellm_key(params, provider)
    if token is None:
        return Left(f"{hidden(model)}", "it has no key")
    label = _label_of(token)
    if provider == "azure":
        host = urlsplit(url or "").hostname
        if host is None:
            return Left(hidden(model), "its resource (api_base) is not said as an address")
        return with_key(provider, label, token, {"host": host, **settings})
    if url and not url.startswith("os.environ/"):
        return at_host(
            url, "anthropic" if provider == "anthropic" else "openai", label, token, settings
        )
    if url:
        return Left(hidden(model), "its address is in a variable; define it under providers")
    if organization := text_of(params.get("organization")):
        settings["organization"] = _reference(organization)
    return with_key(provider, label, token, settings)


def _litellm_limits(params: Mapping[str, Any]) -> dict[str, Any]:
    settings = settings_of({"priority": params.get("order"), "weight": params.get("weight")})
    most = params.get("max_parallel_requests")
    if isinstance(most, int) and not isinstance(most, bool) and most > 0:
        settings["max_concurrent"] = most
    return settings


def _litellm_key(params: Mapping[str, Any], provider: str) -> Any:
    """Return where its key is; as LiteLLM does, it is looked for in the usual variable."""
    key = text_of(params.get("api_key"))
    if key is None:
        usual = BUILT_IN.env(provider) if provider in BUILT_IN else ()
        return {"env": usual[0]} if usual and provider != "copilot" else None
    if key.startswith("os.environ/"):
        return {"env": key.removeprefix("os.environ/")}
    return as_literal(key)


def _reference(text: str) -> str:
    if text.startswith("os.environ/"):
        return "${" + text.removeprefix("os.environ/") + "}"
    return as_literal(text)


def _label_of(token: Any) -> str:
    if isinstance(token, dict):
        return str(token.get("env", "key")).lower().replace("_", "-")
    return "litellm"


def _of_model(model: str) -> str:
    return next((name for begins, name in _BY_MODEL if model.startswith(begins)), "")

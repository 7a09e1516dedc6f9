"""What other programs keep of accounts, as accounts of ours. Values in, values out.

The formats, as their own sources and docs have them in November 2026:
router-for-me/CLIProxyAPI `internal/auth/*/token.go`, `config.example.yaml`; realiti4/claude-swap
`src/claude_swap/transfer.py`, `switcher.py`; KarpelesLab/teamclaude `docs/configuration.md`,
`docs/accounts.md`; https://docs.litellm.ai/docs/proxy/configs; tombii/better-ccflare
`packages/types/src/account.ts` (its table `accounts`). A format is told by its content, and what
is not known in it is left and named, never guessed.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any
from urllib.parse import urlsplit

from account_pool.cli.import_items import (
    Documents,
    Found,
    Left,
    as_literal,
    at_host,
    dicts,
    own_proxy,
    settings_of,
    single,
    text_of,
    with_key,
    with_login,
)
from account_pool.credentials import vendor_logins
from account_pool.providers.registry import BUILT_IN
from account_pool.providers.token_forms import form_of, hidden, jwt_claims


@dataclass(frozen=True, slots=True)
class Contents:
    """What a program keeps, in the order of its file."""

    program: str
    items: tuple[Found | Left, ...]


def recognise(documents: Documents) -> Contents | None:
    """Return what *documents* hold; None where that is of no program known here."""
    for program, read in _READERS:
        items = read(documents)
        if items is not None:
            return Contents(program, tuple(items))
    return None


# -- CLIProxyAPI: its auth-dir, one of the files there, its config.yaml

_CLIPROXY = "CLIProxyAPI"
_NOT_POOLED: Mapping[str, str] = {
    "qwen": "the login of Qwen Code",
    "iflow": "the login of iFlow",
    "antigravity": "the login of Antigravity",
    "kimi": "the login of Kimi (a key is: account-pool add kimi-code)",
    "vertex": "a service account of Vertex AI, which signs its requests",
    "xai": "the login of Grok (a key is: account-pool add xai)",
}


def _cliproxy_files(documents: Documents) -> list[Found | Left] | None:
    if not documents or not any(_is_cliproxy_file(one) for one in documents.values()):
        return None
    items: list[Found | Left] = []
    for name, document in documents.items():
        if not _is_cliproxy_file(document):
            items.append(Left(hidden(name), f"it is no login of {_CLIPROXY}"))
            continue
        label = text_of(document.get("email")) or PurePath(name).stem
        items.append(_cliproxy_login(document, label))
        items += own_proxy(document, ("proxy_url", "proxy-url"), label)
    return items


def _is_cliproxy_file(document: Any) -> bool:
    return (
        isinstance(document, dict)
        and isinstance(document.get("type"), str)
        and bool({"access_token", "token", "refresh_token", "service_account"} & document.keys())
    )


def _cliproxy_login(document: dict[str, Any], label: str) -> Found | Left:
    kind, settings = document["type"], settings_of(document, higher_first=True)
    common: dict[str, Any] = {
        "access": document.get("access_token"),
        "refresh": document.get("refresh_token"),
        "expires_at": document.get("expired"),
    }
    if kind == "claude":
        return with_login(vendor_logins.Shape(provider="claude-code", **common), label, settings)
    if kind == "codex":
        account = text_of(document.get("account_id"))
        maker = vendor_logins.client_of(jwt_claims(str(document.get("id_token"))))
        companions = {"account_id": account} if account else {}
        shape = vendor_logins.Shape(
            provider="codex", companions=companions, client_id=maker, **common
        )
        return with_login(shape, label, settings)
    if kind in ("gemini", "gemini-cli"):
        token = document.get("token")
        token = token if isinstance(token, dict) else document
        project = text_of(document.get("project_id"))
        if project is not None and project.lower() != "all" and "," not in project:
            settings["project"] = project
        shape = vendor_logins.Shape(
            provider="gemini-cli",
            access=token.get("access_token"),
            refresh=token.get("refresh_token"),
            expires_at=token.get("expiry"),
        )
        client = {name: text_of(token.get(name)) for name in ("client_id", "client_secret")}
        return with_login(shape, label, settings, client)
    if kind in ("github-copilot", "copilot"):
        shape = vendor_logins.Shape(provider="copilot", access=document.get("access_token"))
        return with_login(shape, label, settings)
    return Left(hidden(label), f"not pooled here: {_NOT_POOLED.get(kind, hidden(kind))}")


#: The sections of its config.yaml that hold keys, and whose they are.
_CLIPROXY_KEYS = {
    "gemini-api-key": "gemini",
    "claude-api-key": "anthropic",
    "codex-api-key": "openai",
    "xai-api-key": "xai",
}


def _cliproxy_config(documents: Documents) -> list[Found | Left] | None:
    config = single(documents)
    sections = {*_CLIPROXY_KEYS, "openai-compatibility", "auth-dir"}
    if not isinstance(config, dict) or not sections & config.keys():
        return None
    items: list[Found | Left] = []
    for section, provider in _CLIPROXY_KEYS.items():
        for number, entry in enumerate(dicts(config.get(section)), 1):
            label = f"{section}-{number}"
            items.append(_cliproxy_key(entry, entry.get("base-url"), provider, label))
            items += own_proxy(entry, ("proxy-url",), label)
    for service in dicts(config.get("openai-compatibility")):
        name = text_of(service.get("name")) or "openai-compatibility"
        older = service.get("api-keys")
        keys = service.get("api-key-entries") or [
            {"api-key": key} for key in (older if isinstance(older, list) else ())
        ]
        for number, entry in enumerate(dicts(keys), 1):
            merged = {**service, **entry}
            items.append(
                _cliproxy_key(merged, service.get("base-url"), "openai", f"{name}-{number}")
            )
    if config.get("api-keys"):
        items.append(Left("api-keys", "keys for its clients; those of the pool need none"))
    if config.get("auth-dir"):
        folder = hidden(str(config["auth-dir"]))
        items.append(Left(f"the logins in {folder}", "import that folder"))
    return items


def _cliproxy_key(entry: Mapping[str, Any], url: Any, provider: str, label: str) -> Found | Left:
    key = text_of(entry.get("api-key"))
    if key is None:
        return Left(hidden(label), "it has no key")
    settings = settings_of(entry, higher_first=True)
    if text_of(url):
        return at_host(url, provider, label, as_literal(key), settings)
    return with_key(provider, label, as_literal(key), settings)


# -- claude-swap: an export (cswap --export), or its folder


def _claude_swap(documents: Documents) -> list[Found | Left] | None:
    export = single(documents)
    if isinstance(export, dict) and dicts(export.get("accounts")):
        entries = dicts(export["accounts"])
        if "swapVersion" in export or all("credentials" in entry for entry in entries):
            return [_swapped(entry, entry.get("credentials")) for entry in entries]
    sequence = documents.get("sequence.json")
    if not isinstance(sequence, dict) or not isinstance(sequence.get("accounts"), dict):
        return None
    items = []
    for number, entry in sequence["accounts"].items():
        if isinstance(entry, dict):
            name = f".creds-{number}-{entry.get('email')}.enc"
            items.append(_swapped(entry, _decoded(documents.get(name))))
    return items


def _swapped(entry: Mapping[str, Any], held: Any) -> Found | Left:
    label = text_of(entry.get("alias")) or text_of(entry.get("email")) or "claude"
    settings = settings_of(entry)
    if isinstance(held, str) and held.strip():
        return with_key("anthropic", label, as_literal(held.strip()), settings)
    shape = vendor_logins.claude(held)
    if shape is None:
        why = "its login is not in there; on macOS it is in the keychain: cswap --export FILE"
        return Left(hidden(label), why)
    ids = {"account_id": entry.get("uuid"), "organization": entry.get("organizationUuid")}
    named = {name: text for name, value in ids.items() if (text := text_of(value))}
    return with_login(shape, label, {**named, **settings})


def _decoded(text: Any) -> Any:
    """Return what one of its files holds: JSON, or a key, in base64."""
    try:
        plain = base64.b64decode(str(text), validate=True).decode()
    except (ValueError, UnicodeDecodeError):
        return None
    try:
        return json.loads(plain)
    except (ValueError, RecursionError):
        return plain


# -- teamclaude: teamclaude.json


def _teamclaude(documents: Documents) -> list[Found | Left] | None:
    config = single(documents)
    if not isinstance(config, dict) or not {"proxy", "accounts"} <= config.keys():
        return None
    items: list[Found | Left] = []
    for entry in dicts(config["accounts"]):
        label = text_of(entry.get("name")) or "claude"
        items.append(_teamclaude_account(entry, label))
        items += own_proxy(entry, ("routing",), label)
        if entry.get("modelMap"):
            what = f"the modelMap of {hidden(label)}"
            items.append(Left(what, "clients name the vendors' models here"))
    return items


def _teamclaude_account(entry: dict[str, Any], label: str) -> Found | Left:
    settings, codex = settings_of(entry), entry.get("provider") == "codex"
    provider = "codex" if codex else "claude-code"
    if (url := text_of(entry.get("upstream"))) and "api.anthropic.com" not in url:
        token = text_of(entry.get("apiKey")) or text_of(entry.get("accessToken"))
        if token is None:
            return Left(hidden(label), "a service of its own without a key")
        return at_host(url, "anthropic", label, as_literal(token), settings)
    if key := text_of(entry.get("apiKey")):
        return with_key("openai" if codex else "anthropic", label, as_literal(key), settings)
    file = text_of(entry.get("importFrom"))
    if file is None and codex and not entry.get("accessToken"):
        file = "~/.codex/auth.json"
    if file is not None:
        return with_key(provider, label, {"file": file}, settings)
    if entry.get("provider") not in (None, "codex", "anthropic", "claude"):
        return Left(hidden(label), "a provider that is not pooled here")
    ids = {"account_id": entry.get("accountId" if codex else "accountUuid")}
    if not codex:
        ids["organization"] = entry.get("orgUuid")
    shape = vendor_logins.Shape(
        provider=provider,
        access=entry.get("accessToken"),
        refresh=entry.get("refreshToken"),
        expires_at=entry.get("expiresAt"),
        companions={name: text for name, value in ids.items() if (text := text_of(value))},
        login_ends_at=entry.get("refreshTokenExpiresAt"),
    )
    return with_login(shape, label, settings)


# -- better-ccflare: the rows of its table `accounts`

_CCFLARE: Mapping[str, str] = {
    "claude-console-api": "anthropic",
    "console": "anthropic",
    "claude-oauth": "claude-code",
    "max": "claude-code",
}


def _ccflare(documents: Documents) -> list[Found | Left] | None:
    rows = single(documents)
    if isinstance(rows, dict):
        rows = rows.get("accounts")
    rows = dicts(rows)
    if not rows or not all({"name", "provider", "refresh_token"} <= row.keys() for row in rows):
        return None
    items: list[Found | Left] = []
    for row in rows:
        label = text_of(row.get("name")) or "account"
        items.append(_ccflare_account(row, label))
        if row.get("model_mappings"):
            what = f"the model mappings of {hidden(label)}"
            items.append(Left(what, "clients name the vendors' models here"))
    return items


def _ccflare_account(row: dict[str, Any], label: str) -> Found | Left:
    settings = settings_of(row, off="paused")
    kind = text_of(row.get("provider")) or "anthropic"
    key, access = text_of(row.get("api_key")), text_of(row.get("access_token"))
    # An account with a key has it as its refresh token too.
    refresh = text_of(row.get("refresh_token"))
    refresh = (
        None if refresh in (key, None) or form_of(refresh or "") is _KEY_OF_ANTHROPIC else refresh
    )
    provider = _CCFLARE.get(kind, "claude-code" if kind == "anthropic" and not key else kind)
    if provider in ("claude-code", "codex") and (refresh or access):
        shape = vendor_logins.Shape(
            provider=provider, access=access, refresh=refresh, expires_at=row.get("expires_at")
        )
        return with_login(shape, label, settings)
    key = key or text_of(row.get("refresh_token")) or access
    if key is None:
        return Left(hidden(label), "it has no credential")
    if kind in ("openai-compatible", "anthropic-compatible"):
        return at_host(
            _endpoint(row), kind.removesuffix("-compatible"), label, as_literal(key), settings
        )
    if provider not in BUILT_IN or provider in ("codex", "copilot", "gemini-cli"):
        return Left(hidden(label), f"its provider is not pooled here: {hidden(kind)}")
    return with_key(provider, label, as_literal(key), settings)


_KEY_OF_ANTHROPIC = form_of("sk-ant-api03-")


def _endpoint(row: Mapping[str, Any]) -> Any:
    """Return the address of a service; older versions kept it in JSON with more."""
    written = text_of(row.get("custom_endpoint")) or ""
    try:
        return json.loads(written).get("endpoint") if written.startswith("{") else written
    except (ValueError, AttributeError, RecursionError):
        return None


# -- LiteLLM: the model_list of its config.yaml

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


def _litellm(documents: Documents) -> list[Found | Left] | None:
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
    by_model = (name for begins, name in _BY_MODEL if model.startswith(begins))
    provider = _LITELLM.get(prefix, prefix) if slash else next(by_model, "")
    if prefix in _LITELLM_NOT:
        return Left(f"accounts of {prefix}", _LITELLM_NOT[prefix])
    settings = _litellm_limits(params)
    url = text_of(params.get("api_base")) or text_of(params.get("base_url"))
    if provider not in BUILT_IN and not (url and provider):
        return Left(hidden(model), "which vendor serves it is not known here")
    token = _litellm_key(params, provider)
    if token is None:
        return Left(f"{hidden(model)}", "it has no key")
    label = token["env"].lower().replace("_", "-") if isinstance(token, dict) else "litellm"
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


_READERS: tuple[tuple[str, Callable[[Documents], list[Found | Left] | None]], ...] = (
    ("LiteLLM", _litellm),
    ("claude-swap", _claude_swap),
    ("teamclaude", _teamclaude),
    ("better-ccflare", _ccflare),
    (_CLIPROXY, _cliproxy_config),
    (_CLIPROXY, _cliproxy_files),
)

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
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any
from urllib.parse import urlsplit

from account_pool.core.credential import Secret
from account_pool.credentials import vendor_logins
from account_pool.credentials.reading import instant, written_instant
from account_pool.credentials.sources import literal
from account_pool.providers.base import HTTPS_PORT
from account_pool.providers.registry import BUILT_IN
from account_pool.providers.token_forms import form_of, hidden, jwt_claims

#: What was parsed of each file, by its name; one of a single file.
Documents = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """An account that can come over.

    Attributes:
        provider, label: its key; several may have the same one.
        written: the rest of its entry in accounts.yaml; holds secrets.
        definition: of a provider of the user's own, which it needs.
        is_login: it is refreshed, so that only one program may hold it.
    """

    provider: str
    label: str
    written: Mapping[str, Any] = field(repr=False)
    definition: Mapping[str, Any] | None = None
    is_login: bool = False


@dataclass(frozen=True, slots=True)
class Left:
    """Something that cannot come over: *what* it is, and *why* not."""

    what: str
    why: str


@dataclass(frozen=True, slots=True)
class Contents:
    """What a program keeps.

    Attributes:
        program: its name, for people.
        items: in the order of the file.
    """

    program: str
    items: tuple[Found | Left, ...]


def recognise(documents: Documents) -> Contents | None:
    """Return what *documents* hold; None where that is of no program known here."""
    for program, read in _READERS:
        items = read(documents)
        if items is not None:
            return Contents(program, tuple(items))
    return None


# -- parts that all of them have


def _key(provider: str, label: str, token: Any, more: Mapping[str, Any] | None = None) -> Found:
    return Found(provider=provider, label=label, written={"token": token, **(more or {})})


def _login(
    shape: vendor_logins.Shape,
    label: str,
    more: Mapping[str, Any],
    client: Mapping[str, Any] | None = None,
) -> Found | Left:
    """Return a login, or a token that lasts where there is nothing to refresh it with."""
    access, refresh = _text(shape.access), _text(shape.refresh)
    known = BUILT_IN[shape.provider].companions
    belongs = {name: text for name, text in shape.companions.items() if name in known}
    rest = {**belongs, **more}
    if refresh is None:
        if access is None:
            return Left(_named(shape.provider, label), "it has no token")
        return _key(shape.provider, label, _literal(access), rest)
    oauth: dict[str, Any] = {"refresh_token": _literal(refresh)}
    if access is not None:
        oauth["access_token"] = _literal(access)
    ends = (("expires_at", shape.expires_at), ("refresh_expires_at", shape.login_ends_at))
    oauth |= {name: written_instant(at) for name, value in ends if (at := instant(value))}
    usual = vendor_logins.VENDORS[shape.provider].get("client_id")
    if shape.client_id not in (None, usual):
        client = {"client_id": shape.client_id, **(client or {})}
    oauth |= {name: _literal(text) for name, text in (client or {}).items() if text}
    if usual is None and not {"client_id", "client_secret"} <= oauth.keys():
        why = "the application that it was made with is not said; log in: account-pool login gemini"
        return Left(_named(shape.provider, label), why)
    written = {"token": {"oauth": oauth}, **rest}
    return Found(provider=shape.provider, label=label, written=written, is_login=True)


def _at_host(url: Any, like: str, label: str, token: Any, more: Mapping[str, Any]) -> Found | Left:
    """Return an account of whoever answers at *url*: built in, or a provider of the user's own."""
    try:
        parts = urlsplit(url if "//" in url else f"https://{url}")
        host, port = parts.hostname or "", parts.port or HTTPS_PORT
    except (TypeError, ValueError):
        return Left(label, "its address cannot be read")
    if parts.scheme != "https" or not host:
        return Left(f"{label} at {hidden(host)}", "the pool serves https only")
    for name in BUILT_IN:
        if any(rule.host == host for rule in BUILT_IN.hosts(name)) and port == HTTPS_PORT:
            return _key(name, label, token, more)
    written = host if port == HTTPS_PORT else f"{host}:{port}"
    own = host.removeprefix("api.").removeprefix("www.").replace(".", "-")
    return Found(
        provider=own,
        label=label,
        written={"token": token, **more},
        definition={"like": like, "hosts": [written]},
    )


def _text(value: Any) -> str | None:
    return value.strip() if isinstance(value, str) and value.strip() else None


def _literal(text: str) -> str:
    return literal(Secret(text))


def _named(provider: str, label: str) -> str:
    return hidden(f"{provider}/{label}")


def _settings(
    entry: Mapping[str, Any], *, off: str = "disabled", higher_first: bool = False
) -> dict[str, Any]:
    """Return what every one of them may say of an account beside its credential."""
    settings: dict[str, Any] = {}
    priority, weight = entry.get("priority"), entry.get("weight")
    if isinstance(priority, int) and not isinstance(priority, bool) and priority:
        settings["priority"] = -priority if higher_first else priority
    if isinstance(weight, int) and not isinstance(weight, bool) and weight > 1:
        settings["weight"] = weight
    if entry.get(off) in (True, 1):
        settings["enabled"] = False
    return settings


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _single(documents: Documents) -> Any:
    return next(iter(documents.values())) if len(documents) == 1 else None


def _proxies(entry: Mapping[str, Any], names: Iterable[str], what: str) -> Iterator[Left]:
    """Yield that an account has a proxy of its own."""
    if any(_text(entry.get(name)) for name in names):
        yield Left(
            f"the proxy of {hidden(what)}", "all accounts leave through the proxy of mitmproxy"
        )


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
        label = _text(document.get("email")) or PurePath(name).stem
        items.append(_cliproxy_login(document, label))
        items += _proxies(document, ("proxy_url", "proxy-url"), label)
    return items


def _is_cliproxy_file(document: Any) -> bool:
    return (
        isinstance(document, dict)
        and isinstance(document.get("type"), str)
        and bool({"access_token", "token", "refresh_token", "service_account"} & document.keys())
    )


def _cliproxy_login(document: dict[str, Any], label: str) -> Found | Left:
    kind, settings = document["type"], _settings(document, higher_first=True)
    common: dict[str, Any] = {
        "access": document.get("access_token"),
        "refresh": document.get("refresh_token"),
        "expires_at": document.get("expired"),
    }
    if kind == "claude":
        return _login(vendor_logins.Shape(provider="claude-code", **common), label, settings)
    if kind == "codex":
        account, maker = _text(document.get("account_id")), _audience(document.get("id_token"))
        companions = {"account_id": account} if account else {}
        shape = vendor_logins.Shape(
            provider="codex", companions=companions, client_id=maker, **common
        )
        return _login(shape, label, settings)
    if kind in ("gemini", "gemini-cli"):
        token = document.get("token")
        token = token if isinstance(token, dict) else document
        project = _text(document.get("project_id"))
        if project is not None and project.lower() != "all" and "," not in project:
            settings["project"] = project
        shape = vendor_logins.Shape(
            provider="gemini-cli",
            access=token.get("access_token"),
            refresh=token.get("refresh_token"),
            expires_at=token.get("expiry"),
        )
        client = {name: _text(token.get(name)) for name in ("client_id", "client_secret")}
        return _login(shape, label, settings, client)
    if kind in ("github-copilot", "copilot"):
        shape = vendor_logins.Shape(provider="copilot", access=document.get("access_token"))
        return _login(shape, label, settings)
    return Left(hidden(label), f"not pooled here: {_NOT_POOLED.get(kind, hidden(kind))}")


def _audience(id_token: Any) -> str | None:
    audience = jwt_claims(str(id_token)).get("aud")
    return _text(audience[0] if isinstance(audience, list) and audience else audience)


#: The sections of its config.yaml that hold keys, and whose they are.
_CLIPROXY_KEYS = {
    "gemini-api-key": "gemini",
    "claude-api-key": "anthropic",
    "codex-api-key": "openai",
    "xai-api-key": "xai",
}


def _cliproxy_config(documents: Documents) -> list[Found | Left] | None:
    config = _single(documents)
    sections = {*_CLIPROXY_KEYS, "openai-compatibility", "auth-dir"}
    if not isinstance(config, dict) or not sections & config.keys():
        return None
    items: list[Found | Left] = []
    for section, provider in _CLIPROXY_KEYS.items():
        for number, entry in enumerate(_dicts(config.get(section)), 1):
            label = f"{section}-{number}"
            items.append(_cliproxy_key(entry, entry.get("base-url"), provider, label))
            items += _proxies(entry, ("proxy-url",), label)
    for service in _dicts(config.get("openai-compatibility")):
        name = _text(service.get("name")) or "openai-compatibility"
        keys = service.get("api-key-entries") or [
            {"api-key": key} for key in service.get("api-keys") or []
        ]
        for number, entry in enumerate(_dicts(keys), 1):
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
    key = _text(entry.get("api-key"))
    if key is None:
        return Left(label, "it has no key")
    settings = _settings(entry, higher_first=True)
    if _text(url):
        return _at_host(url, provider, label, _literal(key), settings)
    return _key(provider, label, _literal(key), settings)


# -- claude-swap: an export (cswap --export), or its folder


def _claude_swap(documents: Documents) -> list[Found | Left] | None:
    export = _single(documents)
    if isinstance(export, dict) and _dicts(export.get("accounts")):
        entries = _dicts(export["accounts"])
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
    label = _text(entry.get("alias")) or _text(entry.get("email")) or "claude"
    settings = _settings(entry)
    if isinstance(held, str) and held.strip():
        return _key("anthropic", label, _literal(held.strip()), settings)
    shape = vendor_logins.claude(held)
    if shape is None:
        why = "its login is not in there; on macOS it is in the keychain: cswap --export FILE"
        return Left(hidden(label), why)
    ids = {"account_id": entry.get("uuid"), "organization": entry.get("organizationUuid")}
    named = {name: text for name, value in ids.items() if (text := _text(value))}
    return _login(shape, label, {**named, **settings})


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
    config = _single(documents)
    if not isinstance(config, dict) or not {"proxy", "accounts"} <= config.keys():
        return None
    items: list[Found | Left] = []
    for entry in _dicts(config["accounts"]):
        label = _text(entry.get("name")) or "claude"
        items.append(_teamclaude_account(entry, label))
        items += _proxies(entry, ("routing",), label)
        if entry.get("modelMap"):
            what = f"the modelMap of {hidden(label)}"
            items.append(Left(what, "clients name the vendors' models here"))
    return items


def _teamclaude_account(entry: dict[str, Any], label: str) -> Found | Left:
    settings, codex = _settings(entry), entry.get("provider") == "codex"
    provider = "codex" if codex else "claude-code"
    if (url := _text(entry.get("upstream"))) and "api.anthropic.com" not in url:
        token = _text(entry.get("apiKey")) or _text(entry.get("accessToken"))
        if token is None:
            return Left(hidden(label), "a service of its own without a key")
        return _at_host(url, "anthropic", label, _literal(token), settings)
    if key := _text(entry.get("apiKey")):
        return _key("openai" if codex else "anthropic", label, _literal(key), settings)
    file = _text(entry.get("importFrom"))
    if file is None and codex and not entry.get("accessToken"):
        file = "~/.codex/auth.json"
    if file is not None:
        return _key(provider, label, {"file": file}, settings)
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
        companions={name: text for name, value in ids.items() if (text := _text(value))},
        login_ends_at=entry.get("refreshTokenExpiresAt"),
    )
    return _login(shape, label, settings)


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
    config = _single(documents)
    if not isinstance(config, dict) or not isinstance(config.get("model_list"), list):
        return None
    items: list[Found | Left] = []
    seen: set[str] = set()
    renamed: list[str] = []
    bounded = False
    for entry in _dicts(config["model_list"]):
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
    if any("fallbacks" in name for name in settings):
        yield Left("fallbacks", "a request moves to another account, never to another model")


def _litellm_account(params: dict[str, Any]) -> Found | Left:
    model = str(params.get("model", ""))
    prefix, slash, _ = model.partition("/")
    provider = _LITELLM.get(prefix, prefix) if slash else _of_model(model)
    if prefix in _LITELLM_NOT:
        return Left(f"accounts of {prefix}", _LITELLM_NOT[prefix])
    settings = _litellm_limits(params)
    url = _text(params.get("api_base")) or _text(params.get("base_url"))
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
        return _key(provider, label, token, {"host": host, **settings})
    if url and not url.startswith("os.environ/"):
        return _at_host(
            url, "anthropic" if provider == "anthropic" else "openai", label, token, settings
        )
    if url:
        return Left(hidden(model), "its address is in a variable; define it under providers")
    if organization := _text(params.get("organization")):
        settings["organization"] = _reference(organization)
    return _key(provider, label, token, settings)


def _litellm_limits(params: Mapping[str, Any]) -> dict[str, Any]:
    settings = _settings({"priority": params.get("order"), "weight": params.get("weight")})
    most = params.get("max_parallel_requests")
    if isinstance(most, int) and not isinstance(most, bool) and most > 0:
        settings["max_concurrent"] = most
    return settings


def _litellm_key(params: Mapping[str, Any], provider: str) -> Any:
    """Return where its key is; as LiteLLM does, it is looked for in the usual variable."""
    key = _text(params.get("api_key"))
    if key is None:
        usual = BUILT_IN.env(provider) if provider in BUILT_IN else ()
        return {"env": usual[0]} if usual and provider != "copilot" else None
    if key.startswith("os.environ/"):
        return {"env": key.removeprefix("os.environ/")}
    return _literal(key)


def _reference(text: str) -> str:
    if text.startswith("os.environ/"):
        return "${" + text.removeprefix("os.environ/") + "}"
    return _literal(text)


def _label_of(token: Any) -> str:
    if isinstance(token, dict):
        return str(token.get("env", "key")).lower().replace("_", "-")
    return "litellm"


def _of_model(model: str) -> str:
    return next((name for begins, name in _BY_MODEL if model.startswith(begins)), "")


# -- better-ccflare: the rows of its table `accounts`

_CCFLARE: Mapping[str, str] = {
    "claude-console-api": "anthropic",
    "console": "anthropic",
    "claude-oauth": "claude-code",
    "max": "claude-code",
}


def _ccflare(documents: Documents) -> list[Found | Left] | None:
    rows = _single(documents)
    if isinstance(rows, dict):
        rows = rows.get("accounts")
    rows = _dicts(rows)
    if not rows or not all({"name", "provider", "refresh_token"} <= row.keys() for row in rows):
        return None
    items: list[Found | Left] = []
    for row in rows:
        label = _text(row.get("name")) or "account"
        items.append(_ccflare_account(row, label))
        if row.get("model_mappings"):
            what = f"the model mappings of {hidden(label)}"
            items.append(Left(what, "clients name the vendors' models here"))
    return items


def _ccflare_account(row: dict[str, Any], label: str) -> Found | Left:
    settings = _settings(row, off="paused")
    kind = _text(row.get("provider")) or "anthropic"
    key, access = _text(row.get("api_key")), _text(row.get("access_token"))
    # An account with a key has it as its refresh token too.
    refresh = _text(row.get("refresh_token"))
    refresh = (
        None if refresh in (key, None) or form_of(refresh or "") is _KEY_OF_ANTHROPIC else refresh
    )
    provider = _CCFLARE.get(kind, "claude-code" if kind == "anthropic" and not key else kind)
    if provider in ("claude-code", "codex") and (refresh or access):
        shape = vendor_logins.Shape(
            provider=provider, access=access, refresh=refresh, expires_at=row.get("expires_at")
        )
        return _login(shape, label, settings)
    key = key or _text(row.get("refresh_token")) or access
    if key is None:
        return Left(hidden(label), "it has no credential")
    if kind in ("openai-compatible", "anthropic-compatible"):
        return _at_host(
            _endpoint(row), kind.removesuffix("-compatible"), label, _literal(key), settings
        )
    if provider not in BUILT_IN or provider in ("codex", "copilot", "gemini-cli"):
        return Left(hidden(label), f"its provider is not pooled here: {hidden(kind)}")
    return _key(provider, label, _literal(key), settings)


_KEY_OF_ANTHROPIC = form_of("sk-ant-api03-")


def _endpoint(row: Mapping[str, Any]) -> Any:
    """Return the address of a service; older versions kept it in JSON with more."""
    written = _text(row.get("custom_endpoint")) or ""
    try:
        return json.loads(written).get("endpoint") if written.startswith("{") else written
    except (ValueError, AttributeError, RecursionError):
        return None


_READERS: tuple[tuple[str, Callable[[Documents], list[Found | Left] | None]], ...] = (
    ("LiteLLM", _litellm),
    ("claude-swap", _claude_swap),
    ("teamclaude", _teamclaude),
    ("better-ccflare", _ccflare),
    (_CLIPROXY, _cliproxy_config),
    (_CLIPROXY, _cliproxy_files),
)

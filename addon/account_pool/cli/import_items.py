"""What comes over from another program, and what does not; parts that all formats have."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from account_pool.core.credential import Secret
from account_pool.credentials import vendor_logins
from account_pool.credentials.sources import instant, literal, written_instant
from account_pool.providers.base import HTTPS_PORT
from account_pool.providers.registry import BUILT_IN
from account_pool.providers.token_forms import hidden

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


def with_key(provider: str, label: str, token: Any, more: Mapping[str, Any] | None = None) -> Found:
    """Return an account with a key; *more* is the rest of its entry."""
    return Found(provider=provider, label=label, written={"token": token, **(more or {})})


def with_login(
    shape: vendor_logins.Shape,
    label: str,
    more: Mapping[str, Any],
    client: Mapping[str, Any] | None = None,
) -> Found | Left:
    """Return a login, or a token that lasts where there is nothing to refresh it with."""
    name = hidden(f"{shape.provider}/{label}")
    access, refresh = text_of(shape.access), text_of(shape.refresh)
    known = BUILT_IN[shape.provider].companions
    belongs = {name: text for name, text in shape.companions.items() if name in known}
    rest = {**belongs, **more}
    if refresh is None:
        if access is None:
            return Left(name, "it has no token")
        return with_key(shape.provider, label, as_literal(access), rest)
    oauth: dict[str, Any] = {"refresh_token": as_literal(refresh)}
    if access is not None:
        oauth["access_token"] = as_literal(access)
    ends = (("expires_at", shape.expires_at), ("refresh_expires_at", shape.login_ends_at))
    oauth |= {name: written_instant(at) for name, value in ends if (at := instant(value))}
    usual = vendor_logins.VENDORS[shape.provider].get("client_id")
    if shape.client_id not in (None, usual):
        client = {"client_id": shape.client_id, **(client or {})}
    oauth |= {name: as_literal(text) for name, text in (client or {}).items() if text}
    if usual is None and not {"client_id", "client_secret"} <= oauth.keys():
        why = "the application that it was made with is not said; log in: account-pool login gemini"
        return Left(name, why)
    written = {"token": {"oauth": oauth}, **rest}
    return Found(provider=shape.provider, label=label, written=written, is_login=True)


def at_host(url: Any, like: str, label: str, token: Any, more: Mapping[str, Any]) -> Found | Left:
    """Return an account of whoever answers at *url*: built in, or a provider of the user's own."""
    try:
        parts = urlsplit(url if "//" in url else f"https://{url}")
        host, port = parts.hostname or "", parts.port or HTTPS_PORT
    except (TypeError, ValueError):
        return Left(hidden(label), "its address cannot be read")
    if parts.scheme != "https" or not host:
        return Left(f"{hidden(label)} at {hidden(host)}", "the pool serves https only")
    for name in BUILT_IN:
        if any(rule.host == host for rule in BUILT_IN.hosts(name)) and port == HTTPS_PORT:
            return with_key(name, label, token, more)
    written = host if port == HTTPS_PORT else f"{host}:{port}"
    own = host.removeprefix("api.").removeprefix("www.").replace(".", "-")
    return Found(
        provider=own,
        label=label,
        written={"token": token, **more},
        definition={"like": like, "hosts": [written]},
    )


def text_of(value: Any) -> str | None:
    """Return *value* without blanks around it; None if there is no text in it."""
    return value.strip() if isinstance(value, str) and value.strip() else None


def as_literal(text: str) -> str:
    """Return *text* as accounts.yaml has it, where `$` has a meaning."""
    return literal(Secret(text))


def settings_of(
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


def dicts(value: Any) -> list[dict[str, Any]]:
    """Return the objects of a list; none where it is no list."""
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def single(documents: Documents) -> Any:
    """Return the document, if it is the only one."""
    return next(iter(documents.values())) if len(documents) == 1 else None


def own_proxy(entry: Mapping[str, Any], names: Iterable[str], what: str) -> Iterator[Left]:
    """Yield that an account has a proxy of its own."""
    if any(text_of(entry.get(name)) for name in names):
        yield Left(
            f"the proxy of {hidden(what)}", "all accounts leave through the proxy of mitmproxy"
        )

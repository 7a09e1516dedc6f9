"""Recognises the login in what a vendor's own tool wrote on disk. Values in, values out.

One function per tool; each looks at the shape of the document, so that the name of the
file does not matter. Facts with their sources: providers.md, sections 1.3, 3.3, 5 and 7;
hosts.yml: `gh help environment`, https://cli.github.com/manual/gh_auth_login.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from account_pool.providers.token_forms import jwt_claims

#: Prefixes of tokens that GitHub gives to applications and people:
#: https://github.blog/engineering/platform-security/behind-githubs-new-authentication-token-formats/
_GITHUB_TOKEN = re.compile(r"(gh[opu]_|github_pat_)[A-Za-z0-9_]+\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A login as it was found, unchecked; its texts are secrets.

    Attributes:
        provider: whose login it is, a name of the registry.
        access, refresh: text, or whatever stood in their place.
        expires_at: seconds or milliseconds since the epoch, or text; None if not said.
        companions: what belongs to it.
    """

    provider: str
    access: Any = field(repr=False)
    refresh: Any = field(default=None, repr=False)
    expires_at: Any = None
    companions: Mapping[str, str] = field(default_factory=dict)


def codex(document: Any) -> Shape | None:
    """`~/.codex/auth.json`: a ChatGPT login, or an API key that was given to Codex."""
    if not isinstance(document, dict) or not {"tokens", "OPENAI_API_KEY"} & document.keys():
        return None
    tokens = document.get("tokens")
    if isinstance(tokens, dict) and tokens.get("access_token"):
        return Shape(
            provider="codex",
            access=tokens["access_token"],
            refresh=tokens.get("refresh_token"),
            companions=_texts(tokens, "account_id"),
        )
    return Shape(provider="openai", access=document.get("OPENAI_API_KEY"))


def claude(document: Any) -> Shape | None:
    """`~/.claude/.credentials.json`."""
    login = document.get("claudeAiOauth") if isinstance(document, dict) else None
    if not isinstance(login, dict):
        return None
    return Shape(
        provider="claude-code",
        access=login.get("accessToken"),
        refresh=login.get("refreshToken"),
        expires_at=login.get("expiresAt"),
    )


def gemini(document: Any) -> Shape | None:
    """`~/.gemini/oauth_creds.json`."""
    if not isinstance(document, dict) or not {"access_token", "expiry_date"} <= document.keys():
        return None
    return Shape(
        provider="gemini-cli",
        access=document["access_token"],
        refresh=document.get("refresh_token"),
        expires_at=document["expiry_date"],
        # Google's id of the person, OpenID Connect Core 1.0, section 2.
        companions=_named(user_id=jwt_claims(str(document.get("id_token"))).get("sub")),
    )


def github(document: Any) -> Shape | None:
    """`apps.json` and `config.json` of Copilot, `hosts.yml` of gh: the first GitHub token.

    Their layouts differ and change; what a GitHub token looks like does not.
    """
    token = next(_github_tokens(document), None)
    return None if token is None else Shape(provider="copilot", access=token)


#: By the name of the tool, as in `account-pool login --from NAME`; a whole file is tried
#: in this order.
SHAPES: Mapping[str, Callable[[Any], Shape | None]] = {
    "codex": codex,
    "claude": claude,
    "gemini": gemini,
    "copilot": github,
    "gh": github,
}


def recognise(document: Any) -> Shape | None:
    """Return the login in *document*, whichever tool wrote it; None if there is none."""
    found = (shape(document) for shape in SHAPES.values())
    return next((shape for shape in found if shape is not None), None)


def _named(**values: Any) -> dict[str, str]:
    return _texts(values, *values)


def _texts(values: Mapping[str, Any], *names: str) -> dict[str, str]:
    return {name: value for name in names if isinstance(value := values.get(name), str) and value}


def _github_tokens(value: Any) -> Iterator[str]:
    if isinstance(value, str) and _GITHUB_TOKEN.match(value):
        yield value
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _github_tokens(inner)

"""The vendors' own logins: how they are refreshed, and where their tools keep them.

A login on disk is recognised by the shape of the document: the name of the file does not
matter. Values in, values out, but for `find_login_file`. Sources:
openai/codex `codex-rs/login/src/auth/{manager,storage}.rs`; steipete/CodexBar `docs/claude.md`,
router-for-me/CLIProxyAPI `internal/auth/claude/anthropic_auth.go`; google-gemini/gemini-cli
`code_assist/oauth2.ts`, `config/storage.ts`; hosts.yml: `gh help environment`,
https://cli.github.com/manual/gh_auth_login.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from account_pool.core.json_values import members, text_in
from account_pool.core.meaning import LazyPattern
from account_pool.filesystem import expanded, is_file
from account_pool.providers.token_forms import jwt_claims

DAY_S = 86400.0

#: Fields of `oauth.OAuthSettings` that an account may leave out. The client of gemini-cli
#: is for its owner to name: its secret is not ours to repeat.
VENDORS: Mapping[str, Mapping[str, Any]] = {
    "codex": {
        "token_url": "https://auth.openai.com/oauth/token",
        "client_id": "app_EMoamEEZ73f0CkXaXp7hrann",
        "style": "json",
        # As its own tool does: the server may forget logins that are not seen for long.
        "refresh_after_s": 8 * DAY_S,
    },
    "claude-code": {
        "token_url": "https://platform.claude.com/v1/oauth/token",
        "client_id": "9d1c250a-e61b-44d9-88ed-5944d1962f5e",
        "style": "json",
    },
    "gemini-cli": {"token_url": "https://oauth2.googleapis.com/token", "style": "form"},
}

#: The vendors' own tools, by provider.
TOOLS: Mapping[str, str] = {"codex": "codex", "claude-code": "claude", "gemini-cli": "gemini"}


# -- the login in what a tool wrote on disk

#: Prefixes of tokens that GitHub gives to applications and people:
#: https://github.blog/engineering/platform-security/behind-githubs-new-authentication-token-formats/
_GITHUB_TOKEN = LazyPattern(r"(gh[opu]_|github_pat_)[A-Za-z0-9_]+\Z")


class Shape(Struct, frozen=True, kw_only=True):
    """A login as it was found, unchecked; its texts are secrets.

    Attributes:
        provider: whose login it is, a name of the registry.
        access, refresh: text, or whatever stood in their place.
        expires_at: seconds or milliseconds since the epoch, or text; None if not said.
        companions: what belongs to it.
        login_ends_at: as *expires_at*, when it ends however often it is refreshed.
        client_id: the application that was logged in with, which alone may refresh it; None
            if not said.
        owner: the address of who logged in, for people; None if not said.
    """

    provider: str
    access: Any
    refresh: Any = None
    expires_at: Any = None
    companions: Mapping[str, str] = {}
    login_ends_at: Any = None
    client_id: str | None = None
    owner: str | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.provider})"


def codex(document: Any) -> Shape | None:
    """`~/.codex/auth.json`: a ChatGPT login, or an API key that was given to Codex."""
    if not isinstance(document, dict) or not {"tokens", "OPENAI_API_KEY"} & document.keys():
        return None
    tokens = document.get("tokens")
    if isinstance(tokens, dict) and tokens.get("access_token"):
        claims = jwt_claims(str(tokens.get("id_token")))
        return Shape(
            provider="codex",
            access=tokens["access_token"],
            refresh=tokens.get("refresh_token"),
            companions=_named(account_id=tokens.get("account_id")),
            client_id=client_of(claims),
            owner=text_in(claims.get("email")),
        )
    return Shape(provider="openai", access=document.get("OPENAI_API_KEY"))


def claude(document: Any) -> Shape | None:
    """`~/.claude/.credentials.json`."""
    login = members(document).get("claudeAiOauth")
    if not isinstance(login, dict):
        return None
    return Shape(
        provider="claude-code",
        access=login.get("accessToken"),
        refresh=login.get("refreshToken"),
        expires_at=login.get("expiresAt"),
        companions=_named(
            account_id=login.get("accountUuid"), organization=login.get("organizationUuid")
        ),
        login_ends_at=login.get("refreshTokenExpiresAt"),
        client_id=text_in(login.get("clientId")),
    )


def gemini(document: Any) -> Shape | None:
    """`~/.gemini/oauth_creds.json`."""
    if not isinstance(document, dict) or not {"access_token", "expiry_date"} <= document.keys():
        return None
    claims = jwt_claims(str(document.get("id_token")))
    return Shape(
        provider="gemini-cli",
        access=document["access_token"],
        refresh=document.get("refresh_token"),
        expires_at=document["expiry_date"],
        # Google's id of the person, OpenID Connect Core 1.0, section 2.
        companions=_named(user_id=claims.get("sub")),
        client_id=client_of(claims),
        owner=text_in(claims.get("email")),
    )


def github(document: Any) -> Shape | None:
    """`apps.json` and `config.json` of Copilot, `hosts.yml` of gh: the first GitHub token.

    Their layouts differ and change; what a GitHub token looks like does not.
    """
    token = next(_github_tokens(document), None)
    return None if token is None else Shape(provider="copilot", access=token)


def client_of(claims: Mapping[str, Any]) -> str | None:
    """Return whom a token was made for (OpenID Connect Core 1.0, section 2)."""
    audience = claims.get("aud")
    return text_in(audience[0] if isinstance(audience, list) and audience else audience)


def _named(**values: Any) -> dict[str, str]:
    return {name: text for name, value in values.items() if (text := text_in(value))}


def _github_tokens(value: Any) -> Iterator[str]:
    if isinstance(value, str) and _GITHUB_TOKEN.match(value):
        yield value
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _github_tokens(inner)


# -- by tool


class ToolLogin(Struct, frozen=True):
    """How a tool logs in, and where it keeps its login.

    Attributes:
        how: what its user does to log in.
        paths: of the file, first choice first; "~" is the home directory.
        moved_by: variables that move it: the name, and the file below the directory it names.
        read: finds the login in what is written there.
        sections: top-level keys of the login in that file; none: any.
        service: how its item in the keychain of the system begins.
        otherwise: what to do where the login is in the keychain instead of the file.
    """

    how: str
    paths: tuple[str, ...] = ()
    moved_by: tuple[tuple[str, str], ...] = ()
    read: Callable[[Any], Shape | None] = lambda _document: None
    sections: frozenset[str] = frozenset()
    service: str = ""
    otherwise: str = ""

    @property
    def file(self) -> str | None:
        """The name of the file, wherever a variable moves its folder."""
        return Path(self.paths[0]).name if self.paths else None


#: By the name of the tool; a whole file is tried in this order.
LOGINS: Mapping[str, ToolLogin] = {
    "codex": ToolLogin(
        how="run `codex login`",
        paths=("~/.codex/auth.json",),
        moved_by=(("CODEX_HOME", "auth.json"),),
        read=codex,
        sections=frozenset({"tokens", "OPENAI_API_KEY"}),
        service="Codex",
        otherwise='set cli_auth_credentials_store = "file" in its config.toml and log in again',
    ),
    "claude": ToolLogin(
        how="run `claude` and log in",
        paths=("~/.claude/.credentials.json",),
        moved_by=(("CLAUDE_CONFIG_DIR", ".credentials.json"),),
        read=claude,
        sections=frozenset({"claudeAiOauth"}),
        service="Claude Code",
        otherwise="unlock the Keychain of macOS, or log in separately: account-pool login claude",
    ),
    "gemini": ToolLogin(
        how="run `gemini` and log in",
        paths=("~/.gemini/oauth_creds.json",),
        read=gemini,
        sections=frozenset({"access_token"}),
        service="gemini-cli",
        otherwise="log in to gemini again without the keychain, or log in separately",
    ),
    "copilot": ToolLogin(
        how="run `copilot` and log in",
        paths=("~/.config/github-copilot/apps.json", "~/.copilot/config.json"),
        moved_by=(("XDG_CONFIG_HOME", "github-copilot/apps.json"),),
        read=github,
        service="copilot-cli",
        otherwise="run: account-pool login copilot",
    ),
    "gh": ToolLogin(
        how="run `gh auth login`",
        paths=("~/.config/gh/hosts.yml",),
        moved_by=(
            ("GH_CONFIG_DIR", "hosts.yml"),
            ("XDG_CONFIG_HOME", "gh/hosts.yml"),
            ("APPDATA", "GitHub CLI/hosts.yml"),
        ),
        read=github,
        service="gh:",
        otherwise="write token: {command: gh auth token}",
    ),
    # Programs that people have print a token: `gcloud auth print-access-token`, `op read`, ...
    "gcloud": ToolLogin(how="run `gcloud auth login`"),
    "az": ToolLogin(how="run `az login`"),
    "op": ToolLogin(how="run `op signin`"),
    "bw": ToolLogin(how="run `bw login`"),
}
#: Those whose login is found in a file, as `account-pool login --from` names them.
WITH_FILE = tuple(name for name, login in LOGINS.items() if login.paths)


def find_login_file(tool: str, environ: Mapping[str, str]) -> Path:
    """Return where the login of *tool*, of WITH_FILE, is or would be. Raises KeyError."""
    home = Path(environ.get("HOME") or environ.get("USERPROFILE") or expanded("~"))
    login = LOGINS[tool]
    moved = [Path(environ[name]) / file for name, file in login.moved_by if environ.get(name)]
    candidates = [*moved, *(home / path.removeprefix("~/") for path in login.paths)]
    return next((path for path in candidates if is_file(path)), candidates[0])


def recognise(document: Any) -> Shape | None:
    """Return the login in *document*, whichever tool wrote it; None if there is none."""
    found = (login.read(document) for login in LOGINS.values())
    return next((shape for shape in found if shape is not None), None)


def tool_of(file: str, pointer: str | None) -> str | None:
    """Return the tool that keeps its login in a file of this name, at *pointer* in it."""
    section = (pointer or "").split("/")[1:2]
    for name, login in LOGINS.items():
        if file == login.file and (not section or login.sections.issuperset(section)):
            return name
    return None


def tool_of_service(service: str) -> str | None:
    """Return the tool that keeps its login in the keychain as *service*."""
    for name, login in LOGINS.items():
        if login.service and service.startswith(login.service):
            return name
    return None


def logged_out(tool: str | None) -> str | None:
    """Say what to do when *tool* holds no login; None for an unknown one."""
    login = LOGINS.get(tool or "")
    return None if login is None else f"its tool is logged out: {login.how}"


def log_in_again(provider: str, label: str) -> str:
    """Say what the owner of an account does whose login has ended."""
    tool = TOOLS.get(provider)
    if tool is None:
        return "write the tokens of a new login in accounts.yaml"
    return f"log in again: account-pool login {tool} --label {shlex.quote(label)} --renew"

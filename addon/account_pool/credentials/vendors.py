"""How the vendors' logins are refreshed, by the name of the provider.

Facts with their sources: providers.md, sections 3.3, 5 and 7.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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

#: The vendors' own tools, as `account-pool login --from` names them.
TOOLS: Mapping[str, str] = {"codex": "codex", "claude-code": "claude", "gemini-cli": "gemini"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolLogin:
    """How a tool logs in, and where it keeps its login.

    Attributes:
        how: what its user does to log in.
        files: names of the file, wherever a variable moves its folder.
        sections: top-level keys of the login in that file; none: any.
        service: how its item in the keychain of the system begins.
    """

    how: str
    files: frozenset[str] = frozenset()
    sections: frozenset[str] = frozenset()
    service: str = ""


#: By the name of the tool. Files: `vendor_files.DEFAULT_PATHS`, and where their sources are.
LOGINS: Mapping[str, ToolLogin] = {
    "claude": ToolLogin(how="run `claude` and log in", files=frozenset({".credentials.json"}),
        sections=frozenset({"claudeAiOauth"}), service="Claude Code"),
    "codex": ToolLogin(how="run `codex login`", files=frozenset({"auth.json"}),
        sections=frozenset({"tokens", "OPENAI_API_KEY"}), service="Codex"),
    "gemini": ToolLogin(how="run `gemini` and log in", files=frozenset({"oauth_creds.json"}),
        sections=frozenset({"access_token"}), service="gemini-cli"),
    "copilot": ToolLogin(how="run `copilot` and log in", files=frozenset({"apps.json"}),
        service="copilot-cli"),
    "gh": ToolLogin(how="run `gh auth login`", files=frozenset({"hosts.yml"}), service="gh:"),
    # Programs that people have print a token: `gcloud auth print-access-token`, `op read`, ...
    "gcloud": ToolLogin(how="run `gcloud auth login`"),
    "az": ToolLogin(how="run `az login`"),
    "op": ToolLogin(how="run `op signin`"),
    "bw": ToolLogin(how="run `bw login`"),
}  # fmt: skip


def tool_of(file: str, pointer: str | None) -> str | None:
    """Return the tool that keeps its login in a file of this name, at *pointer* in it."""
    section = (pointer or "").split("/")[1:2]
    for name, login in LOGINS.items():
        if file in login.files and (not section or login.sections.issuperset(section)):
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


def log_in_again(provider: str) -> str:
    """Say what the owner of an account does whose login has ended."""
    tool = TOOLS.get(provider)
    if tool is None:
        return "write the tokens of a new login in accounts.yaml"
    return f"log in with {tool} again and run: account-pool login --from {tool} --copy"

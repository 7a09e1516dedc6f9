"""How the vendors' logins are refreshed, by the name of the provider.

Facts with their sources: providers.md, sections 3.3, 5 and 7.
"""

from __future__ import annotations

from collections.abc import Mapping
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


def log_in_again(provider: str) -> str:
    """Say what the owner of an account does whose login has ended."""
    tool = TOOLS.get(provider)
    if tool is None:
        return "write the tokens of a new login in accounts.yaml"
    return f"log in with {tool} again and run: account-pool login --from {tool} --copy"

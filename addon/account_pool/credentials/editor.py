"""The editor headers of a Copilot token exchange.

GitHub wants to know which editor asks. The honest answer is the client that is using
the proxy, so its headers are remembered; until one was seen, the version the user
wrote in `pool_editor_version`, else this project's own name. No client is imitated
(providers.md, sections 1.2 and 11, item 14).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from account_pool.version import __version__

OWN_NAME = f"mitmproxy-account-pool/{__version__}"

#: What an exchange of a real editor carries beside its credential, lower case.
EDITOR_HEADERS = (
    "editor-version",
    "editor-plugin-version",
    "user-agent",
    "copilot-integration-id",
    "x-github-api-version",
)
#: A version or a product name; anything else is not repeated to GitHub.
_USUAL_VALUE = re.compile(r"[\x20-\x7e]{1,200}\Z")


class EditorHeaders:
    """Remembers the editor last seen. One object for all accounts; it survives reloads.

    Attributes:
        version: value of `pool_editor_version`, such as "vscode/1.104.0"; "" for none.
    """

    def __init__(self, version: str = "") -> None:
        self.version = version
        self._seen: Mapping[str, str] = {}

    def client_seen(self, headers: Mapping[str, str]) -> None:
        """Remember the editor headers of a client's request (lower-case names).

        A request without `editor-version` is not an editor's and changes nothing:
        command line clients do not exchange tokens.
        """
        if _USUAL_VALUE.match(headers.get("editor-version", "")):
            self._seen = {
                name: headers[name]
                for name in EDITOR_HEADERS
                if _USUAL_VALUE.match(headers.get(name, ""))
            }

    def headers(self) -> dict[str, str]:
        """Return the headers an exchange takes, lower-case names."""
        own = {"user-agent": OWN_NAME, "editor-version": self.version.strip() or OWN_NAME}
        # A client that has no user-agent of its own gets ours: GitHub requires one.
        return {**own, **self._seen}

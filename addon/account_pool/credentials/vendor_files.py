"""Reads the logins that the vendors' own tools keep on this machine. Never writes them.

A refresh token found here belongs to the tool: whoever uses it first leaves the other
without a login (providers.md, section 3.3). So it is for `account-pool login --from`,
which says so; accounts that name such a file only ever read the access token in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from account_pool.core.credential import Secret
from account_pool.credentials.errors import CredentialError
from account_pool.credentials.files import read_private
from account_pool.credentials.instants import read_instant
from account_pool.credentials.sources import usable
from account_pool.credentials.vendor_shapes import SHAPES

#: Where the tools keep their logins, first choice first; "~" is the home directory.
DEFAULT_PATHS: Mapping[str, tuple[str, ...]] = {
    "codex": ("~/.codex/auth.json",),
    "claude": ("~/.claude/.credentials.json",),
    "gemini": ("~/.gemini/oauth_creds.json",),
    "copilot": ("~/.config/github-copilot/apps.json", "~/.copilot/config.json"),
    "gh": ("~/.config/gh/hosts.yml",),
}
#: Variables that move them: the name, and the file below the directory it names.
_MOVED_BY: Mapping[str, tuple[tuple[str, str], ...]] = {
    "codex": (("CODEX_HOME", "auth.json"),),
    "claude": (("CLAUDE_CONFIG_DIR", ".credentials.json"),),
    "copilot": (("XDG_CONFIG_HOME", "github-copilot/apps.json"),),
    "gh": (
        ("GH_CONFIG_DIR", "hosts.yml"),
        ("XDG_CONFIG_HOME", "gh/hosts.yml"),
        ("APPDATA", "GitHub CLI/hosts.yml"),
    ),
}
#: What to do when the tool keeps its login in the keychain of the system instead.
_IN_KEYCHAIN: Mapping[str, str] = {
    "codex": 'set cli_auth_credentials_store = "file" in its config.toml and log in again',
    "claude": "on macOS it is in the Keychain; write token: {keychain: Claude Code-credentials, "
    "pointer: /claudeAiOauth/accessToken}, or log in separately with `claude setup-token`",
    "gemini": "log in to gemini again without the keychain, or log in separately",
    "copilot": "run: account-pool login copilot",
    "gh": "write token: {command: gh auth token}",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class VendorLogin:
    """A login of a vendor's tool.

    Attributes:
        provider: whose accounts it can serve.
        access: what goes on the wire, or what is exchanged for it.
        refresh: gets new ones; it belongs to the tool.
        expires_at: when *access* ends, seconds since the epoch; None if not said.
        companions: what moves with it, e.g. account_id.
    """

    provider: str
    access: Secret
    refresh: Secret | None = None
    expires_at: float | None = None
    companions: dict[str, str] = field(default_factory=dict)


def find_vendor_file(vendor: str, environ: Mapping[str, str]) -> Path:
    """Return where the login of *vendor* is, or would be. Raises KeyError for an unknown one."""
    home = Path(environ.get("HOME") or environ.get("USERPROFILE") or Path.home())
    moved = [
        Path(environ[name]) / file for name, file in _MOVED_BY.get(vendor, ()) if environ.get(name)
    ]
    usual = [home / path.removeprefix("~/") for path in DEFAULT_PATHS[vendor]]
    candidates = [*moved, *usual]
    return next((path for path in candidates if path.is_file()), candidates[0])


def read_vendor_file(vendor: str, path: Path) -> VendorLogin:
    """Return the login that the tool *vendor*, a key of DEFAULT_PATHS, keeps at *path*.

    Raises CredentialError, also when the tool keeps it in the system's keychain.
    """
    name = str(path)
    if not path.exists():
        raise CredentialError(f"the file {name} does not exist", _otherwise(vendor))
    document = _document(read_private(path, name), name)
    shape = SHAPES[vendor](document)
    if shape is None or not isinstance(shape.access, str) or not shape.access:
        raise CredentialError(f"the file {name} holds no login of {vendor}", _otherwise(vendor))
    refresh = shape.refresh if isinstance(shape.refresh, str) and shape.refresh else None
    return VendorLogin(
        provider=shape.provider,
        access=usable(shape.access, f"the token in {name}"),
        refresh=None if refresh is None else usable(refresh, f"the refresh token in {name}"),
        expires_at=read_instant(shape.expires_at),
        companions=dict(shape.companions),
    )


def _otherwise(vendor: str) -> str:
    return (
        f"log in with {vendor} first, or name its file; where it uses the keychain: "
        + (_IN_KEYCHAIN[vendor])
    )


def _document(text: str, name: str) -> Any:
    """Return *text* as JSON, or as the YAML of gh. Raises CredentialError."""
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        # All of it as text: nothing in it is a number or a date.
        return yaml.load(text, Loader=yaml.BaseLoader)  # noqa: S506 - makes text, lists, mappings
    except (yaml.YAMLError, RecursionError):
        # `from None`: the error quotes the document, which is a secret.
        raise CredentialError(
            f"the file {name} is neither JSON nor YAML", "name the file of the login"
        ) from None

"""A home for Codex with a placeholder for a login, for a pool of ChatGPT accounts.

Codex asks how to sign in before it sends anything, and looks only into its home. So it gets one
whose login is worth nothing, and where everything else is the user's own, by links: settings,
instructions, sessions. Nothing is written to the user's own home.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import tomllib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from account_pool.cli.places import CONFDIR, write_whole
from account_pool.config.replace import make_private

#: Marks a login that is none, also where Codex has written it anew.
PLACEHOLDER = "account-pool-placeholder"
_ACCOUNT = "00000000-0000-4000-8000-000000000000"
#: 2100-01-01: it would ask for another one before it ends.
_ENDS_AT = 4102444800
_LOGIN = "auth.json"
#: What belongs to the login: never the user's own.
_NOT_LINKED = frozenset({_LOGIN, "auth.lock", "auth.json.lock"})
#: What is copied where there are no links (Windows, without the right to make them).
_COPIED = ("config.toml",)


def placeholder_home(own: Path) -> Path:
    """Return a home for Codex with a placeholder login, like *own* else. Raises OSError."""
    home = Path(CONFDIR).expanduser() / "account-pool-codex-home"
    make_private(home)
    _link(own, home)
    login = home / _LOGIN
    # Somebody may have logged in there: that is theirs.
    if not login.exists() or PLACEHOLDER in login.read_text("utf-8", "replace"):
        # Whole: another Codex may be reading it.
        write_whole(login, json.dumps(_login(datetime.now(UTC))))
    return home


def own_home(environ: Mapping[str, str]) -> Path:
    """Return the home that Codex has without us."""
    if named := environ.get("CODEX_HOME"):
        return Path(named)
    return Path(environ.get("HOME") or environ.get("USERPROFILE") or Path.home()) / ".codex"


def may_have_login(own: Path) -> bool:
    """Say whether Codex may have a login that is not in a file: settings can name a keychain."""
    try:
        settings = tomllib.loads((own / "config.toml").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return settings.get("cli_auth_credentials_store") in ("keyring", "auto")


def _link(own: Path, home: Path) -> None:
    """Let *home* have what is in *own*; what is gone there is gone here."""
    for entry in home.iterdir():
        if entry.is_symlink() and not entry.exists():
            entry.unlink()
    if not own.is_dir() or own.resolve() == home.resolve():
        return
    for entry in own.iterdir():
        link = home / entry.name
        # Codex may have made its own meanwhile, such as its sessions: they stay.
        if entry.name in _NOT_LINKED or os.path.lexists(link):
            continue
        try:
            link.symlink_to(entry.absolute(), target_is_directory=entry.is_dir())
        except OSError:
            if entry.name in _COPIED:
                shutil.copyfile(entry, link)


def _login(now: datetime) -> dict[str, object]:
    about = {"chatgpt_account_id": _ACCOUNT, "chatgpt_plan_type": "plus"}
    token = _token({"exp": _ENDS_AT, "https://api.openai.com/auth": about})
    return {
        "auth_mode": "chatgpt",
        "OPENAI_API_KEY": None,
        "tokens": {
            "id_token": token,
            "access_token": token,
            "refresh_token": PLACEHOLDER,
            "account_id": _ACCOUNT,
        },
        # It asks for new tokens when the last ones are 8 days old.
        "last_refresh": now.isoformat().replace("+00:00", "Z"),
    }


def _token(claims: Mapping[str, object]) -> str:
    """Return *claims* as a JWT that nobody has signed."""
    parts = (json.dumps({"alg": "none", "typ": "JWT"}), json.dumps(claims), PLACEHOLDER)
    return ".".join(base64.urlsafe_b64encode(p.encode()).decode().rstrip("=") for p in parts)

"""`account-pool login`: adds an account to accounts.yaml.

Either one that a vendor's own tool is logged in with (its files are read, never
written), or a new login to GitHub for Copilot. Shows names and places, no token.
"""

from __future__ import annotations

import asyncio
import shutil
import ssl
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from account_pool.cli.add import write
from account_pool.cli.output import fail
from account_pool.config.accounts_file import shown
from account_pool.config.edit import require_editable
from account_pool.config.replace import CannotEdit
from account_pool.core.account import normalise_label
from account_pool.core.credential import Secret
from account_pool.credentials import device_flow, gemini_client
from account_pool.credentials.errors import CredentialError
from account_pool.credentials.files import VendorLogin, read_vendor_login
from account_pool.credentials.http import Http, check_token_url
from account_pool.credentials.keychain import KeychainSource
from account_pool.credentials.reading import written_instant
from account_pool.credentials.sources import literal
from account_pool.credentials.vendor_logins import VENDORS, WITH_FILE, find_login_file
from account_pool.providers.base import HTTPS_PORT, HostRule
from account_pool.providers.registry import BUILT_IN

#: Exit code when the user presses Ctrl-C, as shells have it.
INTERRUPTED = 130

#: Stands for the token while it is tried whether an account can be added.
_NO_TOKEN = "gho_not-yet"  # noqa: S105 - the words

GH_COMMAND = "gh auth token"


class CannotLogIn(Exception):
    """The login came to nothing; the text says why and what to do."""


def login_from(
    tool: str,
    label: str,
    path: Path,
    environ: Mapping[str, str],
    *,
    file: Path | None = None,
    copy: bool = False,
) -> int:
    """Add the account that *tool* is logged in with, by its *file*. Returns the exit code."""
    try:
        normalise_label(label)
        if tool not in WITH_FILE:
            raise CannotLogIn(f"--from {tool}: write one of {', '.join(WITH_FILE)}")
        account, where = _account_of(tool, label, environ, file, copy)
        write(path, account, environ, private=copy)
    except (CredentialError, CannotLogIn, CannotEdit, ValueError) as error:
        return fail(error)
    print(f"added {account['provider']}/{normalise_label(label)} to {shown(path)}: {where}")
    if copy and "oauth" in account["token"]:
        print(
            f"{tool} must log in again now: a refresh token works only once, so whichever "
            "uses it second is logged out."
        )
    return 0


def login_copilot(
    label: str,
    path: Path,
    environ: Mapping[str, str],
    *,
    host: str | None,
    base_url: str | None,
    proxy: str | None,
) -> int:
    """Log in to GitHub, or to the GHE.com tenant *host*. Returns the exit code."""
    try:
        normalise_label(label)
        tenant = None if host is None else _tenant(host)
        base = base_url or (f"https://{tenant}" if tenant else device_flow.GITHUB)
        check_token_url(base)
        provider = None if tenant is None else _provider_of(tenant)
        account = {"provider": provider[0] if provider else "copilot", "label": label}
        # Before the user types in a code for a token that could not be stored.
        require_editable(path, {**account, "token": _NO_TOKEN}, environ, provider=provider)
        http = Http(trust=ssl.create_default_context, proxy=proxy)
        token = asyncio.run(_device_login(http, base.rstrip("/")))
        account["token"] = literal(token)
        write(path, account, environ, private=True, provider=provider)
    except KeyboardInterrupt:
        return fail("interrupted; nothing was written", INTERRUPTED)
    except (CredentialError, CannotLogIn, CannotEdit, ValueError) as error:
        return fail(error)
    print(f"added {account['provider']}/{normalise_label(label)} to {shown(path)}")
    return 0


# -- from a vendor's tool


def _account_of(
    tool: str, label: str, environ: Mapping[str, str], file: Path | None, copy: bool
) -> tuple[dict[str, Any], str]:
    """Return the account and where its token is. Raises CredentialError, CannotLogIn."""
    if tool == "gh" and file is None and not copy:
        if shutil.which("gh", path=environ.get("PATH")) is None:
            raise CannotLogIn("gh is not installed, or not on PATH; run account-pool login copilot")
        token = {"command": GH_COMMAND}
        return {"provider": "copilot", "label": label, "token": token}, f"asks {GH_COMMAND}"
    named, file = file, file or find_login_file(tool, environ)
    if named is None and not copy and not file.exists() and (item := _keychain_item(tool)):
        account = {"provider": _KEYCHAIN_ITEMS[tool][0], "label": label}
        where = f"reads the keychain item {item}, which {tool} keeps fresh"
        return {**account, "token": {"keychain": item}}, where
    login = read_vendor_login(tool, file)
    place = shown(file.absolute())
    account = {"provider": login.provider, "label": label}
    if not copy:
        return {**account, "token": {"file": place}}, f"reads {place}, which {tool} keeps fresh"
    client: Mapping[str, str] = {}
    if tool == "gemini" and login.refresh is not None:
        program = shutil.which("gemini", path=environ.get("PATH"))
        if program is None:
            raise CannotLogIn(
                "gemini is not on PATH: Google refreshes its logins only for its own client_id "
                "and client_secret, which are read from it; omit --copy, so that it keeps its "
                "login fresh"
            )
        client = gemini_client.find(program, login.client_id)
    written = copied(tool, login, client, login.companions)
    return {**account, **written}, f"holds a copy of what is in {place}"


#: The provider and the item of tools that may keep their login in the keychain of the system.
_KEYCHAIN_ITEMS = {
    "claude": ("claude-code", "Claude Code-credentials"),
    "codex": ("codex", "Codex Auth"),
}


def _keychain_item(tool: str) -> str | None:
    """Return the item of the keychain in which *tool* has a login, None if there is none."""
    if tool not in _KEYCHAIN_ITEMS:
        return None
    item = _KEYCHAIN_ITEMS[tool][1]
    # One that is locked, or not there, or without a login is no place either.
    with suppress(CredentialError):
        asyncio.run(KeychainSource(item).reading())
        return item
    return None


def copied(
    tool: str, login: VendorLogin, client: Mapping[str, str], companions: Mapping[str, str]
) -> dict[str, Any]:
    """Return *login* as it is written down: its `token:`, and what belongs to it.

    *client* is the application that was logged in with, where the pool does not know it.
    Raises CannotLogIn.
    """
    known = BUILT_IN[login.provider].companions
    belongs = {name: value for name, value in companions.items() if name in known}
    return {"token": _tokens(tool, login, client), **belongs}


def _tokens(tool: str, login: VendorLogin, client: Mapping[str, str]) -> Any:
    if login.refresh is None:
        if login.expires_at is not None:
            raise CannotLogIn(
                f"the login of {tool} expires and has no refresh token; omit --copy, so that "
                f"{tool} keeps it fresh"
            )
        return literal(login.access)
    oauth = {"access_token": literal(login.access), "refresh_token": literal(login.refresh)}
    if login.expires_at is not None:
        oauth["expires_at"] = written_instant(login.expires_at)
    if login.login_ends_at is not None:
        oauth["refresh_expires_at"] = written_instant(login.login_ends_at)
    usual = VENDORS.get(login.provider, {}).get("client_id")
    if login.client_id not in (None, usual) and not client:
        client = {"client_id": login.client_id}
    return {"oauth": oauth | {name: literal(Secret(text)) for name, text in client.items()}}


# -- with GitHub


async def _device_login(http: Http, base: str) -> Secret:
    code = await device_flow.request_code(http.ask, base)
    print(f"Open {code.page} and enter {code.text}", flush=True)
    print("Waiting for GitHub; Ctrl-C to give up.", flush=True)
    return await device_flow.wait_for_token(
        http.ask, code, base=base, clock=time.monotonic, sleep=asyncio.sleep
    )


def _tenant(host: str) -> str:
    """Return the tenant's host, such as acme.ghe.com. Raises CannotLogIn."""
    try:
        rule = HostRule.parse(host)
    except ValueError as error:
        raise CannotLogIn(f"--host {error}") from None
    if rule.subdomains or rule.port != HTTPS_PORT or not rule.host.endswith(".ghe.com"):
        raise CannotLogIn(f"--host {host}: write the tenant's host, such as acme.ghe.com")
    return rule.host


def _provider_of(tenant: str) -> tuple[str, dict[str, Any]]:
    """Return the provider, name and definition, of a tenant with data residency."""
    return f"ghe-{tenant.removesuffix('.ghe.com').replace('.', '-')}", {
        "like": "copilot",
        "hosts": [f"copilot-api.{tenant}", f"api.{tenant}"],
        "token_url": f"https://api.{tenant}/copilot_internal/v2/token",
    }

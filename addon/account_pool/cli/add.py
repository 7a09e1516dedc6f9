"""`account-pool add` and `login`: an account with a key or a login, written for the pool to find.

The key comes from a prompt that does not show it, from standard input where that is no
terminal, or stays where it is: in a variable, a file or the keychain. It is never an argument,
which other users of the machine could see. Whose it is, its form tells where nobody says it.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import shutil
import ssl
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from account_pool.cli.output import Failed, fail, note, show_json, warn
from account_pool.config.accounts_file import command, shown
from account_pool.config.edit import Entry, add_account, require_editable
from account_pool.config.loader import load, source_of
from account_pool.config.problems import CannotEdit, ConfigError
from account_pool.config.review import review
from account_pool.core.account import AccountKey, normalise_label
from account_pool.core.credential import Secret
from account_pool.credentials.http import Http, check_token_url
from account_pool.credentials.keychain import KeychainSource
from account_pool.credentials.new_logins import (
    GITHUB,
    VendorLogin,
    gemini_client,
    read_vendor_login,
    request_code,
    wait_for_token,
)
from account_pool.credentials.sources import (
    CredentialError,
    literal,
    usable,
    written_instant,
)
from account_pool.credentials.vendor_logins import VENDORS, WITH_FILE, find_login_file
from account_pool.filesystem import named_path
from account_pool.providers.base import HTTPS_PORT, HostRule
from account_pool.providers.registry import BUILT_IN
from account_pool.providers.token_forms import form_of, is_token

#: Far more than any key has.
_MAX_KEY_CHARS = 64 * 1024
#: Stands for the key while it is checked whether the account can be added.
_NO_KEY = "not-yet"
#: Providers whose accounts are logins that end within hours, and the tool that has them.
_LOGINS: Mapping[str, str] = {"codex": "codex", "gemini-cli": "gemini"}


@dataclass(frozen=True, slots=True, kw_only=True)
class AddOptions:
    """What the user asked for.

    Attributes:
        words: provider and label, both optional: `openai work`, `openai/work`, `openai`, `work`.
        env, file, keychain: where the key is; none of them: it is stored.
        pointer: where in the JSON of that file or item.
        host: of accounts that have one each (azure).
    """

    words: Sequence[str] = ()
    env: str | None = None
    file: Path | None = None
    keychain: str | None = None
    pointer: str | None = None
    host: str | None = None

    def source(self) -> dict[str, str] | None:
        """Return where the key stays, None where it is to be stored."""
        if self.env is not None:
            return {"env": self.env}
        if self.keychain is not None:
            source = {"keychain": self.keychain}
        elif self.file is not None:
            source = {"file": shown(named_path(self.file).absolute())}
        else:
            return None
        return source | {"pointer": self.pointer} if self.pointer else source


def add_key(
    options: AddOptions, path: Path, environ: Mapping[str, str], *, as_json: bool = False
) -> int:
    """Add an account to *path*, asking for its key. Returns the exit code."""
    try:
        provider, label = named(options.words, _providers(path, environ))
        source, secret = options.source(), None
        if provider is None:
            secret = _ask("the key") if source is None else _read(source, environ)
            provider = provider_of(secret)
        label = "default" if label is None else label
        key = AccountKey(provider, normalise_label(label))
        if tool := _LOGINS.get(provider):
            raise CannotEdit(f"accounts of {provider} are logins: {command()} login --from {tool}")
        entry = {"provider": provider, "label": label}
        entry |= {"host": options.host} if options.host else {}
        if source is None and secret is None:
            # Before the user looks for a key that could not be stored.
            require_editable(path, {**entry, "token": _NO_KEY}, environ)
            secret = _ask(str(key))
        token = source or literal(secret or Secret(""))
        backup = add_account(path, {**entry, "token": token}, environ, private=source is None)
    except (CredentialError, CannotEdit, ValueError) as error:
        return fail(error)
    if as_json:
        show_json({"added": str(key), "written_to": str(path), "backup": backup and str(backup)})
    else:
        _tell(backup)
        print(f"added {key} to {shown(path)}")
    _mind_directory(path, private=source is None)
    _review(path, key, environ)
    return 0


def _read(source: Mapping[str, str], environ: Mapping[str, str]) -> Secret:
    """Return the key from where it stays. Raises CredentialError, Wrong."""
    read = source_of(source, environ, Path.cwd(), ("", "")).read()
    return asyncio.run(read).secret


def named(words: Sequence[str], known: Collection[str]) -> tuple[str | None, str | None]:
    """Return the provider and the label that *words* name, None for what they do not.

    *known* are the providers there are. Raises ValueError for what is probably a slip.
    """
    if any(map(is_token, words)):
        raise ValueError(
            "that looks like a key: leave it out, it is asked for (others can see a command line)"
        )
    match [word.strip() for word in words]:
        case [provider, label]:
            return provider.lower(), label
        case [word] if "/" in word:
            key = AccountKey.parse(word)
            return key.provider, key.label
        case [word] if word.lower() in known:
            return word.lower(), None
        case [word]:
            if close := get_close_matches(word.lower(), known, 1, 0.8):
                raise ValueError(f"{word} is no provider; did you mean {close[0]}?")
            return None, word
        case _:
            return None, None


def provider_of(secret: Secret) -> str:
    """Return whose key *secret* is, by its form. Raises ValueError where that does not tell."""
    form = form_of(secret.reveal())
    name_it = f"name the provider: {command()} add PROVIDER LABEL"
    if form is None:
        raise ValueError(f"the form of this key does not tell whose it is; {name_it}")
    if not form.providers:
        raise ValueError(f"this is {form.what}, which no account takes")
    if len(form.providers) > 1:
        raise ValueError(f"this is {form.what}, for {' or '.join(form.providers)}; {name_it}")
    return form.providers[0]


def _providers(path: Path, environ: Mapping[str, str]) -> Collection[str]:
    with contextlib.suppress(ConfigError):
        if path.exists():
            return load(path, environ).providers
    return BUILT_IN


def write(path: Path, account: Entry, environ: Mapping[str, str], **settings: Any) -> None:
    """Add *account* to *path*, as `edit.add_account` does, and say what else there is to know."""
    _tell(add_account(path, account, environ, **settings))
    _mind_directory(path, private=bool(settings.get("private")))


def _tell(backup: Path | None) -> None:
    if backup is not None:
        print(f"the previous file is kept as {shown(backup)}")


def _mind_directory(path: Path, *, private: bool) -> None:
    if private and path.absolute().parent == Path.cwd():
        note(f"{path.name} in this directory holds a credential: keep it out of version control")


def _review(path: Path, key: AccountKey, environ: Mapping[str, str]) -> None:
    """Say what looks wrong with the new account *key*, and stops nothing."""
    with contextlib.suppress(ConfigError):
        found = review(load(path, environ), wall_now=time.time())
        warn(*(one for one in (*found.notices, *found.unreadable) if one.key == str(key)))


def _ask(whose: str) -> Secret:
    """Return the key the user types in or pipes. Raises CredentialError."""
    if sys.stdin.isatty():
        what = "Key" if whose == "the key" else f"Key of {whose}"
        text = getpass.getpass(f"{what} (it is not shown): ")
    else:
        text = sys.stdin.read(_MAX_KEY_CHARS)
    if not text.strip():
        raise CredentialError(
            "no key was given",
            "type it in or pipe it in, or name where it is with --env, --file or --keychain",
        )
    return usable(text, "the key")


# -- `account-pool login`: by a tool's login, whose files are only read, or a new one at GitHub

#: Exit code when the user presses Ctrl-C, as shells have it.
INTERRUPTED = 130

#: Stands for the token while it is tried whether an account can be added.
_NO_TOKEN = "gho_not-yet"  # noqa: S105 - the words

GH_COMMAND = "gh auth token"


class CannotLogIn(Failed):
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
        base = base_url or (f"https://{tenant}" if tenant else GITHUB)
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
        client = gemini_client(program, login.client_id)
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
        asyncio.run(KeychainSource(item).read())
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
    code = await request_code(http.ask, base)
    print(f"Open {code.page} and enter {code.text}", flush=True)
    print("Waiting for GitHub; Ctrl-C to give up.", flush=True)
    return await wait_for_token(
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

"""`account-pool add`: an account with a key, written down where the pool finds it.

The key comes from a prompt that does not show it, from standard input where that is no
terminal, or stays where it is: in a variable, a file or the keychain. It is never an argument,
which other users of the machine could see. Whose it is, its form tells where nobody says it.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from account_pool.cli.output import fail, note, show_json, warn
from account_pool.config.accounts_file import command, shown
from account_pool.config.edit import Entry, add_account, require_editable
from account_pool.config.loader import load
from account_pool.config.problems import ConfigError
from account_pool.config.replace import CannotEdit
from account_pool.config.review import review
from account_pool.core.account import AccountKey, normalise_label
from account_pool.core.credential import Secret
from account_pool.credentials.errors import CredentialError
from account_pool.credentials.files import FileSource
from account_pool.credentials.keychain import KeychainSource
from account_pool.credentials.sources import EnvSource, literal, usable
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
        env: the variable that holds the key; None: it is stored.
        file: the file that holds it.
        keychain: the item of the system's keychain that holds it.
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
            source = {"file": shown(self.file.expanduser().absolute())}
        else:
            return None
        return source | {"pointer": self.pointer} if self.pointer else source

    def read(self, environ: Mapping[str, str]) -> Secret:
        """Return the key from where it stays. Raises CredentialError."""
        if self.env is not None:
            return EnvSource(self.env, environ).read_now()
        if self.keychain is not None:
            return asyncio.run(KeychainSource(self.keychain, self.pointer).read())
        assert self.file is not None
        path = self.file.expanduser().absolute()
        return asyncio.run(FileSource(path, self.pointer, str(self.file)).read())


def add_key(
    options: AddOptions, path: Path, environ: Mapping[str, str], *, as_json: bool = False
) -> int:
    """Add an account to *path*, asking for its key. Returns the exit code."""
    try:
        provider, label = named(options.words, _providers(path, environ))
        source, secret = options.source(), None
        if provider is None:
            secret = _ask("the key") if source is None else options.read(environ)
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

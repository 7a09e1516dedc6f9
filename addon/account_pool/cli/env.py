"""`account-pool env`: the variables in the words of a shell: set, unset, quoted."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePath

from account_pool.cli.output import fail, note
from account_pool.cli.places import Places
from account_pool.core.account import AccountKey


class Shell(StrEnum):
    """A shell `account-pool env` can write for."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"
    POWERSHELL = "powershell"


_BY_NAME = {shell.value: shell for shell in Shell}
#: Others that read the same language.
_LIKE = {"sh": Shell.BASH, "dash": Shell.BASH, "ksh": Shell.BASH, "pwsh": Shell.POWERSHELL}


@dataclass(frozen=True, slots=True)
class _Words:
    """How a shell says it: {name}, {value} quoted already, {command} that prints it."""

    set: str
    unset: str
    use: str


_POSIX = _Words("export {name}={value}", "unset {name}", 'eval "$({command})"')
_WORDS = {
    Shell.BASH: _POSIX,
    Shell.ZSH: _POSIX,
    Shell.FISH: _Words("set -gx {name} {value}", "set -e {name}", "{command} | source"),
    Shell.POWERSHELL: _Words(
        "$env:{name} = {value}",
        "Remove-Item Env:{name} -ErrorAction SilentlyContinue",
        "{command} | Out-String | Invoke-Expression",
    ),
}


def set_lines(shell: Shell, variables: Mapping[str, str]) -> list[str]:
    """Return one line for each variable that sets it for the shell and its children."""
    words = _WORDS[shell].set
    return [words.format(name=n, value=quote(shell, value)) for n, value in variables.items()]


def unset_lines(shell: Shell, names: Iterable[str]) -> list[str]:
    """Return one line for each name that removes it; without an error where it is not set."""
    return [_WORDS[shell].unset.format(name=name) for name in names]


def hint(shell: Shell, command: str) -> str:
    """Return the comment that says how to use what *command* prints."""
    return f"# use it: {_WORDS[shell].use.format(command=command)}"


def quote(shell: Shell, text: str) -> str:
    """Return *text* as one word of *shell* that stands for itself."""
    match shell:
        case Shell.BASH | Shell.ZSH:
            return shlex.quote(text)
        case Shell.FISH:
            # Between single quotes fish knows two escapes, and no others.
            return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
        case Shell.POWERSHELL:
            # PowerShell takes typographic quotes for quotes.
            return "'" + "".join(c * 2 if c in "'‘’‚‛" else c for c in text) + "'"  # noqa: RUF001


def named(name: str) -> Shell | None:
    """Return the shell of that *name* or path, None if it is none of ours."""
    short = PurePath(name.replace("\\", "/")).name.lower().removesuffix(".exe").lstrip("-")
    return _LIKE.get(short) or _BY_NAME.get(short)


def detect(environ: Mapping[str, str]) -> Shell:
    """Return the shell that called us; where it cannot be seen, the user's usual one."""
    import shellingham

    try:
        found = named(shellingham.detect_shell()[0])
    except (shellingham.ShellDetectionFailure, OSError):
        found = None
    usual = named(environ.get("SHELL", ""))
    return found or usual or (Shell.POWERSHELL if os.name == "nt" else Shell.BASH)


def print_env(
    port: int,
    shell: Shell | None,
    environ: Mapping[str, str],
    *,
    unset: bool,
    accounts: Sequence[AccountKey] = (),
) -> int:
    """Print what sets the variables, or removes them. Returns 0, or 1 after a line on stderr.

    A proxy need not run yet: the line on stderr then says so, and the variables stand. By the
    *accounts* alone tools are served, if there are any.
    """
    # The command line imports this module for the names of the shells.
    from account_pool.cli import api
    from account_pool.cli.accounts import pool_with
    from account_pool.cli.bundle import write_trust
    from account_pool.cli.environment import (
        ALL_VARIABLES,
        NO_PROXY_VARIABLES,
        proxy_url,
        variables,
    )
    from account_pool.providers.registry import BUILT_IN

    shell = shell or detect(environ)
    if unset:
        # What NO_PROXY held was the user's own.
        names = [name for name in ALL_VARIABLES if name not in NO_PROXY_VARIABLES]
        lines = unset_lines(shell, names)
    else:
        places = Places.usual(port)
        try:
            trust = write_trust(places, environ)
        except OSError as error:
            return fail(f"{error.filename}: {error.strerror}")
        hosts = [rule for name in BUILT_IN for rule in BUILT_IN.hosts(name)]
        url = proxy_url(places.url, map(str, accounts))
        lines = set_lines(shell, variables(url, trust, hosts, environ))
        if not isinstance(api.probe(port), api.Health):
            note(api.no_proxy(port))
        elif accounts:
            try:
                pool_with(port, accounts)
            except api.NoAnswer as error:
                return fail(error)
    if sys.stdout.isatty():
        lines.append(hint(shell, f"account-pool env{' --unset' if unset else ''}"))
    print("\n".join(lines))
    return 0

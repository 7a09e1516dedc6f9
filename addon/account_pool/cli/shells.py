"""Variables in the words of a shell: set, unset, quoted. Pure, but for `detect`."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePath


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
    import shellingham  # noqa: PLC0415 - only this needs it

    try:
        found = named(shellingham.detect_shell()[0])
    except (shellingham.ShellDetectionFailure, OSError):
        found = None
    usual = named(environ.get("SHELL", ""))
    return found or usual or (Shell.POWERSHELL if os.name == "nt" else Shell.BASH)

"""Which variables a tool gets: proxy, trust, a key; and `account-pool env`, which prints them.

Values in, variables out, but for `print_env`. Which variables name certificates: `certificates.py`.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from urllib import parse

import shellingham

from account_pool.cli import api
from account_pool.cli.accounts import pool_with
from account_pool.cli.arguments import Shell
from account_pool.cli.certificates import BUNDLE_VARIABLES, EXTRA_VARIABLES, Trust, write_trust
from account_pool.cli.output import note
from account_pool.cli.processes import HOST, Places
from account_pool.core.account import AccountKey
from account_pool.providers.base import HostRule
from account_pool.providers.registry import BUILT_IN

#: Where clients look for the proxy of https addresses; curl and others read the lower case
#: only (measured). Plain http is left alone: no provider answers there.
PROXY_VARIABLES = ("HTTPS_PROXY", "https_proxy")
#: Hosts that are reached without it.
NO_PROXY_VARIABLES = ("NO_PROXY", "no_proxy")

#: Node 24's own fetch reads the proxy variables only with it.
SWITCHES = {"NODE_USE_ENV_PROXY": "1"}

#: Every variable `account-pool env` may set, in the order it prints them.
ALL_VARIABLES = (
    *PROXY_VARIABLES,
    *NO_PROXY_VARIABLES,
    *BUNDLE_VARIABLES,
    *EXTRA_VARIABLES,
    *SWITCHES,
)


def variables(
    proxy_url: str, trust: Trust, hosts: Iterable[HostRule], present: Mapping[str, str]
) -> dict[str, str]:
    """Return what to set so that a tool goes through the proxy and trusts it.

    No NO_PROXY of *present*, the environment as it is, may lead round the proxy to *hosts*.
    """
    chosen = dict.fromkeys(PROXY_VARIABLES, proxy_url)
    hosts = tuple(hosts)
    for name in NO_PROXY_VARIABLES:
        if (old := present.get(name)) and (new := without_hosts(old, hosts)) != old:
            chosen[name] = new
    chosen |= dict.fromkeys(BUNDLE_VARIABLES, str(trust.bundle))
    chosen |= dict.fromkeys(EXTRA_VARIABLES, str(trust.extra))
    return chosen | SWITCHES


def proxy_url(url: str, accounts: Iterable[str]) -> str:
    """Return *url* of the proxy with *accounts* as the user name, by which they alone serve."""
    user = parse.quote(",".join(accounts), safe="")
    # Some clients send no user name without a password, which says nothing here.
    return url.replace("://", f"://{user}:pool@", 1) if user else url


def is_proxy(url: str, own: str) -> bool:
    """Say whether *url* leads to the proxy at *own*, by whatever user name."""
    scheme, _, rest = url.rstrip("/").partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}" == own


def without_own_proxy(environ: Mapping[str, str], own: str) -> dict[str, str]:
    """Return the environment of the proxy at *own*: it must not go through itself."""
    return {n: v for n, v in environ.items() if n not in PROXY_VARIABLES or not is_proxy(v, own)}


def without_hosts(no_proxy: str, hosts: Collection[HostRule]) -> str:
    """Return the list *no_proxy* without the entries that cover one of *hosts*."""
    entries = [entry.strip() for entry in no_proxy.split(",")]
    kept = [e for e in entries if e and not any(_covers(e.lower(), rule) for rule in hosts)]
    return no_proxy if len(kept) == len(entries) else ",".join(kept)


def _covers(entry: str, rule: HostRule) -> bool:
    """Say whether *entry* of a NO_PROXY may keep a client from the proxy for *rule*.

    Tools disagree on details (a leading dot or star, a port): the widest reading counts.
    """
    if entry == "*":
        return True
    name = _without_port(entry).removeprefix("*").removeprefix(".").strip("[]")
    if not name:
        return False
    if rule.host == name or rule.host.endswith("." + name):
        return True
    return rule.subdomains and name.endswith("." + rule.host)


def _without_port(entry: str) -> str:
    host, colon, port = entry.rpartition(":")
    # An IPv6 address has colons of its own.
    return host if colon and port.isdigit() and (":" not in host or host.endswith("]")) else entry


# -- keys for tools that refuse to start without one
#
# What a tool sends is replaced by an account's credential, so any text in the right shape will
# do. A tool that has a key or a login keeps it.

_TEXT = "account-pool-placeholder"

_ANTHROPIC = {"ANTHROPIC_API_KEY": f"sk-ant-api03-{_TEXT}"}
_CLAUDE_CODE = {"CLAUDE_CODE_OAUTH_TOKEN": f"sk-ant-oat01-{_TEXT}"}
_COPILOT = {"COPILOT_GITHUB_TOKEN": f"gho_{_TEXT.replace('-', '0')}"}
_GEMINI = {"GEMINI_API_KEY": f"AIza-{_TEXT}"}
#: With a login in a file it asks Google whether that is good before it starts.
_GEMINI_CLI = {"GOOGLE_GENAI_USE_GCA": "true", "GOOGLE_CLOUD_ACCESS_TOKEN": f"ya29.{_TEXT}"}


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool by the name of its command.

    Attributes:
        served_by: the providers it can use; () for any.
        keys: any of these, when it is set, is a key of the user's own.
        needs: variables by provider, the preferred one first: of the first that the pool has.
        for_each: it can use any provider, and gets a key for each.
    """

    served_by: tuple[str, ...]
    keys: tuple[str, ...]
    needs: Mapping[str, Mapping[str, str]]
    for_each: bool = False


#: The tools that ask for a key or a login before they send anything (clients measured in
#: November 2026: claude-code 2.1, codex 0.169, gemini-cli 0.61, copilot 1.0, opencode 1.18).
TOOLS: Mapping[str, Tool] = {
    "claude": Tool(
        ("claude-code", "anthropic"),
        ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN"),
        {"claude-code": _CLAUDE_CODE, "anthropic": _ANTHROPIC},
    ),
    "codex": Tool(
        ("codex", "openai"),
        ("OPENAI_API_KEY", "CODEX_API_KEY"),
        # `codex exec` reads the second, everything else the first.
        {"openai": dict.fromkeys(("OPENAI_API_KEY", "CODEX_API_KEY"), f"sk-{_TEXT}")},
    ),
    "gemini": Tool(
        ("gemini-cli", "gemini"),
        ("GEMINI_API_KEY", "GOOGLE_API_KEY", "GOOGLE_GENAI_USE_GCA"),
        {"gemini-cli": _GEMINI_CLI, "gemini": _GEMINI},
    ),
    "copilot": Tool(
        ("copilot",),
        ("COPILOT_GITHUB_TOKEN", "GH_TOKEN", "GITHUB_TOKEN"),
        {"copilot": _COPILOT},
    ),
    "opencode": Tool((), (), {}, for_each=True),
}


#: What a program that is not one of TOOLS gets of a provider, where it is not as usual: these
#: variables belong to other programs too, or to none.
_FOR_ANY: Mapping[str, Mapping[str, str]] = {
    "anthropic": _ANTHROPIC,
    "claude-code": _CLAUDE_CODE,
    "gemini": _GEMINI,
    "copilot": _COPILOT,
}


def for_any_program(
    providers: Iterable[str], present: Mapping[str, str], logged_in: Collection[str]
) -> tuple[dict[str, str], list[str]]:
    """Return the keys a program that is not one of TOOLS gets, and the variables left out.

    It may be a shell, from which any tool is started: a key in the environment would come before
    the login that the tool has.

    Args:
        providers: names of those the pool has accounts of.
        present: the environment as it is.
        logged_in: those of TOOLS that keep a login of their own on this machine.
    """
    chosen: dict[str, str] = {}
    left: list[str] = []
    for name in providers:
        usual = BUILT_IN.env(name) if name in BUILT_IN else ()
        keys = {usual[0]: f"sk-{_TEXT}"} if usual else {}
        keys = dict(_FOR_ANY.get(name, keys))
        tools = [tool for tool, rules in TOOLS.items() if name in rules.served_by]
        taken = {*usual, *keys, *(key for tool in tools for key in TOOLS[tool].keys)}
        if any(present.get(key) for key in taken):
            continue
        if any(tool in logged_in for tool in tools):
            left += keys
        else:
            chosen |= keys
    return chosen, left


def tool_of(command: str) -> str | None:
    """Return which of TOOLS the program *command*, a name or a path, is."""
    name = PurePath(command.replace("\\", "/")).name.lower()
    for suffix in (".exe", ".cmd", ".ps1", ".bat"):
        name = name.removesuffix(suffix)
    return name if name in TOOLS else None


def placeholders(
    tool: str, providers: Collection[str], present: Mapping[str, str], *, logged_in: bool
) -> dict[str, str]:
    """Return the keys *tool* of TOOLS gets, none if it has one or the pool cannot serve it.

    *providers* and *present* are as above; *logged_in*: it has a login of its own on this machine.
    """
    rules = TOOLS[tool]
    if has_key(tool, present) or logged_in:
        return {}
    if rules.for_each:
        return for_any_program(sorted(providers), present, ())[0]
    for provider, needed in rules.needs.items():
        if provider in providers and not any(map(present.get, needed)):
            return dict(needed)
    return {}


def has_key(tool: str, present: Mapping[str, str]) -> bool:
    """Say whether the environment *present* holds a key of the user's own for *tool*."""
    return any(present.get(name) for name in TOOLS[tool].keys)


def missing(tool: str, providers: Collection[str]) -> str | None:
    """Return why *tool*, which has no key, no login and no placeholder, cannot be served.

    None where it may be: it can use any provider, or one of the user's own.
    """
    served_by = TOOLS[tool].served_by
    if not served_by or not all(name in BUILT_IN for name in providers):
        return None
    if not set(served_by) & set(providers):
        return f"the pool has no account for {tool}: it is served by {' and '.join(served_by)}"
    if tool == "codex":
        return "codex may have a login in the keychain, as its config.toml says: it is left to it"
    return f"{tool} is not logged in and does not accept a placeholder; log in with it once"


# -- `account-pool env`: the variables in the words of a shell: set, unset, quoted


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
    """Print what sets the variables, or removes them. Returns 0. Raises OSError, NoAnswer.

    A proxy need not run yet: the line on stderr then says so, and the variables stand. By the
    *accounts* alone tools are served, if there are any.
    """
    shell = shell or detect(environ)
    if unset:
        # What NO_PROXY held was the user's own.
        names = [name for name in ALL_VARIABLES if name not in NO_PROXY_VARIABLES]
        lines = unset_lines(shell, names)
    else:
        places = Places.usual(port)
        trust = write_trust(places, environ)
        hosts = [rule for name in BUILT_IN for rule in BUILT_IN.hosts(name)]
        url = proxy_url(places.url, map(str, accounts))
        lines = set_lines(shell, variables(url, trust, hosts, environ))
        if (found := api.probe(port)) is api.Missing.NOBODY:
            note(api.no_proxy(port))
        elif not isinstance(found, api.Health):
            note(f"{HOST}:{port} {found}")
        elif accounts:
            pool_with(port, accounts)
    if sys.stdout.isatty():
        lines.append(hint(shell, f"account-pool env{' --unset' if unset else ''}"))
    print("\n".join(lines))
    return 0

"""Which variables a tool gets: proxy, trust, a key. Pure: values in, variables out.

Each ecosystem has a variable of its own for the authorities it trusts, and most of them
*replace* the system's list: these get a bundle of both. The few that add to it get
mitmproxy's certificate. Tested with the tools themselves where a row says "measured".
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from urllib.parse import quote

from account_pool.providers.base import HostRule
from account_pool.providers.registry import BUILT_IN

#: Where clients look for the proxy of https addresses; curl and others read the lower case
#: only (measured). Plain http is left alone: no provider answers there.
PROXY_VARIABLES = ("HTTPS_PROXY", "https_proxy")
#: Hosts that are reached without it.
NO_PROXY_VARIABLES = ("NO_PROXY", "no_proxy")

#: These replace what a tool trusts, so that they need the system's authorities as well.
BUNDLE_VARIABLES: Mapping[str, str] = {
    "SSL_CERT_FILE": "OpenSSL, Rust, Go, httpx: Claude Code, Codex, Copilot CLI, SDKs (measured)",
    "REQUESTS_CA_BUNDLE": "Python requests",
    "CURL_CA_BUNDLE": "curl (measured)",
    "GIT_SSL_CAINFO": "git over https",
    "CODEX_CA_CERTIFICATE": "Codex; comes before SSL_CERT_FILE there (measured)",
    "AWS_CA_BUNDLE": "AWS CLI and SDKs",
    "PIP_CERT": "pip",
    "CARGO_HTTP_CAINFO": "cargo",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": "gRPC",
    "HTTPLIB2_CA_CERTS": "Python httplib2",
    "NIX_SSL_CERT_FILE": "programs of Nix",
}
#: These add to what a tool trusts.
EXTRA_VARIABLES: Mapping[str, str] = {
    "NODE_EXTRA_CA_CERTS": "Node: Gemini CLI needs it (measured)",
    "DENO_CERT": "Deno",
}
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """The files of certificates a tool is given.

    Attributes:
        bundle: the system's authorities and mitmproxy's.
        extra: mitmproxy's, and what the user's own NODE_EXTRA_CA_CERTS named.
    """

    bundle: Path
    extra: Path


def variables(
    proxy_url: str, trust: Trust, hosts: Iterable[HostRule], present: Mapping[str, str]
) -> dict[str, str]:
    """Return what to set so that a tool goes through the proxy and trusts it.

    Args:
        proxy_url: of the proxy, such as http://127.0.0.1:8080.
        hosts: of the pool; no NO_PROXY may lead round the proxy to them.
        present: the environment as it is.
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
    user = quote(",".join(accounts), safe="")
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
_GITHUB = f"gho_{_TEXT.replace('-', '0')}"


@dataclass(frozen=True, slots=True)
class Needed:
    """What a tool may start with.

    Attributes:
        provider: its accounts can serve the tool then.
        variables: what to set.
    """

    provider: str
    variables: Mapping[str, str]


_OPENAI = Needed("openai", {"OPENAI_API_KEY": f"sk-{_TEXT}"})
_ANTHROPIC = Needed("anthropic", {"ANTHROPIC_API_KEY": f"sk-ant-api03-{_TEXT}"})
_GEMINI = Needed("gemini", {"GEMINI_API_KEY": f"AIza-{_TEXT}"})
#: With a login in a file it asks Google whether that is good before it starts.
_GEMINI_CLI = Needed(
    "gemini-cli",
    {"GOOGLE_GENAI_USE_GCA": "true", "GOOGLE_CLOUD_ACCESS_TOKEN": f"ya29.{_TEXT}"},
)


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool by the name of its command.

    Attributes:
        served_by: the providers it can use; () for any.
        keys: any of these, when it is set, is a key of the user's own.
        needs: in order of preference; the first whose provider the pool has is set.
        for_each: it can use any provider, and gets a key for each.
    """

    served_by: tuple[str, ...]
    keys: tuple[str, ...]
    needs: tuple[Needed, ...]
    for_each: bool = False


#: The tools that ask for a key or a login before they send anything (clients measured in
#: November 2026: claude-code 2.1, codex 0.169, gemini-cli 0.61, copilot 1.0, opencode 1.18).
TOOLS: Mapping[str, Tool] = {
    "claude": Tool(
        ("claude-code", "anthropic"),
        ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN"),
        (
            Needed("claude-code", {"CLAUDE_CODE_OAUTH_TOKEN": f"sk-ant-oat01-{_TEXT}"}),
            _ANTHROPIC,
        ),
    ),
    "codex": Tool(
        ("codex", "openai"),
        ("OPENAI_API_KEY", "CODEX_API_KEY"),
        # `codex exec` reads the second, everything else the first.
        (Needed("openai", {**_OPENAI.variables, "CODEX_API_KEY": f"sk-{_TEXT}"}),),
    ),
    "gemini": Tool(
        ("gemini-cli", "gemini"),
        ("GEMINI_API_KEY", "GOOGLE_API_KEY", "GOOGLE_GENAI_USE_GCA"),
        (_GEMINI_CLI, _GEMINI),
    ),
    "copilot": Tool(
        ("copilot",),
        ("COPILOT_GITHUB_TOKEN", "GH_TOKEN", "GITHUB_TOKEN"),
        (Needed("copilot", {"COPILOT_GITHUB_TOKEN": _GITHUB}),),
    ),
    "opencode": Tool((), (), (), for_each=True),
}


#: What a program that is not one of TOOLS gets of a provider, where it is not as usual: these
#: variables belong to other programs too, or to none.
_FOR_ANY: Mapping[str, Mapping[str, str]] = {
    "anthropic": _ANTHROPIC.variables,
    "claude-code": TOOLS["claude"].needs[0].variables,
    "gemini": _GEMINI.variables,
    "copilot": TOOLS["copilot"].needs[0].variables,
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
    """Return the keys *tool* gets, none if it has one or the pool cannot serve it.

    Args:
        tool: a key of TOOLS.
        providers: names of those the pool has accounts of.
        present: the environment as it is.
        logged_in: the tool keeps a login of its own on this machine.
    """
    rules = TOOLS[tool]
    if has_key(tool, present) or logged_in:
        return {}
    if rules.for_each:
        return for_any_program(sorted(providers), present, ())[0]
    for needed in rules.needs:
        if needed.provider in providers and not any(present.get(n) for n in needed.variables):
            return dict(needed.variables)
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

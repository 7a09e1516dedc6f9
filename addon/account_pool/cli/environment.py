"""Which variables point a tool at the proxy. Pure: values in, variables out.

Each ecosystem has a variable of its own for the authorities it trusts, and most of them
*replace* the system's list: these get a bundle of both. The few that add to it get
mitmproxy's certificate. Tested with the tools themselves where a row says "measured".
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from account_pool.providers.base import HostRule

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


def without_own_proxy(environ: Mapping[str, str], proxy_url: str) -> dict[str, str]:
    """Return the environment of the proxy at *proxy_url*: it must not go through itself."""
    return {n: v for n, v in environ.items() if n not in PROXY_VARIABLES or v != proxy_url}


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

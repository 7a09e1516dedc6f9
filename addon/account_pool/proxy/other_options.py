"""Options of mitmproxy that requests of the pool do not follow, or not wholly.

Whoever sets one is told when the proxy starts. Those that are followed need no words;
tests/e2e/test_options.py goes through both.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from mitmproxy.options import Options

from account_pool.providers.base import HostRule

#: What is said where the option is set at all.
_NOTES = {
    "ssl_insecure": "no credential is sent while it is set; trust the CA instead "
    "(ssl_verify_upstream_trusted_ca)",
    "stream_large_bodies": "requests of the pool are kept for a replay all the same, up to 64 MiB",
    "modify_body": "answers of the pool that stream are not changed; over HTTP/2 most do",
    "map_remote": "a request of the pool that it sends to a host that is not the provider's is "
    "refused",
    "stickycookie": "no cookie is sent with an account of the pool",
    "stickyauth": "the credential of an account takes the place of what it remembers",
}
_REVERSE = {
    "keep_host_header": "a request of the pool needs the provider's own Host, else it is refused",
    "upstream_auth": "in reverse mode the credential of an account takes its place",
    "proxyauth": "in reverse mode it reads the header Authorization, which holds the client's "
    "credential for the pool: such a client is refused",
}
_HOSTS = frozenset({"ignore_hosts", "allow_hosts", "tcp_hosts"})
NAMES = frozenset({*_NOTES, *_REVERSE, *_HOSTS, "websocket", "mode"})


def notes(options: Options, hosts: Iterable[HostRule]) -> list[str]:
    """Return what to say of the options that are set.

    Args:
        hosts: of the providers that have accounts.
    """
    said = [f"{name}: {text}" for name, text in _NOTES.items() if _get(options, name)]
    if any(mode.startswith("reverse:") for mode in options.mode):
        said += [f"{name}: {text}" for name, text in _REVERSE.items() if _get(options, name)]
    if _get(options, "websocket") is False:
        said.append("websocket: limits told inside a WebSocket are not noticed while it is false")
    for host in dict.fromkeys(f"{rule.host}:{rule.port}" for rule in hosts if not rule.subdomains):
        ignored, allowed, raw = (
            _get(options, name) or () for name in ("ignore_hosts", "allow_hosts", "tcp_hosts")
        )
        if _matches(ignored, host):
            said.append(f"ignore_hosts: it covers {host}, whose requests pass unpooled")
        elif allowed and not _matches(allowed, host):
            said.append(f"allow_hosts: it leaves out {host}, whose requests pass unpooled")
        elif _matches(raw, host):
            said.append(f"tcp_hosts: it covers {host}, whose requests pass unpooled")
    return said


def _matches(patterns: Iterable[str], host: str) -> bool:
    # As mitmproxy compares; it has checked the patterns.
    return any(re.search(pattern, host, re.IGNORECASE) for pattern in patterns)


def _get(options: Options, name: str) -> Any:
    """Return an option, None where this mitmproxy has none of that name."""
    return getattr(options, name, None)

"""The mitmproxy options of the pool, and what requests need of them.

Names, types and defaults come from one table (`config.options`); a value given on
the command line wins over the `pool:` section of accounts.yaml, which wins over the
default. Options of mitmproxy itself that requests of the pool do not follow, or not wholly,
are listed when the proxy starts (`conflicts`); tests/e2e/test_options.py covers both kinds.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterable, Mapping
from typing import Any, cast

from mitmproxy import exceptions
from mitmproxy.addonmanager import Loader
from mitmproxy.options import Options
from msgspec import Struct, field

from account_pool.config.options import POOL_OPTIONS, OptionValue, read_fast, set_options
from account_pool.core.browser import Allowed, read_hosts, read_origins
from account_pool.core.steps import Limits
from account_pool.core.wrong import unknown
from account_pool.providers.base import HostRule

_NAMES = frozenset(option.option for option in POOL_OPTIONS)
#: Options that our settings depend on, or that are refused.
WATCHED = _NAMES | {
    "proxyauth", "ssl_insecure", "stream_large_bodies", "body_size_limit", "proxy_debug",
    "validate_inbound_headers",
}  # fmt: skip

#: What follows where the option is set at all; and where it is in reverse mode.
_CONFLICTS = {
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
#: Options that `conflicts` depends on.
CONFLICTING = frozenset({*_CONFLICTS, *_REVERSE, *_HOSTS, "websocket", "mode"})


class Settings(Struct, frozen=True, kw_only=True):
    """The options a request is served by; names as in docs/options.md.

    Attributes:
        limits: bounds on one request.
        gate_s: longest time the head of an answer is held back.
        intercept_all: decrypt every host, as mitmproxy does by itself.
        remote: clients of other machines may be given an account.
        insecure: upstream certificates are not verified (mitmproxy's ssl_insecure).
        validates: heads that mitmproxy would refuse are (validate_inbound_headers).
        body_limits: mitmproxy's stream_large_bodies or body_size_limit is set.
        websockets: "refuse", "pin", or "" for what suits the provider.
        manual_approve: hold each request of the pool until a person resumes it.
        allowed: pages that may be given an account, and names of this proxy in reverse mode
            beside its usual ones.
        view_kept: flows of the pool that a front end's view keeps; 0: all.
        fast: shorter ways through mitmproxy to use, of `config.options.FAST_STEPS`.
        drain_s: longest time requests under way go on once the proxy shuts down.
        count_streams: ask streams of api.openai.com for their usage.
    """

    limits: Limits = field(default_factory=Limits)
    gate_s: float = 5.0
    intercept_all: bool = False
    remote: bool = False
    insecure: bool = False
    validates: bool = True
    body_limits: bool = True
    websockets: str = ""
    manual_approve: bool = False
    allowed: Allowed = field(default_factory=Allowed)
    fast: frozenset[str] = frozenset()
    drain_s: float = 10.0
    view_kept: int = 500
    count_streams: bool = False


def add(loader: Loader) -> frozenset[str]:
    """Declare every option; return the names of those that were given at the start.

    mitmproxy defers what is set before it is declared. So a default that was given by hand is
    known from one that was not: the first wins over accounts.yaml. What is not of an option's
    type is found here: mitmproxy would not load us, and neither serve nor say why.

    Raises OptionsError that names all such options.
    """
    options = loader.master.options
    if POOL_OPTIONS[0].option not in options:
        # mitmproxy lets its config.yaml win over --set (11.0 to 12.3): ours are set again.
        given = set_options(sys.argv[1:])
        options.set(*(f"{name}={value}" for name, value in given if name in _NAMES), defer=True)
    at_start = frozenset(options.deferred)
    wrong = []
    for option in POOL_OPTIONS:
        if option.option in at_start:
            try:
                options.deferred[option.option] = option.typed(options.deferred[option.option])
            except ValueError as e:
                del options.deferred[option.option]
                wrong.append(f"{option.option}: {e}")
    for option in POOL_OPTIONS:
        loader.add_option(
            option.option, option.typespec, option.option_default, option.help, option.choices
        )
    if wrong:
        raise exceptions.OptionsError("\n".join(wrong))
    return at_start


class Concealed:
    """Values that are secrets: taken out of mitmproxy's options, which mitmweb and dumps show.

    In their place stands what may be seen of them. What is set by hand later is taken out, too.
    """

    def __init__(self) -> None:
        self._values: dict[str, str] = {}

    def take(self, options: Options) -> None:
        """Take out of *options* what is a secret and stands there openly. Raises OptionsError."""
        for option in POOL_OPTIONS:
            if option.conceal is None or option.option not in options:
                continue
            found, known = getattr(options, option.option), self._values.get(option.option, "")
            if found == known == option.default or found == option.conceal(known):
                continue
            try:
                option.read(found)
            except ValueError as e:
                raise exceptions.OptionsError(f"{option.option}: {e}") from None
            self._values[option.option] = found
            if found != option.conceal(found):
                options.update(**{option.option: option.conceal(found)})

    def value(self, options: Options, name: str) -> Any:
        """Return the value of the option *name*, in the open."""
        return self._values.get(name, getattr(options, name))


def given(
    options: Options, at_start: Collection[str] = (), concealed: Concealed | None = None
) -> dict[str, OptionValue]:
    """Return the options that were set by hand, read and checked.

    Args:
        at_start: names that were given when the proxy started, by `add`.
        concealed: has the values that do not stand in *options*.

    Raises OptionsError that names the option, what is wrong and what is accepted.
    """
    values: dict[str, OptionValue] = {}
    concealed = concealed or Concealed()
    for option in POOL_OPTIONS:
        if option.option in at_start or options.has_changed(option.option):
            try:
                values[option.name] = option.read(concealed.value(options, option.option))
            except ValueError as e:
                raise exceptions.OptionsError(f"{option.option}: {e}") from None
    return values


def settings(values: Mapping[str, OptionValue], options: Options) -> Settings:
    """Return what requests are served by.

    Args:
        values: of every option of the pool, by name without prefix.
        options: mitmproxy's own; those in `WATCHED` are read.
    """
    return Settings(
        limits=Limits(
            max_attempts=cast(int, values["max_attempts"]),
            max_wait_s=cast(float, values["max_wait"]),
            max_waiting=cast(int, values["max_waiting"]),
            patience_s=cast(float, values["patience"]),
            retry_broken=cast(bool, values["retry_broken"]),
        ),
        gate_s=cast(float, values["gate"]),
        intercept_all=values["intercept"] == "all",
        remote=bool(values["allow_remote"]) or bool(getattr(options, "proxyauth", None)),
        insecure=bool(options.ssl_insecure),
        validates=bool(options.validate_inbound_headers),
        body_limits=bool(options.stream_large_bodies or options.body_size_limit),
        websockets=str(values["websockets"]),
        manual_approve=bool(values["manual_approve"]),
        drain_s=cast(float, values["drain"]),
        fast=read_fast(str(values["fast"])),
        view_kept=cast(int, values["view_kept"]),
        count_streams=bool(values["count_streams"]),
        allowed=Allowed(
            read_origins(str(values["allow_origins"])), read_hosts(str(values["allow_hosts"]))
        ),
    )


def conflicts(options: Options, hosts: Iterable[HostRule]) -> list[str]:
    """Return a line for each option of mitmproxy that requests of the pool will not follow.

    And for each that was set although nobody has one of that name.

    Args:
        hosts: of the providers that have accounts.
    """
    lines = [
        f"{name}: the pool has no such option; {_likely(name.removeprefix('pool_'))}"
        for name in options.deferred
        if name.startswith("pool_")
    ]
    lines += [f"{name}: {text}" for name, text in _CONFLICTS.items() if _get(options, name)]
    if any(mode.startswith("reverse:") for mode in options.mode):
        lines += [f"{name}: {text}" for name, text in _REVERSE.items() if _get(options, name)]
    if _get(options, "websocket") is False:
        lines.append("websocket: limits told inside a WebSocket are not noticed while it is false")
    for host in dict.fromkeys(f"{rule.host}:{rule.port}" for rule in hosts if not rule.subdomains):
        if name := left_alone_by(options, host):
            verb = "leaves out" if name == "allow_hosts" else "covers"
            lines.append(f"{name}: it {verb} {host}, whose requests pass unpooled")
    return lines


def _likely(name: str) -> str:
    # Without what all names begin with, by which all are alike.
    hint = unknown(name, [option.name for option in POOL_OPTIONS])
    return hint.replace("did you mean ", "did you mean pool_")


def left_alone_by(options: Options, host: str) -> str | None:
    """Return the option that has mitmproxy not read what goes to *host* (with its port), if any."""
    allowed = _get(options, "allow_hosts") or ()
    if _matches(_get(options, "ignore_hosts") or (), host):
        return "ignore_hosts"
    if allowed and not _matches(allowed, host):
        return "allow_hosts"
    return "tcp_hosts" if _matches(_get(options, "tcp_hosts") or (), host) else None


def _matches(patterns: Iterable[str], host: str) -> bool:
    # As mitmproxy compares; it has checked the patterns.
    return any(re.search(pattern, host, re.IGNORECASE) for pattern in patterns)


def _get(options: Options, name: str) -> Any:
    """Return an option, None where this mitmproxy has none of that name."""
    return getattr(options, name, None)

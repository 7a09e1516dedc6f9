"""The mitmproxy options of the pool, and what requests need of them.

Names, types and defaults come from one table (`config.options`); a value given on
the command line wins over the `pool:` section of accounts.yaml, which wins over the
default.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from typing import cast

from mitmproxy import exceptions
from mitmproxy.addonmanager import Loader
from mitmproxy.options import Options

from account_pool.config.options import POOL_OPTIONS, OptionValue, read_fast, set_options
from account_pool.core.attempts import Limits
from account_pool.core.browser import Allowed, read_hosts, read_origins
from account_pool.proxy.service import Settings

#: mitmproxy's own options that our settings are made of.
WATCHED = frozenset({"proxyauth", "ssl_insecure", "stream_large_bodies", "body_size_limit"})

_NAMES = frozenset(option.option for option in POOL_OPTIONS)


def add(loader: Loader) -> frozenset[str]:
    """Declare every option; return the names of those that were given at the start.

    mitmproxy keeps what is set before it is known. That tells a default given by hand
    from one that nobody gave: the first wins over accounts.yaml.
    """
    options = loader.master.options
    if POOL_OPTIONS[0].option not in options:
        # mitmproxy lets its config.yaml win over --set (11.0 to 12.3): ours are set again.
        given = set_options(sys.argv[1:])
        options.set(*(f"{name}={value}" for name, value in given if name in _NAMES), defer=True)
    at_start = frozenset(options.deferred)
    for option in POOL_OPTIONS:
        loader.add_option(
            option.option, option.typespec, option.option_default, option.help, option.choices
        )
    return at_start


def given(options: Options, at_start: Collection[str] = ()) -> dict[str, OptionValue]:
    """Return the options that were set by hand, read and checked.

    Args:
        at_start: names that were given when the proxy started, by `add`.

    Raises OptionsError that names the option, what is wrong and what is accepted.
    """
    values: dict[str, OptionValue] = {}
    for option in POOL_OPTIONS:
        if option.option in at_start or options.has_changed(option.option):
            try:
                values[option.name] = option.read(getattr(options, option.option))
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
        body_limits=bool(options.stream_large_bodies or options.body_size_limit),
        websockets=str(values["websockets"]),
        manual_approve=bool(values["manual_approve"]),
        drain_s=cast(float, values["drain"]),
        fast=read_fast(str(values["fast"])),
        view_kept=cast(int, values["view_kept"]),
        allowed=Allowed(
            read_origins(str(values["allow_origins"])), read_hosts(str(values["allow_hosts"]))
        ),
    )

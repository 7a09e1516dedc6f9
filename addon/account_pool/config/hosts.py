"""Reads a host as it is written in accounts.yaml."""

from __future__ import annotations

from account_pool.config.problems import NOT_SHOWN, Wrong, shown
from account_pool.providers.base import HostRule
from account_pool.providers.pasted import PASTED, is_token


def host_rule(text: str) -> HostRule:
    """Return the rule *text* stands for. Raises Wrong."""
    if "://" in text:
        # Otherwise the colon of the scheme reads as that of a port.
        raise Wrong(f"{shown(text)} is an address", "write its host or host:port only")
    if "." not in text and is_token(text):
        raise Wrong(f"{NOT_SHOWN} is not a host; {PASTED}", "write host or host:port")
    try:
        return HostRule.parse(text)
    except ValueError as error:
        # Its text is "'<what was written>': <what is accepted>".
        why = str(error).removeprefix(f"{text!r}: ")
        raise Wrong(f"{shown(text)} is not a host", why) from None

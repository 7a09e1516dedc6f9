"""What arguments of mitmproxy say with `--set`. Pure."""

from __future__ import annotations

from argparse import ArgumentError, ArgumentParser
from collections.abc import Sequence


def set_options(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """Return names and values in order; "" where none is given, nothing if it is malformed."""
    parser = ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("--set", action="append", default=[])
    try:
        known, _ = parser.parse_known_args(list(arguments))
    except ArgumentError:
        return []
    return [(name, value) for name, _, value in (spec.partition("=") for spec in known.set)]

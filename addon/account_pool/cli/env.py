"""`account-pool env`: the variables for a shell, to be evaluated by it."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from account_pool.cli import api
from account_pool.cli.bundle import write_trust
from account_pool.cli.environment import ALL_VARIABLES, NO_PROXY_VARIABLES, variables
from account_pool.cli.places import Places
from account_pool.cli.shells import Shell, detect, hint, set_lines, unset_lines
from account_pool.providers.registry import BUILT_IN


def print_env(port: int, shell: Shell | None, environ: Mapping[str, str], *, unset: bool) -> int:
    """Print what sets the variables, or removes them. Returns 0, or 1 after a line on stderr.

    A proxy need not run yet: the line on stderr then says so, and the variables stand.
    """
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
            print(f"account-pool: {error.filename}: {error.strerror}", file=sys.stderr)
            return 1
        hosts = [rule for name in BUILT_IN for rule in BUILT_IN.hosts(name)]
        lines = set_lines(shell, variables(places.url, trust, hosts, environ))
        if not isinstance(api.probe(port), api.Health):
            print(f"account-pool: {api.no_proxy(port)}", file=sys.stderr)
    if sys.stdout.isatty():
        lines.append(hint(shell, f"account-pool env{' --unset' if unset else ''}"))
    print("\n".join(lines))
    return 0

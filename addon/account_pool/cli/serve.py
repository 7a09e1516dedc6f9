"""`account-pool serve`: becomes the mitmproxy of this environment, with the pool in it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from account_pool.cli.accounts import mitmproxy_config
from account_pool.cli.bundle import upstream_trust
from account_pool.cli.environment import without_own_proxy
from account_pool.cli.places import CONFDIR, DEFAULT_PORT, HOST, Places
from account_pool.config.accounts_file import OPTION
from account_pool.config.options import set_options
from account_pool.demo.mitmdump import addon_script, mitmdump_command


def serve(
    program: str,
    port: int | None,
    accounts_file: Path | None,
    arguments: Sequence[str],
    environ: Mapping[str, str],
) -> NoReturn:
    """Replace this process by *program*, mitmdump or one of its sisters.

    *arguments* are its own. Which file serves is found, and said, there. Raises
    ConfigError, ImportError, and OSError where there is no such program.
    """
    if find_spec("mitmproxy") is None:
        raise ModuleNotFoundError("No module named 'mitmproxy'")
    command = [*mitmdump_command(program), "-s", str(addon_script())]
    if not _names_address(arguments):
        command += ["--listen-host", HOST]
    if port is not None:
        command += ["--listen-port", str(port)]
    if accounts_file is not None:
        command += ["--set", f"{OPTION}={accounts_file.expanduser().absolute()}"]
    places = Places.usual(port or DEFAULT_PORT)
    command += upstream_trust(places, environ, arguments)
    # Else a log that goes to a file or a pipe comes in pieces of 8 KiB.
    environ = {"PYTHONUNBUFFERED": "1", **without_own_proxy(environ, places.url)}
    _become([*command, *arguments], environ)


def _names_address(arguments: Sequence[str]) -> bool:
    """Say whether the user says where to listen: in *arguments*, or in mitmproxy's config."""
    if any(word.partition("=")[0] == "--listen-host" for word in arguments):
        return True
    given = dict(set_options(arguments))
    return "listen_host" in given | mitmproxy_config(given.get("confdir") or CONFDIR)


def _become(command: list[str], environ: Mapping[str, str]) -> NoReturn:
    """Run *command* in our place: signals and exit code are its own."""
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name == "nt":
        # There a new process would be another one, and the shell would not wait for it.
        sys.exit(subprocess.call(command, env=environ))  # noqa: S603 - what the user wrote
    os.execve(command[0], command, environ)  # noqa: S606 - no shell is wanted

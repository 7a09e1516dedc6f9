"""`account-pool serve`: becomes the mitmproxy of this environment, with the pool in it.

Or the launcher of several (`workers/launcher.py`).
"""

from __future__ import annotations

import errno
import itertools
import os
import random
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from account_pool.cli import api
from account_pool.cli.accounts import mitmproxy_config
from account_pool.cli.certificates import upstream_trust
from account_pool.cli.environment import without_own_proxy
from account_pool.cli.output import fail, note
from account_pool.cli.places import CONFDIR, DEFAULT_PORT, HOST, Places
from account_pool.config.accounts_file import OPTION
from account_pool.config.options import set_options
from account_pool.demo.mitmdump import addon_script, mitmdump_command
from account_pool.filesystem import expanded, named_path
from account_pool.proxy.process import on_sighup
from account_pool.workers.launcher import launch

#: How a worker is started. Without what lies about in the working directory.
WORKER = (sys.executable, "-P", "-m", "account_pool.workers")
#: Options of mitmproxy with which it listens nowhere, or where another option says.
_ELSEWHERE = frozenset(
    {"-m", "--mode", "-n", "--no-server", "-h", "--help", "--version", "--options", "--commands"}
)
#: mitmweb's own columns, and comments: there stands who served a request.
COLUMNS = ("tls", "icon", "path", "method", "status", "comment", "size", "time")
#: Ports that Linux gives to nobody who does not name them (ip_local_port_range): any other that
#: is free may be a connection's before the first worker listens.
_NOT_GIVEN = range(20_000, 32_768)


def serve(
    program: str,
    port: int | None,
    accounts_file: Path | None,
    arguments: Sequence[str],
    environ: Mapping[str, str],
    *,
    workers: int = 1,
) -> NoReturn:
    """Replace this process by *program*, mitmdump or one of its sisters.

    *arguments* are its own. Which file serves is found, and said, there. With more than one
    of *workers*, stay, and have so many mitmdumps serve one port. Raises ConfigError,
    ImportError, and OSError where there is no such program.
    """
    if find_spec("mitmproxy") is None:
        raise ModuleNotFoundError("No module named 'mitmproxy'")
    if (taken := _taken(port, arguments)) is not None:
        # mitmproxy would name an option of its own.
        sys.exit(fail(api.occupied(taken, api.probe(taken))))
    if workers > 1 and sys.platform != "linux":
        note("--workers is for Linux; one worker serves")
        workers = 1
    start = mitmdump_command(program) if workers == 1 else WORKER
    command = [*start, "-s", str(addon_script())]
    if not _names_address(arguments):
        command += ["--listen-host", HOST]
    if port is not None:
        command += ["--listen-port", str(port)]
    if accounts_file is not None:
        command += ["--set", f"{OPTION}={named_path(accounts_file).absolute()}"]
    if program == "mitmweb" and "web_columns" not in _settings(arguments) and _has_columns():
        command += [word for name in COLUMNS for word in ("--set", f"web_columns={name}")]
    places = Places.usual(port or DEFAULT_PORT)
    confdir = dict(set_options(arguments)).get("confdir")
    # Where it cannot be made, mitmproxy ends with a traceback.
    (replace(places, confdir=expanded(confdir)) if confdir else places).make()
    command += upstream_trust(places, environ, arguments)
    # Else a log that goes to a file or a pipe comes in pieces of 8 KiB.
    environ = {"PYTHONUNBUFFERED": "1", **without_own_proxy(environ, places.url)}
    if workers == 1:
        _become([*command, *arguments], environ)
    sys.exit(
        launch([*command, *arguments, *_one_port(port, arguments)], workers, environ, on_sighup)
    )


def _taken(port: int | None, arguments: Sequence[str]) -> int | None:
    """Return the port that is to be listened at, if another program has it."""
    # argparse takes the beginning of an option for the whole.
    words = {word.partition("=")[0] for word in arguments if len(word) > 2 or word in _ELSEWHERE}
    if any(option.startswith(word) for word in words for option in _ELSEWHERE):
        return None
    settings = _settings(arguments)
    if "mode" in settings or str(settings.get("server", "true")).lower() == "false":
        return None
    hosts = [*_values("--listen-host", arguments), settings.get("listen_host", HOST)]
    named = [port, *_values("--listen-port", arguments), settings.get("listen_port")]
    family = socket.AF_INET6 if ":" in str(hosts[0]) else socket.AF_INET
    number = 0
    # Whatever else is wrong with host and port, mitmproxy says.
    try:
        number = int(str(next((one for one in named if one is not None), DEFAULT_PORT)))
        socket.create_server((str(hosts[0]), number), family=family).close()
    except (OSError, ValueError, OverflowError) as error:
        return number if getattr(error, "errno", None) == errno.EADDRINUSE else None
    return None


def _one_port(port: int | None, arguments: Sequence[str]) -> list[str]:
    """Return what makes port 0, where any will do, the same one for all workers."""
    named = [str(port), *_values("--listen-port", arguments)]
    named += [value for name, value in set_options(arguments) if name == "listen_port"]
    if "0" not in named:
        return []
    for number in (*random.sample(_NOT_GIVEN, len(_NOT_GIVEN)), 0):
        with suppress(OSError), socket.socket() as free:
            free.bind(("", number))
            return ["--listen-port", str(free.getsockname()[1])]
    return []


def _values(option: str, arguments: Sequence[str]) -> list[str]:
    """Return what *arguments* give for *option*."""
    after = [b for a, b in itertools.pairwise(arguments) if a == option]
    return after + [w.partition("=")[2] for w in arguments if w.startswith(f"{option}=")]


def _names_address(arguments: Sequence[str]) -> bool:
    """Say whether the user says where to listen: in *arguments*, or in mitmproxy's config."""
    if any(word.partition("=")[0] == "--listen-host" for word in arguments):
        return True
    return "listen_host" in _settings(arguments)


def _settings(arguments: Sequence[str]) -> Mapping[str, object]:
    """Return the options that the user sets: in *arguments*, or in mitmproxy's config."""
    given = dict(set_options(arguments))
    return mitmproxy_config(given.get("confdir") or CONFDIR) | given


def _has_columns() -> bool:
    """Say whether this mitmweb knows COLUMNS; importing it takes a second."""
    spec = find_spec("mitmproxy")
    assert spec is not None
    for folder in spec.submodule_search_locations or ():
        with suppress(OSError):
            known = (Path(folder) / "tools" / "web" / "web_columns.py").read_text("utf-8")
            return all(f'"{name}"' in known for name in COLUMNS)
    return False


def _become(command: list[str], environ: Mapping[str, str]) -> NoReturn:
    """Run *command* in our place: signals and exit code are its own."""
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name == "nt":
        # There a new process would be another one, and the shell would not wait for it.
        sys.exit(subprocess.call(command, env=environ))  # noqa: S603 - what the user wrote
    os.execve(command[0], command, environ)  # noqa: S606 - no shell is wanted

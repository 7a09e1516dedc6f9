"""The proxy as a process of its own: started, waited for, its last words.

It is a session of its own: a Ctrl-C in the terminal is the tool's, not the proxy's.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence

from account_pool.cli.api import Health, probe
from account_pool.cli.bundle import upstream_trust
from account_pool.cli.environment import without_own_proxy
from account_pool.cli.places import HOST, Places
from account_pool.cli.processes import Launch
from account_pool.config.accounts_file import shown
from account_pool.demo.mitmdump import START_TIMEOUT_S, addon_script, cause, mitmdump_command

#: Seconds a proxy has to get ready.
READY_S = START_TIMEOUT_S
#: A log this large is set aside when a proxy starts; one old log is kept.
LARGE_LOG_BYTES = 4 * 1024 * 1024
_LOOK_S = 0.05


class CannotStart(Exception):
    """The proxy ended, or did not get ready; the text is its own last word."""


def start(places: Places, launch: Launch, environ: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a proxy that writes to the log of *places*. Raises OSError."""
    _set_aside(places)
    words = [*command(places, launch), *upstream_trust(places, environ, launch.arguments)]
    # Appended: what the one before said last is what one looks for.
    descriptor = os.open(places.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "ab") as log:
        return subprocess.Popen(  # noqa: S603 - our own words, no shell
            words,
            cwd=launch.folder,
            env={**without_own_proxy(environ, places.url), "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # The same on Windows.
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )


def command(places: Places, launch: Launch) -> Sequence[str]:
    """Return the command line of the proxy."""
    return [
        *mitmdump_command(),
        *("-s", str(addon_script())),
        *("--listen-host", HOST, "--listen-port", str(places.port)),
        # The log is for people: failovers, not each request.
        *("--set", "flow_detail=0"),
        *launch.arguments,
    ]


def wait_until_ready(
    places: Places, process: subprocess.Popen[bytes], log_from: int, over: threading.Event
) -> Health:
    """Return the health of the proxy once it serves. Raises CannotStart.

    Args:
        log_from: the size of the log before it started.
        over: set when no tool waits for it any more.
    """
    until = time.monotonic() + READY_S
    while time.monotonic() < until:
        health = probe(places.port)
        if process.poll() is not None:
            break
        if isinstance(health, Health) and health.ready:
            return health
        if over.wait(_LOOK_S):
            break
    code = process.poll()
    how = "did not start" if code is not None else f"did not get ready within {READY_S:g} s"
    why = cause(_log_since(places, log_from), code)
    raise CannotStart(f"the proxy {how}: {why}; its log is {shown(places.log)}")


def log_size(places: Places) -> int:
    """Return how long the log is, in bytes."""
    return places.log.stat().st_size if places.log.exists() else 0


def note(places: Places, text: str) -> None:
    """Add a line of our own to the log. A full disk does not stop the tool."""
    try:
        with places.log.open("a", encoding="utf-8") as log:
            log.write(f"[{time.strftime('%H:%M:%S')}.000] account-pool run: {text}\n")
    except OSError:
        return


def _set_aside(places: Places) -> None:
    if log_size(places) > LARGE_LOG_BYTES:
        places.log.replace(places.log.with_suffix(".log.1"))


def _log_since(places: Places, log_from: int) -> list[str]:
    with places.log.open("rb") as log:
        log.seek(log_from if log_from <= log_size(places) else 0)
        return log.read().decode(errors="replace").splitlines()

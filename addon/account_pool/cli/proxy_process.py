"""The proxy as a process of its own: started, waited for, its last words.

It is a session of its own: a Ctrl-C in the terminal is the tool's, not the proxy's.
"""

from __future__ import annotations

import os
import re
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence

from account_pool.cli.api import Health, probe
from account_pool.cli.environment import PROXY_VARIABLES
from account_pool.cli.places import HOST, Places
from account_pool.cli.record import Launch
from account_pool.demo.mitmdump import START_TIMEOUT_S, addon_script, mitmdump_command

#: Seconds a proxy has to get ready.
READY_S = START_TIMEOUT_S
#: A log this large is set aside when a proxy starts; one old log is kept.
LARGE_LOG_BYTES = 4 * 1024 * 1024
_LOOK_S = 0.05
#: mitmdump puts the time before each line.
_TIME = re.compile(r"^\[[\d:.]+\]\s*")
_USUAL = ("Loading script", "listening at", "exiting...", "Shutting down")


class CannotStart(Exception):
    """The proxy ended, or did not get ready; the text is its own last word."""


def start(places: Places, launch: Launch, environ: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a proxy that writes to the log of *places*. Raises OSError."""
    _set_aside(places)
    # Appended: what the one before said last is what one looks for.
    descriptor = os.open(places.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "ab") as log:
        return subprocess.Popen(  # noqa: S603 - our own words, no shell
            command(places, launch),
            cwd=launch.folder,
            env=_environment(places, environ),
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
        over: nobody waits for it any more.
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
    raise CannotStart(f"the proxy did not start: {_last_words(places, log_from)}")


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


def _environment(places: Places, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the proxy: it must not go through itself."""
    kept = {n: v for n, v in environ.items() if n not in PROXY_VARIABLES or v != places.url}
    return {**kept, "PYTHONUNBUFFERED": "1"}


def _set_aside(places: Places) -> None:
    if log_size(places) > LARGE_LOG_BYTES:
        places.log.replace(places.log.with_suffix(".log.1"))


def _last_words(places: Places, log_from: int) -> str:
    """Return the line that says why it ended, as far as one can tell."""
    with places.log.open("rb") as log:
        log.seek(log_from if log_from <= log_size(places) else 0)
        lines = log.read().decode(errors="replace").splitlines()
    told = [_TIME.sub("", line).strip() for line in lines]
    telling = [line for line in told if line and not any(usual in line for usual in _USUAL)]
    ours = [line for line in telling if line.startswith("account-pool: ")]
    words = (ours or telling[-1:] or ["it said nothing"])[0]
    return f"{words.removeprefix('account-pool: ')} (account-pool logs shows more)"

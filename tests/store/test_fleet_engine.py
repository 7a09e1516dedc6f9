"""Functions in a real engine: called, loaded where they are missing, and heard of."""

from __future__ import annotations

import contextlib
import queue
import time

import pytest
from tests.patience import PATIENCE_S
from tests.store.servers import Server

from account_pool.store.fleet.engine import Engine
from account_pool.store.store import StoreError


def test_a_function_is_called_and_loaded_where_it_is_missing(server: Server) -> None:
    engine = server.engine()
    for missing in ("FUNCTION FLUSH", "SCRIPT FLUSH"):
        assert engine.call("ping") is None
        server.ask(*missing.split())
    assert engine.call("ping") is None


def test_its_clock_is_followed(engine: Engine) -> None:
    engine.call("ping")
    assert abs(engine.now() - time.time()) < 5


def test_who_listens_hears_who_has_written(server: Server, engine: Engine) -> None:
    heard: queue.Queue[str] = queue.Queue()
    with contextlib.closing(engine.listen(heard.put)):
        assert heard.get(timeout=PATIENCE_S) == "", "it may have missed something before"
        assert server.ask("PUBLISH", engine.key("news"), "proxy-1") == 1
        assert heard.get(timeout=PATIENCE_S) == "proxy-1"


def test_an_engine_that_is_away_is_said_at_once_and_back_by_itself(start_server) -> None:
    server: Server = start_server("redis")
    engine = server.engine()
    engine.call("ping")
    server.kill()
    with pytest.raises(StoreError, match="connection was refused"):
        engine.call("ping")
    server.start()
    while engine._breaker.failures:
        with contextlib.suppress(StoreError):
            engine.call("ping")


@pytest.mark.parametrize("refused", ["function", "script"])
def test_where_functions_are_refused_scripts_are_run(start_server, refused: str) -> None:
    server: Server = start_server("redis", f"user default on nopass ~* &* +@all -{refused}")
    assert server.engine().call("open", "1") == b"1"


def test_a_user_who_was_allowed_neither_is_asked_for_functions_again(start_server) -> None:
    server: Server = start_server("redis", "user default on nopass ~* &* +@all -fcall -evalsha")
    engine = server.engine()
    with pytest.raises(StoreError, match="does not allow this user the command"):
        engine.call("ping")
    server.ask("ACL", "SETUSER", "default", "+fcall")
    assert engine.call("ping") is None

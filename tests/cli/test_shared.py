"""The proxy that several share: started, watched, replaced and ended, with a stand-in for it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from account_pool.cli import api, processes, shared
from account_pool.cli.output import Failed
from account_pool.cli.processes import Launch, Places, Record, read_record, write_record
from account_pool.cli.shared import CannotStart, Guard, SharedProxy
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


@pytest.fixture
def launch(tmp_path):
    return Launch(str(tmp_path))


def proxy_of(places: Places) -> SharedProxy:
    return SharedProxy(places, os.environ)


def other_user() -> subprocess.Popen[bytes]:
    """Another `run` that uses the proxy, as far as the record knows."""
    return subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)


def add_user(places: Places, process: subprocess.Popen[bytes]) -> None:
    record = read_record(places)
    users = {**record.users, process.pid: processes.identity(process.pid)}
    write_record(places, replace(record, users=users))


def wait_for(happened) -> None:
    """Return as soon as *happened()* is true."""
    step = threading.Event()
    for _ in range(int(PATIENCE_S / 0.02)):
        if happened():
            return
        step.wait(0.02)
    raise AssertionError("it did not happen")


def be_quick(monkeypatch) -> None:
    """Find out sooner that a stopped one hangs; what is well and slow is asked again."""
    monkeypatch.setattr(api, "PROBE_S", 0.5)
    monkeypatch.setattr(processes, "KIND_S", 0.1)


def test_the_first_starts_it_and_the_last_ends_it(stub, places, launch):
    proxy = proxy_of(places)
    health = proxy.attach(launch)
    assert health.ready
    record = read_record(places)
    assert record.instance == health.instance
    assert set(record.users) == {os.getpid()}
    with other_user() as other:
        add_user(places, other)
        proxy.detach()
        # Another still uses it.
        assert isinstance(api.probe(places.port), api.Health)
        other.communicate(b"\n")
    proxy.attach(launch)
    assert read_record(places).pid == record.pid
    proxy.detach()
    assert api.probe(places.port) is api.Missing.NOBODY
    assert processes.identity(record.pid) is None
    assert read_record(places) is None


def test_one_that_somebody_else_started_is_used_and_left(stub, places, launch):
    with subprocess.Popen(shared.command(places, launch)) as theirs:
        wait_for(lambda: isinstance(api.probe(places.port), api.Health))
        proxy = proxy_of(places)
        proxy.attach(launch)
        assert proxy.look() is None
        with pytest.raises(Failed, match="already"):
            proxy.attach(launch, lambda _: "it runs already")
        proxy.detach()
        assert isinstance(api.probe(places.port), api.Health)
        theirs.terminate()


def test_why_it_did_not_start_is_its_own_last_word(stub, places, launch):
    (stub / "dies").touch()
    with pytest.raises(CannotStart, match=r"line 3: opnai is no provider"):
        proxy_of(places).attach(launch)
    assert read_record(places) is None


@pytest.mark.parametrize("greeting", [b"", b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\n\r\nhello"])
def test_a_port_of_something_else_is_told(stub, places, launch, greeting):
    with socket.create_server(("127.0.0.1", places.port)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(1000)
                    connection.sendall(greeting)

        threading.Thread(target=serve, daemon=True).start()
        with pytest.raises(Failed, match="name another --port"):
            proxy_of(places).attach(launch)
        listener.shutdown(socket.SHUT_RDWR)


def test_a_proxy_of_nobody_here_may_be_busy(places, launch, monkeypatch):
    well = api.Health(instance="theirs", ready=True, busy=0, size=1)
    seen = iter([api.Missing.SILENT, api.Missing.SILENT, well])
    monkeypatch.setattr(api, "probe", lambda _port: next(seen))
    assert proxy_of(places).attach(launch) is well


def test_a_stale_one_of_ours_is_ended_and_its_port_taken(stub, places, launch, monkeypatch):
    """It stands still, and the `run` that watched it was killed."""
    proxy = proxy_of(places)
    proxy.attach(launch)
    be_quick(monkeypatch)
    record = read_record(places)
    os.kill(record.pid, signal.SIGSTOP)
    gone = {2**22 + 1: "a run of the past"}
    write_record(places, replace(record, users=gone))
    again = proxy_of(places)
    assert again.attach(launch).instance != record.instance
    assert processes.identity(record.pid) is None
    again.detach()
    proxy.collect()


def test_a_process_that_is_not_ours_is_never_ended(stub, places, launch):
    """The id in the record was given to another process meanwhile."""
    with other_user() as other:
        write_record(places, Record(other.pid, "what it was", launch))
        proxy = proxy_of(places)
        proxy.attach(launch)
        proxy.detach()
        processes.end(other.pid, "what it was")
        assert other.poll() is None
        other.communicate(b"\n")


def test_a_record_that_cannot_be_read_is_none(places):
    for text in ("", "[]", "{", '{"pid": "x"}', '{"pid": 1, "proof": ""}'):
        places.record.write_text(text)
        assert read_record(places) is None


def test_a_dead_one_is_started_at_once_with_what_it_was_started_with(stub, places, tmp_path):
    launch = Launch(str(tmp_path), ("--set", "x=1"))
    proxy = proxy_of(places)
    first = proxy.attach(launch)
    guard = Guard(proxy)
    with guard:
        os.kill(read_record(places).pid, signal.SIGKILL)

        def is_back() -> bool:
            health = api.probe(places.port)
            return isinstance(health, api.Health) and health.instance != first.instance

        wait_for(is_back)
        wait_for(lambda: read_record(places).instance not in ("", first.instance))
    record = read_record(places)
    assert record.launch == launch
    assert guard.summary() == ("the proxy had to be restarted once; see account-pool logs")
    assert "is dead; restarting it" in places.log.read_text()
    proxy.detach()


def test_a_hung_one_is_replaced(stub, places, launch, monkeypatch):
    proxy = proxy_of(places)
    first = proxy.attach(launch)
    be_quick(monkeypatch)
    with Guard(proxy):
        os.kill(read_record(places).pid, signal.SIGSTOP)
        wait_for(lambda: read_record(places).instance not in ("", first.instance))
    assert "does not answer; restarting it" in places.log.read_text()
    proxy.detach()


def test_two_that_start_at_once_start_one(stub, places, launch):
    proxies = [proxy_of(places) for _ in range(4)]
    healths = []
    threads = [
        threading.Thread(target=lambda p=p: healths.append(p.attach(launch))) for p in proxies
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({health.instance for health in healths}) == 1
    assert sum(len(proxy.started) for proxy in proxies) == 1
    proxies[0].detach()
    for proxy in proxies:
        proxy.collect()


def test_a_large_log_is_set_aside(stub, places, launch, monkeypatch):
    places.log.write_text("what was said before\n")
    monkeypatch.setattr(shared, "LARGE_LOG_BYTES", 10)
    proxy = proxy_of(places)
    proxy.attach(launch)
    proxy.detach()
    assert "before" in places.log.with_suffix(".log.1").read_text()
    assert "before" not in places.log.read_text()


def test_the_identity_of_a_process_ends_with_it():
    with other_user() as other:
        proof = processes.identity(other.pid)
        assert proof == processes.identity(other.pid)
        assert proof != processes.identity(os.getpid())
        other.stdin.close()
        wait_for(lambda: processes.identity(other.pid) is None)
    assert processes.identity(0) is None


@pytest.mark.skipif(not Path("/bin/ps").exists(), reason="has no ps")
def test_the_identity_by_ps_is_as_good():
    with other_user() as other:
        proof = processes._from_ps(other.pid)
        assert proof == processes._from_ps(other.pid)
        assert re.fullmatch(r"\w+ \w+ +\d+ [\d:]+ \d{4}", proof)
        other.communicate(b"\n")
    assert processes._from_ps(other.pid) is None


def test_one_that_was_left_over_gives_way_to_other_settings(stub, places, launch):
    first = proxy_of(places).attach(launch)
    write_record(places, replace(read_record(places), users={}))
    proxy = proxy_of(places)
    other = Launch(launch.folder, ("--set", "x=1"))
    assert proxy.attach(other, lambda _: "another one").instance != first.instance
    assert read_record(places).launch == other
    # In use it does not.
    with pytest.raises(Failed, match="already"):
        proxy_of(places).attach(launch, lambda _: "it runs already")
    proxy.detach()


def test_the_end_of_the_tool_does_not_wait_for_a_proxy_that_does_not_come(stub, places, launch):
    proxy = proxy_of(places)
    proxy.attach(launch)
    (stub / "mute").touch()
    with Guard(proxy):
        old = read_record(places)
        os.kill(old.pid, signal.SIGKILL)
        wait_for(lambda: read_record(places).pid != old.pid)
    proxy.detach()
    assert read_record(places) is None
    assert all(process.poll() is not None for process in proxy.started)

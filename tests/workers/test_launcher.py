"""The launcher, with workers that are no mitmproxy."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

import account_pool
from account_pool.workers import launcher
from account_pool.workers.channel import Message, pair
from account_pool.workers.front import Seat
from account_pool.workers.launcher import Launcher
from tests.e2e.harness import free_port
from tests.patience import PATIENCE_S
from tests.workers import echo

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers are for Linux")

ENVIRON = {
    "PATH": os.environ["PATH"],
    "PYTHONUNBUFFERED": "1",
    "PYTHONPATH": str(Path(account_pool.__file__).parents[1]),
}


class Running:
    """A launcher that runs in this process, and what its workers have printed."""

    def __init__(self, workers: int, port: int | None = None) -> None:
        self.port = port or free_port()
        self.text = ""
        self.connections: list[Connection] = []
        self._changed = asyncio.Event()
        command = [sys.executable, "-P", echo.__file__, str(self.port)]
        self.launcher = Launcher(command, workers, ENVIRON, self._write)
        self.task = asyncio.create_task(self.launcher.run())

    def _write(self, data: bytes) -> None:
        self.text += data.decode()
        self._changed.set()

    async def printed(self, what: str, times: int = 1) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while self.text.count(what) < times:
                self._changed.clear()
                await self._changed.wait()

    async def connect(self) -> Connection:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 22)
        self.connections.append(Connection(reader, writer))
        return self.connections[-1]

    async def code(self) -> int:
        async with asyncio.timeout(PATIENCE_S):
            return await self.task


class Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def line(self) -> str:
        async with asyncio.timeout(PATIENCE_S):
            return (await self.reader.readline()).decode().strip()

    async def served_by(self) -> tuple[int, int]:
        number, pid = (await self.line()).split()
        return int(number), int(pid)

    async def ask(self, word: str) -> str:
        self.writer.write(word.encode() + b"\n")
        return await self.line()

    def close(self) -> None:
        self.writer.close()


@pytest.fixture
def launch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    @asynccontextmanager
    async def started(workers: int = 2, port: int | None = None):
        running = Running(workers, port)
        try:
            yield running
        finally:
            running.launcher.terminal_closed()
            for worker in list(running.launcher._workers.values()):
                with suppress(ProcessLookupError):
                    worker.process.kill()
            for connection in running.connections:
                connection.close()
                with suppress(OSError):
                    await connection.writer.wait_closed()
            await running.code()

    return started


async def test_each_connection_goes_to_the_worker_that_has_the_fewest(launch):
    async with launch(3) as running:
        await running.printed("ready", 3)
        held = [await running.connect() for _ in range(6)]
        numbers = [(await one.served_by())[0] for one in held]
        assert sorted(numbers) == [1, 1, 2, 2, 3, 3]
        for one, number in zip(held, numbers, strict=True):
            if number == 2:
                one.close()
        # The launcher knows once the worker has said so.
        async with asyncio.timeout(PATIENCE_S):
            while running.launcher._workers[2].seat.connections:
                await asyncio.sleep(0)
        more = [await running.connect() for _ in range(2)]
        assert [(await one.served_by())[0] for one in more] == [2, 2]


async def test_a_worker_that_is_killed_takes_only_its_own_connections_along(launch):
    async with launch() as running:
        await running.printed("ready", 2)
        held = [await running.connect() for _ in range(2)]
        pids = dict([await one.served_by() for one in held])
        os.kill(pids[2], signal.SIGKILL)
        await running.printed("worker 2 has ended (SIGKILL); it is started anew")
        at_once = [await running.connect() for _ in range(4)]
        for one in at_once:
            assert (await one.served_by())[1] != pids[2]
        of_first = next(one for one, pid in zip(held, pids, strict=True) if pid == 1)
        assert await of_first.ask("still here") == "still here"
        await running.printed("worker 2: ready", 2)


async def test_a_worker_is_replaced_while_what_it_has_started_goes_on(launch):
    async with launch(1) as running:
        await running.printed("ready")
        connection = await running.connect()
        _, pid = await connection.served_by()
        helper = int(await connection.ask("start"))
        try:
            os.kill(pid, signal.SIGKILL)
            await running.printed("worker 1: ready", 2)
            running.launcher.terminal_closed()
            await running.code()
            os.kill(helper, 0)
        finally:
            os.kill(helper, signal.SIGKILL)


async def test_a_connection_for_which_a_worker_has_no_descriptor_is_over(launch):
    resource = pytest.importorskip("resource")
    async with launch(1) as running:
        await running.printed("ready")
        _, pid = await (await running.connect()).served_by()
        _, most = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (0, most))
        assert await (await running.connect()).line() == ""
        async with asyncio.timeout(PATIENCE_S):
            while running.launcher._workers[1].seat.connections > 1:
                await asyncio.sleep(0)


async def test_connections_that_a_dead_worker_did_not_take_go_to_another(launch):
    async with launch() as running:
        await running.printed("ready", 2)
        first, second = [await running.connect() for _ in range(2)]
        number, pid = await second.served_by()
        # It hangs, and is given more.
        second.writer.write(b"hang\n")
        await running.printed(f"worker {number}: hangs")
        await first.served_by()
        waiting = [await running.connect() for _ in range(8)]
        async with asyncio.timeout(PATIENCE_S):
            while running.launcher._workers[number].seat.connections < 5:
                await asyncio.sleep(0.01)
        os.kill(pid, signal.SIGKILL)
        for one in waiting:
            assert (await one.served_by())[1] != pid


async def test_while_no_worker_serves_connections_wait(launch):
    async with launch() as running:
        await running.printed("ready", 2)
        pids = [worker.process.pid for worker in running.launcher._workers.values()]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        waiting = [await running.connect() for _ in range(3)]
        for one in waiting:
            assert (await one.served_by())[1] not in pids


async def test_what_cannot_start_ends_all_with_its_message(launch):
    echo.BROKEN.touch()
    async with launch(3) as running:
        assert await running.code() == 1
        assert running.text == "worker 1: broken\n"


async def test_a_port_that_is_in_use_is_an_error(launch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        async with launch(port=taken.getsockname()[1]) as running:
            assert await running.code() == 1
            assert running.text.startswith("worker 1: cannot listen: ")
            assert running.text.count("\n") == 1


async def test_a_worker_that_can_no_longer_start_is_tried_again_while_another_serves(
    launch, monkeypatch
):
    monkeypatch.setattr(launcher, "PAUSE_S", 0.01)
    async with launch() as running:
        await running.printed("ready", 2)
        echo.BROKEN.touch()
        os.kill(running.launcher._workers[2].process.pid, signal.SIGKILL)
        await running.printed("worker 2: broken", 2)
        assert (await (await running.connect()).served_by())[0] == 1
        echo.BROKEN.unlink()
        await running.printed("worker 2: ready", 2)


async def test_the_end_is_that_of_all_and_frees_the_port(launch):
    async with launch() as running:
        await running.printed("ready", 2)
        os.kill(os.getpid(), signal.SIGTERM)
        assert await running.code() == 0
        with socket.socket() as successor:
            successor.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            successor.bind(("127.0.0.1", running.port))


async def test_a_worker_that_hangs_is_killed_in_the_end(launch, monkeypatch):
    monkeypatch.setattr(launcher, "GRACE_S", 0.2)
    async with launch() as running:
        await running.printed("ready", 2)
        connection = await running.connect()
        number, _ = await connection.served_by()
        connection.writer.write(b"hang\n")
        os.kill(os.getpid(), signal.SIGINT)
        assert await running.code() == 128 + signal.SIGKILL
        assert f"worker {number} does not end; it is killed" in running.text


async def test_a_hangup_is_for_all(launch):
    async with launch() as running:
        await running.printed("ready", 2)
        running.launcher.hung_up()
        await running.printed("worker 1: reloaded")
        await running.printed("worker 2: reloaded")


async def test_workers_ask_and_tell_each_other(launch):
    async with launch(3) as running:
        await running.printed("ready", 3)
        connection = await running.connect()
        number, _ = await connection.served_by()
        said = json.loads(await connection.ask("ask"))
        others = {1, 2, 3} - {number}
        assert said == {str(other): f"name {other} " + "x" * 100_000 for other in others}
        connection.writer.write(b"tell hello\n")
        for other in others:
            await running.printed(f"worker {other}: heard {{'do': 'heard', 'text': 'hello'}}")
        assert running.text.count("heard") == 2 * len(others)


async def test_what_hangs_is_not_waited_for(launch, monkeypatch):
    monkeypatch.setattr(launcher, "ANSWER_S", 0.1)
    async with launch(3) as running:
        await running.printed("ready", 3)
        asker, hangs, other = [await running.connect() for _ in range(3)]
        numbers = [(await one.served_by())[0] for one in (asker, hangs, other)]
        hangs.writer.write(b"hang\n")
        async with asyncio.timeout(PATIENCE_S):
            # The other may take longer, too, on a busy machine.
            while list(json.loads(await asker.ask("ask"))) != [str(numbers[2])]:
                await asyncio.sleep(0.01)


async def test_what_hangs_delays_one_response_and_counts_again_once_it_responds(
    launch, monkeypatch
):
    async with launch() as running:
        await running.printed("ready", 2)
        asker, hangs = [await running.connect() for _ in range(2)]
        await asker.served_by()
        number, pid = await hangs.served_by()
        os.kill(pid, signal.SIGSTOP)
        monkeypatch.setattr(launcher, "ANSWER_S", 0.1)
        assert await asker.ask("ask") == "{}"
        monkeypatch.setattr(launcher, "ANSWER_S", 10 * PATIENCE_S)
        assert await asker.ask("ask") == "{}"
        os.kill(pid, signal.SIGCONT)
        async with asyncio.timeout(PATIENCE_S):
            while str(number) not in json.loads(await asker.ask("ask")):
                await asyncio.sleep(0.01)


async def test_what_cannot_respond_is_not_waited_for(launch, monkeypatch):
    monkeypatch.setattr(launcher, "ANSWER_S", 10 * PATIENCE_S)
    async with launch() as running:
        await running.printed("ready", 2)
        connection = await running.connect()
        await connection.served_by()
        assert await connection.ask("ask nonsense") == "{}"
        await running.printed("answering another worker failed: ValueError")


class Sent:
    """In the place of a channel: keeps what is sent."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    def send(self, message: Message) -> None:
        self.messages.append(message)

    def close(self) -> list[object]:
        return []


@pytest.mark.parametrize("fate", ["it hangs", "it has said them, and ends"])
async def test_sums_that_were_reported_never_fall(fate, monkeypatch):
    monkeypatch.setattr(launcher, "ANSWER_S", 0.0)
    asked = Launcher([], 3, {}, lambda _data: None)
    for number in (1, 2):
        theirs, other = pair()
        other.close()
        asked._workers[number] = launcher.Worker(
            number=number, process=SimpleNamespace(pid=number), theirs=theirs,
            seat=Seat(channel=Sent()), log=None, ready=True, sums={"served": 5.0},
        )  # fmt: skip
    one, other = asked._workers.values()
    mine = {"sums": {"served": 1.0}, "now": {}}
    question = {"number": 7, "what": "metrics", "mine": mine}
    if fate == "it hangs":
        await asked._ask(one, question)
    else:
        asking = asyncio.create_task(asked._ask(one, question))
        monkeypatch.setattr(launcher, "ANSWER_S", 10 * PATIENCE_S)
        asked._workers[3] = replace(one, number=3, sums={}, seat=Seat(channel=Sent()))
        await asyncio.sleep(0)
        say = other.seat.channel.messages[-1]["number"]
        for number in (2, 3):
            theirs = {"number": say, "said": {"sums": {"served": 5.0 if number == 2 else 0.0}}}
            asked._note_said(number, theirs)
            if number == 2:
                asked._bury(other)
        await asking
    by = one.seat.channel.messages[-1]["by"]
    assert sum(said["sums"].get("served", 0.0) for said in by.values()) == 5.0
    for worker in (one, other):
        worker.theirs.close()


async def test_the_end_of_the_launcher_is_that_of_its_workers(tmp_path):
    port = free_port()
    code = (
        "import sys; from account_pool.workers.launcher import launch; "
        "sys.exit(launch(sys.argv[1:], 2, dict(__import__('os').environ), lambda *_: None))"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, sys.executable, "-P", echo.__file__, str(port),
        cwd=tmp_path, env=ENVIRON, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    for _ in range(2):
        assert b"ready" in await process.stdout.readline()
    connections = []
    for _ in range(2):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        connections.append(Connection(reader, writer))
    for connection in connections:
        await connection.served_by()
    process.kill()
    # The pipe they write to is closed once they have ended, and so are the connections.
    async with asyncio.timeout(PATIENCE_S):
        await process.wait()
        for connection in connections:
            assert await connection.reader.read() == b""
            connection.close()

"""The parent of all workers: starts them, starts anew what has died, and ends them.

The first one starts alone: what it makes at a first start (mitmproxy's authority, the state
database, the admin token) is there for the others, and what is wrong with the command line or
with accounts.yaml is said once. Whoever ends the launcher ends the workers: they notice.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from asyncio.subprocess import STDOUT, Process
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any

from account_pool.supervision import tasks
from account_pool.workers.channel import Channel, Message, pair, unread
from account_pool.workers.front import Address, Front, Seat
from account_pool.workers.worker import VARIABLE

#: Pause before a worker that has died again is started anew, seconds: at first, and at most;
#: doubles. One that served for a while before is started at once.
PAUSE_S, MAX_PAUSE_S = 1.0, 60.0
SERVED_S = 10.0
#: How long after its drain a worker that has been asked to end is killed, seconds: it ends by
#: itself before that (`proxy/draining.py`).
GRACE_S = 10.0
#: How long the others may take to say what a worker asks them, seconds. One that has taken
#: longer is asked, and not waited for until it has said something.
ANSWER_S = 5.0
#: How long the last lines of a worker that has ended may take, seconds: a process that it has
#: started may go on, with the same output.
LOG_S = 1.0
#: Signals that are passed on as they are.
PASSED_ON = ("SIGUSR1", "SIGUSR2")


@dataclass(slots=True, eq=False, kw_only=True)
class Worker:
    """A worker process.

    Attributes:
        number: from 1; whoever is started in its place has the same.
        theirs: its end of the channel: what it has not read when it dies is read there.
        log: reads what it prints, and what others print there.
        stopping: it takes no connections any more.
        drain_s: how long it lets requests finish when it ends.
        ready_at: since when it serves, monotonic seconds.
        silent: it did not say in time what it was asked, and has said nothing since.
        sums: those it has reported last (`admin/workers.py`), by name.
    """

    number: int
    process: Process
    theirs: Any
    seat: Seat
    log: asyncio.Task[None]
    ready: bool = False
    stopping: bool = False
    drain_s: float = 10.0
    ready_at: float = 0.0
    silent: bool = False
    sums: Mapping[str, float] = field(default_factory=dict)

    def send(self, message: Message) -> None:
        self.seat.channel.send(message)

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has ended
            self.process.send_signal(number)


class Launcher:
    """Runs some workers until it is asked to end.

    *command* is what a worker is, without what it is told of itself.
    """

    def __init__(
        self,
        command: Sequence[str],
        workers: int,
        environ: Mapping[str, str],
        write: Callable[[bytes], object],
    ) -> None:
        self._command, self._count, self._environ = command, workers, environ
        self._write = write
        self._workers: dict[int, Worker] = {}
        self._instance = secrets.token_hex(8)
        self._started_at = time.monotonic()
        self._ending = False
        self._code = 0
        self._over = asyncio.Event()
        self._first_is_ready = asyncio.Event()
        self._front = Front(lambda: [w.seat for w in self._serving()], self._say)
        #: what a worker has asked the others, by number: what they have said, who is to say it
        self._asked: dict[int, tuple[dict[str, Any], set[int], asyncio.Event]] = {}
        self._questions = count(1)
        #: of workers that have ended: a sum that was reported never falls
        self._ended: Counter[str] = Counter()

    async def run(self) -> int:
        """Serve until the end; return the exit code."""
        self._listen_to_signals()
        kept = [
            tasks.supervised(f"worker {number}", partial(self._keep, number))
            for number in range(1, self._count + 1)
        ]
        await self._over.wait()
        await asyncio.gather(*kept)
        return self._code

    # -- the life of a worker

    async def _keep(self, number: int) -> None:
        """Have a worker *number* until the end."""
        pause_s = PAUSE_S
        if number != 1:
            await self._first_is_ready.wait()
        while not self._ending:
            worker = await self._start(number)
            code = await worker.process.wait()
            await asyncio.wait({worker.log}, timeout=LOG_S)
            self._bury(worker)
            if self._ending:
                # One that has not begun to serve ends by the signal.
                if worker.ready or code != -signal.SIGTERM:
                    self._code = self._code or _exit_code(code)
                return
            if not worker.ready and not self._serving():
                # It says itself what is wrong, and there is nobody else who serves.
                self._code = _exit_code(code)
                self._end()
                return
            self._say(f"worker {number} has ended ({_how(code)}); it is started anew")
            served = worker.ready and time.monotonic() - worker.ready_at >= SERVED_S
            if served or (worker.ready and code == 0):
                pause_s = PAUSE_S
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._over.wait()
            pause_s = min(2 * pause_s, MAX_PAUSE_S)

    async def _start(self, number: int) -> Worker:
        ours, theirs = pair()
        # A pipe of asyncio's would be waited for with the process.
        printed, output = os.pipe()
        about = {
            "channel": theirs.fileno(),
            "number": number,
            "count": self._count,
            "launcher": os.getpid(),
            "instance": self._instance,
            "started_at": self._started_at,
        }
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                env={**self._environ, VARIABLE: json.dumps(about)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=STDOUT,
                pass_fds=[theirs.fileno()],
                # Ctrl-C and a closed terminal are for us; we ask the workers.
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            theirs.close()
            os.close(printed)
            raise
        finally:
            os.close(output)
        self._workers[number] = worker = Worker(
            number=number,
            process=process,
            theirs=theirs,
            seat=Seat(channel=Channel(ours, partial(self._received, number))),
            log=tasks.once("the log of a worker", partial(self._read_log, number, printed)),
        )
        if self._ending:
            self._ask_to_end(worker, at_once=True)
        return worker

    async def _read_log(self, number: int, printed: int) -> None:
        """Write what worker *number* prints, line by line, until the pipe *printed* ends."""
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(printed, "rb", 0)
        )
        name, rest = b"worker %d: " % number, b""
        while data := await reader.read(65536):
            *lines, rest = (rest + data).split(b"\n")
            if lines:
                self._write(b"".join(name + line + b"\n" for line in lines))
            if len(rest) > 65536:
                self._write(name + rest + b"\n")
                rest = b""
        if rest:
            self._write(name + rest + b"\n")

    def _bury(self, worker: Worker) -> None:
        """Give what *worker* did not get to read to others."""
        del self._workers[worker.number]
        self._ended.update(worker.sums)
        left = worker.seat.channel.close()
        left += unread(worker.theirs)
        worker.theirs.close()
        for message, connection in left:
            self._front.give(_address(message), connection)
        self._tell({"do": "died", "pid": worker.process.pid})
        for said, _, _ in self._asked.values():
            said.pop(str(worker.number), None)  # its sums are among those that have ended
        self._wait_no_more(worker.number)
        self._front.look()

    def _serving(self) -> list[Worker]:
        return [w for w in self._workers.values() if w.ready and not w.stopping]

    # -- what workers say

    def _received(self, number: int, message: Message, connection: Any) -> None:
        worker = self._workers.get(number)
        if worker is None:
            return
        match message["do"]:
            case "listen":
                tasks.once("listening", partial(self._listen, worker, message))
            case "unlisten":
                # What one that ends leaves is for whoever is started in its place.
                if not worker.stopping:
                    worker.seat.listens.discard(_address(message))
                    self._front.unlisten(w.seat for w in self._workers.values())
            case "ready":
                worker.ready, worker.ready_at = True, time.monotonic()
                worker.drain_s = message["drain_s"]
                worker.seat.room = message["room"]
                self._first_is_ready.set()
            case "drain_s":
                worker.drain_s = message["drain_s"]
            case "stopping":
                worker.stopping = True
            case "closed":
                worker.seat.connections -= 1
            case "returned":
                worker.seat.connections -= 1
                if connection is not None:  # else the kernel had no descriptor for it
                    self._front.give(_address(message), connection)
            case "tell":
                self._tell(message["message"], but=number)
            case "ask":
                tasks.once("asking", partial(self._ask, worker, message))
            case "said":
                self._note_said(number, message)
        self._front.look()

    async def _listen(self, worker: Worker, message: Message) -> None:
        address = _address(message)
        try:
            names = await self._front.listen(address, message["backlog"])
        except OSError as e:
            worker.send({"do": "cannot_listen", "at": address, "errno": e.errno, "error": str(e)})
            return
        worker.seat.listens.add(address)
        worker.send({"do": "listening", "at": address, "names": names})
        self._front.look()

    def _tell(self, message: Message, *, but: int = 0) -> None:
        """Pass *message* on to all workers that serve, but one."""
        for worker in self._workers.values():
            if worker.ready and worker.number != but:
                worker.send(message)

    async def _ask(self, asker: Worker, message: Message) -> None:
        """Have the others say what *asker* wants to know, and pass that on."""
        others = [w for w in self._workers.values() if w.ready and w is not asker]
        number, said = next(self._questions), dict[str, Any]()
        awaited, all_said = {w.number for w in others if not w.silent}, asyncio.Event()
        self._asked[number] = said, awaited, all_said
        for other in others:
            other.send({"do": "say", "number": number, "what": message["what"]})
        if awaited:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ANSWER_S):
                    await all_said.wait()
        del self._asked[number]
        for late in awaited:
            # One that hangs delays one response, not each.
            self._workers[late].silent = True
            self._wait_no_more(late)
        if message["mine"] is not None:
            asker.sums = message["mine"]["sums"]
            said["ended"] = {"sums": self._sums_but(asker, said), "now": {}}
        if self._workers.get(asker.number) is asker:
            asker.send({"do": "said", "number": message["number"], "by": said})

    def _sums_but(self, asker: Worker, said: Mapping[str, Any]) -> Mapping[str, float]:
        """Return the sums of all who have not *said* theirs now, as they reported them last."""
        sums = self._ended.copy()
        for worker in self._workers.values():
            if worker is not asker and str(worker.number) not in said:
                sums.update(worker.sums)
        return sums

    def _note_said(self, number: int, message: Message) -> None:
        worker, answer = self._workers[number], message["said"]
        worker.silent = False
        if message["number"] not in self._asked:
            return
        said, awaited, all_said = self._asked[message["number"]]
        if answer is not None:
            said[str(number)] = answer
        if isinstance(answer, dict) and "sums" in answer:
            worker.sums = answer["sums"]
        awaited.discard(number)
        if not awaited:
            all_said.set()

    def _wait_no_more(self, number: int) -> None:
        """Let no question wait for what worker *number* says."""
        for _, awaited, all_said in self._asked.values():
            awaited.discard(number)
            if not awaited:
                all_said.set()

    # -- the end

    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for ends in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(ends, self._end)
        for name in PASSED_ON:
            number = getattr(signal, name)
            loop.add_signal_handler(number, self._pass_on, number)
        loop.add_signal_handler(signal.SIGTSTP, self._suspend)
        loop.add_signal_handler(signal.SIGCONT, self._pass_on, signal.SIGCONT)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)

    def hung_up(self) -> None:
        """Have all workers read accounts.yaml again."""
        for worker in self._workers.values():
            if worker.ready:
                worker.signal(signal.SIGHUP)

    def _pass_on(self, number: int) -> None:
        for worker in self._workers.values():
            worker.signal(number)

    def _suspend(self) -> None:
        self._pass_on(signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)

    def terminal_closed(self) -> None:
        """End, once."""
        if not self._ending:
            self._end()

    def _end(self) -> None:
        """Have all workers finish what is under way; asked again, end them at once."""
        again, self._ending = self._ending, True
        # A successor can take the port.
        self._front.close()
        for worker in self._workers.values():
            self._ask_to_end(worker, at_once=again)
        self._over.set()
        self._first_is_ready.set()

    def _ask_to_end(self, worker: Worker, *, at_once: bool) -> None:
        worker.stopping = True
        if worker.ready:
            worker.send({"do": "end", "at_once": at_once})
        else:
            worker.signal(signal.SIGTERM)
        wait_s = GRACE_S + (0.0 if at_once else worker.drain_s)
        asyncio.get_running_loop().call_later(wait_s, self._kill, worker)

    def _kill(self, worker: Worker) -> None:
        if self._workers.get(worker.number) is worker:
            self._say(f"worker {worker.number} does not end; it is killed")
            worker.signal(signal.SIGKILL)

    def _say(self, what: str) -> None:
        self._write(f"account-pool: {what}\n".encode())


def _address(message: Message) -> Address:
    host, port, which = message["at"]
    return host, port, which


def _exit_code(code: int) -> int:
    return code if code >= 0 else 128 - code


def _how(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"


def launch(
    command: Sequence[str],
    workers: int,
    environ: Mapping[str, str],
    on_sighup: Callable[..., object],
) -> int:
    """Run *workers* workers, each by *command*, until the end; return the exit code.

    *on_sighup* is `proxy.process.on_sighup`.
    """

    def write(data: bytes) -> None:
        # Nobody may read any more.
        with contextlib.suppress(OSError):
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()

    async def run() -> int:
        launcher = Launcher(command, workers, environ, write)
        on_sighup(launcher.hung_up, launcher.terminal_closed, lambda: None)
        return await launcher.run()

    return asyncio.run(run())

"""The proxy of a port: used by several, started by the first, ended by the last.

Only a proxy that a `run` started is ever ended or replaced, and only with proof that the
process still is that one (`processes.identity`). A mitmproxy somebody else started is
used as it is.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from account_pool.cli import processes, proxy_process
from account_pool.cli.api import Health, Line, Missing, probe
from account_pool.cli.places import HOST, Places
from account_pool.cli.record import Launch, Record, locked, read_record, write_record
from account_pool.cli.watch import LOOK_CLOSER_S, Seen, Step, Watch


class CannotUse(Exception):
    """There is no proxy to use and none can be started; the text says what to do."""


@dataclass(slots=True)
class SharedProxy:
    """One use of the proxy of a port.

    Attributes:
        places: its files.
        environ: the environment a proxy is started with.
        started: the processes started here, to be collected when they end.
        over: set when the tool has ended: nobody waits for a proxy any more.
    """

    places: Places
    environ: Mapping[str, str]
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)
    _line: Line | None = None

    def attach(self, launch: Launch, unfit: Callable[[Health], str] = lambda _health: "") -> Health:
        """Use the proxy of the port, started by *launch* if there is none.

        *unfit* says why one that runs already is not what the user wants, "" if it is.
        Raises CannotUse, CannotStart, OSError.
        """
        self._wait_for_hung()
        with locked(self.places):
            record = self._record()
            health = probe(self.places.port)
            if isinstance(health, Health):
                if not health.ready:
                    health = self._until_ready()
                why = unfit(health)
                if not why:
                    self._use(record, health)
                    return health
                if not _is_left_over(record, health):
                    raise CannotUse(why)
            if record is None and health is not Missing.NOBODY:
                raise CannotUse(
                    f"{HOST}:{self.places.port} is used by something that is not the pool, or "
                    "hangs; name another --port"
                )
            if record is not None and record.living_users(processes.identity):
                # It died under others, who started it otherwise perhaps.
                health = self._start(record.launch, record)
                if why := unfit(health):
                    raise CannotUse(why)
                return health
            return self._start(launch, record)

    def detach(self) -> None:
        """Use it no more; end it when nobody else does."""
        if self._line is not None:
            self._line.close()
        if read_record(self.places) is None:
            return
        with locked(self.places):
            record = self._record()
            if record is None:
                return
            users = record.living_users(processes.identity)
            users.pop(os.getpid(), None)
            if users:
                write_record(self.places, replace(record, users=users))
                return
            processes.end(record.pid, record.proof)
            self.places.record.unlink(missing_ok=True)
        self.collect()

    def revive(self) -> bool:
        """Start the proxy anew if it still is dead or hung; say whether that was needed.

        Raises CannotStart, OSError.
        """
        with locked(self.places):
            # Another `run` may have been quicker.
            if isinstance(probe(self.places.port), Health):
                return False
            record = read_record(self.places)
            if record is None:
                return False
            self._start(record.launch, record)
            return True

    def look(self) -> Seen | None:
        """Return how it is; None for a proxy that no `run` started."""
        self.collect()
        record = read_record(self.places)
        if record is None:
            return None
        self._line = self._line or Line(self.places.port)
        health = self._line.probe()
        alive = processes.identity(record.pid) == record.proof
        return Seen(alive=alive, busy=health.busy if isinstance(health, Health) else None)

    def has_ended(self) -> bool:
        """Say whether a process that was started here has ended and was not collected."""
        return any(process.poll() is not None for process in self.started)

    def collect(self) -> None:
        """Take notice of processes that have ended."""
        self.started = [process for process in self.started if process.poll() is None]

    def _record(self) -> Record | None:
        """Return the record, if its proxy still runs; forget one of the past."""
        record = read_record(self.places)
        if record is None or processes.identity(record.pid) == record.proof:
            return record
        if record.living_users(processes.identity):
            return record
        self.places.record.unlink(missing_ok=True)
        return None

    def _use(self, record: Record | None, health: Health) -> None:
        if record is None:
            return
        if record.instance not in ("", health.instance):
            # Not the one of the record: somebody started another there by hand.
            self.places.record.unlink(missing_ok=True)
            return
        users = {**record.living_users(processes.identity), **_me()}
        write_record(self.places, replace(record, instance=health.instance, users=users))

    def _start(self, launch: Launch, old: Record | None) -> Health:
        """Start a proxy in place of the one of *old*, which is ended first."""
        users = _me()
        if old is not None:
            users |= old.living_users(processes.identity)
            processes.end(old.pid, old.proof)
        log_from = proxy_process.log_size(self.places)
        process = proxy_process.start(self.places, launch, self.environ)
        self.started.append(process)
        record = Record(process.pid, processes.identity(process.pid) or "", launch, users=users)
        write_record(self.places, record)
        try:
            health = proxy_process.wait_until_ready(self.places, process, log_from, self.over)
        except BaseException:
            # Not found ready, or interrupted: nothing of it stays.
            process.kill()
            process.wait()
            self._forget(old, record)
            raise
        write_record(self.places, replace(record, instance=health.instance))
        return health

    def _forget(self, old: Record | None, record: Record) -> None:
        """Note that the proxy of *record* is no more; who uses it tries again."""
        if old is None:
            self.places.record.unlink(missing_ok=True)
        else:
            write_record(self.places, record)

    def _until_ready(self) -> Health:
        until = time.monotonic() + proxy_process.READY_S
        while time.monotonic() < until:
            found = probe(self.places.port)
            if isinstance(found, Health) and found.ready:
                return found
            time.sleep(LOOK_CLOSER_S)
        raise CannotUse(f"the proxy at {HOST}:{self.places.port} does not become ready")

    def _wait_for_hung(self) -> None:
        """Give a proxy of ours that does not answer the time the watch would give it."""
        record = read_record(self.places)
        if record is None or probe(self.places.port) is not Missing.SILENT:
            return
        in_use = bool(record.living_users(processes.identity))
        watch = Watch(time.monotonic(), busy=int(in_use))
        while (seen := self.look()) is not None and seen.alive and seen.busy is None:
            if watch.look(seen, time.monotonic()) is Step.REPLACE:
                return
            time.sleep(LOOK_CLOSER_S)


def _is_left_over(record: Record | None, health: Health) -> bool:
    """Say whether it is a proxy of ours that nobody uses: its `run` was killed."""
    if record is None or record.instance not in ("", health.instance):
        return False
    return not record.living_users(processes.identity)


def _me() -> dict[int, str]:
    return {os.getpid(): processes.identity(os.getpid()) or ""}

"""The proxy of a port: used by several, started by the first, watched, ended by the last.

Only a proxy that a `run` started is ever ended or replaced, and only with proof that the
process still is that one (`processes.identity`). A mitmproxy that was started otherwise is used
as it is. `Watch` decides whether the proxy needs help, `Guard` watches it while a tool runs.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from account_pool.cli import api, processes
from account_pool.cli.api import Health, Missing, PoolConnection, probe
from account_pool.cli.certificates import upstream_trust
from account_pool.cli.environment import without_own_proxy
from account_pool.cli.output import Failed
from account_pool.cli.processes import (
    HOST,
    Launch,
    Places,
    Record,
    locked,
    read_record,
    write_record,
)
from account_pool.config.accounts_file import shown
from account_pool.demo.mitmdump import START_TIMEOUT_S, addon_script, cause, mitmdump_command
from account_pool.supervision import where

# -- whether it needs help: dead, hung, or well
#
# A dead proxy serves no request, so it is started at once. A hung one may still carry answers that
# stream: it is ended only when nothing was in flight, or when the grace has passed.

#: Seconds between two looks at a proxy that is well, and at one that is not.
LOOK_S, LOOK_CLOSER_S = 2.0, 0.5
#: A probe or two may be lost on a machine that is busy or just woke up.
MISSES = 3
#: Seconds a silent proxy is left alone while requests were in flight.
GRACE_S = 60.0
#: Seconds before the second start in a row; doubles up to the last.
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 30.0
#: Starts in a row that did not help.
MAX_STARTS = 10
#: After so many seconds of answering, the next start is a first one again.
STEADY_S = 60.0


class Step(StrEnum):
    """What to do now."""

    NOTHING = "nothing"
    #: it is dead: start another
    START = "start"
    #: it is hung: end it, then start another
    REPLACE = "replace"
    #: starting it again and again does not help
    GIVE_UP = "give up"


@dataclass(frozen=True, slots=True)
class Seen:
    """What one look shows; *busy*: requests in flight, None when it did not answer."""

    alive: bool
    busy: int | None = None


class Watch:
    """Decides, look by look, for one proxy and those started in its place.

    *starts*: how often in a row it was started without being well for STEADY_S.
    """

    def __init__(self, now: float, *, busy: int = 0) -> None:
        """Begin at *now*; *busy* requests may be in flight until it says otherwise."""
        self.starts = 0
        self._well_since: float | None = None
        self._silent_since: float | None = None
        self._misses = 0
        self._busy = busy
        self._start_at = now

    def look(self, seen: Seen, now: float) -> Step:
        """Return what to do; *now* in monotonic seconds. After a step it is called again."""
        if seen.alive and seen.busy is not None:
            self._answered(seen.busy, now)
            return Step.NOTHING
        if seen.alive and not self._hung(now):
            return Step.NOTHING
        return self._begin(Step.REPLACE if seen.alive else Step.START, now)

    def look_again_in_s(self) -> float:
        """Return how long to wait before the next look."""
        return LOOK_S if self._well_since is not None and not self._misses else LOOK_CLOSER_S

    def _answered(self, busy: int, now: float) -> None:
        self._busy, self._misses, self._silent_since = busy, 0, None
        if self._well_since is None:
            self._well_since = now
        if now - self._well_since >= STEADY_S:
            self.starts = 0

    def _hung(self, now: float) -> bool:
        self._misses += 1
        if self._silent_since is None:
            self._silent_since = now
        if self._busy and now - self._silent_since < GRACE_S:
            return False
        return self._misses >= MISSES

    def _begin(self, step: Step, now: float) -> Step:
        if self.starts >= MAX_STARTS:
            return Step.GIVE_UP
        if now < self._start_at:
            return Step.NOTHING
        wait_s = min(FIRST_WAIT_S * 2.0**self.starts, LONGEST_WAIT_S)
        self.starts += 1
        self._start_at = now + wait_s
        self._well_since = self._silent_since = None
        self._misses = self._busy = 0
        return step


# -- the proxy as a process: started, waited for, its last words
#
# It is a session of its own: a Ctrl-C in the terminal is the tool's, not the proxy's.

#: Seconds a proxy has to get ready.
READY_S = START_TIMEOUT_S
#: A log this large is set aside when a proxy starts; one old log is kept.
LARGE_LOG_BYTES = 4 * 1024 * 1024
_POLL_S = 0.05


class CannotStart(Failed):
    """The proxy ended, or did not get ready; the text is its own last word."""


def start(places: Places, launch: Launch, environ: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a proxy that writes to the log of *places*. Raises OSError."""
    _set_aside(places)
    words = [*command(places, launch), *upstream_trust(places, environ, launch.arguments)]
    # Appended: what the one before said last is what one looks for.
    descriptor = os.open(places.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "ab") as log:
        return subprocess.Popen(  # noqa: S603 - our own words, no shell
            words,
            cwd=launch.folder,
            env={**without_own_proxy(environ, places.url), "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # The same on Windows.
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )


def command(places: Places, launch: Launch) -> Sequence[str]:
    """Return the command line of the proxy."""
    return [
        *mitmdump_command(),
        *("-s", str(addon_script())),
        *("--listen-host", HOST, "--listen-port", str(places.port)),
        # The log is for people: failovers, not each request.
        *("--set", "flow_detail=0"),
        *launch.arguments,
    ]


def wait_until_ready(
    places: Places, process: subprocess.Popen[bytes], log_from: int, over: threading.Event
) -> Health:
    """Return the health of the proxy once it serves. Raises CannotStart.

    Args:
        log_from: the size of the log before it started.
        over: set when no tool waits for it any more.
    """
    until = time.monotonic() + READY_S
    while time.monotonic() < until:
        health = probe(places.port)
        if process.poll() is not None:
            break
        if isinstance(health, Health) and health.ready:
            return health
        if over.wait(_POLL_S):
            break
    code = process.poll()
    how = "did not start" if code is not None else f"did not get ready within {READY_S:g} s"
    why = cause(_log_since(places, log_from), code)
    raise CannotStart(f"the proxy {how}: {why}; its log is {shown(places.log)}")


def log_size(places: Places) -> int:
    """Return how long the log is, in bytes."""
    return places.log.stat().st_size if places.log.exists() else 0


def note(places: Places, text: str) -> None:
    """Add a line of our own to the log. A full disk does not stop the tool."""
    try:
        with places.log.open("a", encoding="utf-8") as log:
            log.write(f"[{time.strftime('%H:%M:%S')}.000] account-pool run: {text}\n")
    except OSError:
        return


def _set_aside(places: Places) -> None:
    if log_size(places) > LARGE_LOG_BYTES:
        places.log.replace(places.log.with_suffix(".log.1"))


def _log_since(places: Places, log_from: int) -> list[str]:
    with places.log.open("rb") as log:
        log.seek(log_from if log_from <= log_size(places) else 0)
        return log.read().decode(errors="replace").splitlines()


# -- one use of it


@dataclass(slots=True)
class SharedProxy:
    """One use of the proxy of a port.

    Attributes:
        environ: the environment a proxy is started with.
        started: the processes started here, to be collected when they end.
        over: set when the tool has ended, and no proxy is waited for any more.
    """

    places: Places
    environ: Mapping[str, str]
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)
    _connection: PoolConnection | None = None

    def attach(self, launch: Launch, unfit: Callable[[Health], str] = lambda _health: "") -> Health:
        """Use the proxy of the port, started by *launch* if there is none.

        *unfit* says why one that runs already is not what the user wants, "" if it is.
        Raises Failed where there is none to use, CannotStart, OSError.
        """
        self._wait_for_hung()
        with locked(self.places):
            record = self._record()
            # One without a record is not of a `run`, and nobody has waited for it yet.
            health = (probe if record else api.probe_patiently)(self.places.port)
            if isinstance(health, Health):
                if not health.ready:
                    health = self._until_ready()
                why = unfit(health)
                if not why:
                    self._use(record, health)
                    return health
                if not _is_left_over(record, health):
                    raise Failed(why)
            if record is None and health is not Missing.NOBODY:
                raise Failed(f"{HOST}:{self.places.port} {health}; name another --port")
            if record is not None and record.living_users():
                # It died under others, who started it otherwise perhaps.
                health = self._start(record.launch, record)
                if why := unfit(health):
                    raise Failed(why)
                return health
            return self._start(launch, record)

    def detach(self) -> None:
        """Stop using it; end it unless another `run` uses it."""
        if self._connection is not None:
            self._connection.close()
        if read_record(self.places) is None:
            return
        with locked(self.places):
            record = self._record()
            if record is None:
                return
            users = record.living_users()
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
        self._connection = self._connection or PoolConnection(self.places.port, api.PROBE_S)
        health = self._connection.probe()
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
        if record.living_users():
            return record
        self.places.record.unlink(missing_ok=True)
        return None

    def _use(self, record: Record | None, health: Health) -> None:
        if record is None:
            return
        if record.instance not in ("", health.instance):
            # Not the one of the record: another was started there by hand.
            self.places.record.unlink(missing_ok=True)
            return
        users = {**record.living_users(), **_me()}
        write_record(self.places, replace(record, instance=health.instance, users=users))

    def _start(self, launch: Launch, old: Record | None) -> Health:
        """Start a proxy in place of the one of *old*, which is ended first."""
        users = _me()
        if old is not None:
            users |= old.living_users()
            processes.end(old.pid, old.proof)
        log_from = log_size(self.places)
        process = start(self.places, launch, self.environ)
        self.started.append(process)
        record = Record(process.pid, processes.identity(process.pid) or "", launch, users=users)
        write_record(self.places, record)
        try:
            health = wait_until_ready(self.places, process, log_from, self.over)
        except BaseException:
            # Not found ready, or interrupted: nothing of it stays.
            process.kill()
            process.wait()
            if old is None:
                self.places.record.unlink(missing_ok=True)
            else:
                write_record(self.places, record)  # who uses it tries again
            raise
        write_record(self.places, replace(record, instance=health.instance))
        return health

    def _until_ready(self) -> Health:
        if (found := api.until_ready(self.places.port, READY_S, LOOK_CLOSER_S)) is None:
            raise Failed(f"the proxy at {HOST}:{self.places.port} did not become ready")
        return found

    def _wait_for_hung(self) -> None:
        """Give a proxy of ours that does not answer the time the watch would give it."""
        record = read_record(self.places)
        if record is None or probe(self.places.port) is not Missing.SILENT:
            return
        in_use = bool(record.living_users())
        watch = Watch(time.monotonic(), busy=int(in_use))
        while (seen := self.look()) is not None and seen.alive and seen.busy is None:
            if watch.look(seen, time.monotonic()) is Step.REPLACE:
                return
            time.sleep(LOOK_CLOSER_S)


def _is_left_over(record: Record | None, health: Health) -> bool:
    """Say whether it is a proxy of ours without users: its `run` was killed."""
    if record is None or record.instance not in ("", health.instance):
        return False
    return not record.living_users()


def _me() -> dict[int, str]:
    return {os.getpid(): processes.identity(os.getpid()) or ""}


# -- watched while a tool runs: nothing is said on the terminal, which is the tool's

#: How often a process of our own is asked whether it is there, in seconds: it costs nothing.
_NOTICE_S = 0.1


class Guard:
    """Runs in a thread of its own for as long as its block lasts."""

    def __init__(self, proxy: SharedProxy) -> None:
        self._proxy = proxy
        self._thread = threading.Thread(target=self._run, name="guard of the proxy", daemon=True)
        self._restarts = 0
        self._given_up = False

    def __enter__(self) -> Guard:
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._proxy.over.set()
        self._thread.join()

    def summary(self) -> str | None:
        """Return what the user should know of the proxy, None if it was well."""
        if self._given_up:
            return "the proxy kept crashing and is no longer restarted; see account-pool logs"
        if self._restarts:
            times = "once" if self._restarts == 1 else f"{self._restarts} times"
            return f"the proxy had to be restarted {times}; see account-pool logs"
        return None

    def _run(self) -> None:
        watch = Watch(time.monotonic())
        while not self._wait(watch.look_again_in_s()):
            seen = self._seen()
            if seen is None:
                # Not started by a `run`: whoever did takes care of it. It may also be
                # between two starts of another `run`.
                continue
            step = watch.look(seen, time.monotonic())
            if step is Step.GIVE_UP:
                self._given_up = True
                note(self._proxy.places, "gave up: restarting the proxy does not help")
                return
            if step is not Step.NOTHING:
                self._revive(step)

    def _seen(self) -> Seen | None:
        """Return how the proxy is; the tool runs on, and is watched, whatever fails here."""
        try:
            return self._proxy.look()
        except Exception as error:
            note(self._proxy.places, f"looking at the proxy failed: {where(error)}")
            return None

    def _revive(self, step: Step) -> None:
        found = "is dead" if step is Step.START else "does not answer"
        note(self._proxy.places, f"the proxy {found}; restarting it")
        try:
            self._restarts += self._proxy.revive()
        except (CannotStart, OSError) as error:
            if self._proxy.over.is_set():
                return
            note(self._proxy.places, str(error))
        except Exception as error:
            note(self._proxy.places, f"restarting the proxy failed: {where(error)}")

    def _wait(self, seconds: float) -> bool:
        """Wait, less if a process of ours ends; say whether it is all over."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self._proxy.over.wait(min(left, _NOTICE_S)):
                return True
            if seconds > LOOK_CLOSER_S and self._proxy.has_ended():
                return False
        return self._proxy.over.is_set()

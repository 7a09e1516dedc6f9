"""Tells the owner of the pool when an account goes, and when it is back (`pool_notify`).

What is told is decided in `core/notifications.py`; here it is looked for, and handed to the
targets. Each target has a queue of its own: one that hangs or fails delays no request and no
other target. That it fails is logged once; the next notification tries it again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from math import isfinite
from typing import Any, Protocol

from mitmproxy.options import Options

from account_pool.config.notify import FromVariable, Target
from account_pool.core import notifications
from account_pool.core.account import AccountKey
from account_pool.core.decisions import Decision, Kind
from account_pool.core.notifications import Notification, Row, Subject, Verdict, Watch
from account_pool.core.wrong import Wrong
from account_pool.credentials.http import Http
from account_pool.proxy import notify_targets
from account_pool.proxy.notify_targets import NotSent
from account_pool.proxy.service import Service
from account_pool.store.store import StoreError
from account_pool.supervision import tasks
from account_pool.version import __version__

logger = logging.getLogger(__name__)

#: How often is looked, seconds: some conditions begin without a decision.
LOOK_S = 5.0
#: How long after a decision is looked, seconds: what one refusal causes is one look.
SETTLE_S = 0.25
#: Notifications that wait for one target at most; beyond, the oldest is dropped.
MAX_WAITING = 100
#: How long a target has for one notification, seconds.
SEND_S = 10.0

_OF_INTEREST = frozenset({Kind.COOLDOWN, Kind.RELEASE, Kind.DISABLE, Kind.ENABLE})


class SharedLog(Protocol):
    """The log that the proxies on one store share, as `SharedNotices` has it."""

    async def note(
        self, begun: Collection[Subject], ended: Collection[Subject]
    ) -> Mapping[Subject, Verdict]:
        """Decide which of these this proxy tells. Raises StoreError."""

    async def noted(self) -> Collection[Subject]:
        """Return the conditions that were told and are not over. Raises StoreError."""


class Notifier:
    """Looks for what is to be told, and has it sent.

    Attributes:
        is_first: it is the one of several workers that tells what cannot be shared.
        login_ends: returns when logins come to their own end, seconds since the epoch.
    """

    def __init__(self, service: Service, http_of: Callable[[Options], Http]) -> None:
        self.is_first = True
        self.login_ends: Callable[[], Mapping[AccountKey, float]] = dict
        self._service = service
        self._http_of = http_of
        self._senders: dict[Target | FromVariable, Sender] = {}
        self._options: Options | None = None
        self._log: Callable[[], SharedLog | None] = lambda: None
        self._watch: Watch | None = None
        #: what this proxy knows while the log cannot be used
        self._rows: dict[Subject, Row] = {}
        self._woken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._started = False

    def use(self, targets: Sequence[Target | FromVariable], options: Options) -> None:
        """Send to *targets* from now on; *options* are mitmproxy's."""
        self._options = options
        before, self._senders = self._senders, {}
        for target in targets:
            known = before.pop(target) if target in before else None
            self._senders[target] = known or Sender(target, self._send)
        for sender in before.values():
            sender.close()
        self._begin()

    def start(self, log: Callable[[], SharedLog | None]) -> None:
        """Begin to look. Needs the running loop. *log* returns the log, None before there is."""
        self._log, self._started = log, True
        self._service.pool.decisions.subscribe(self._decided)
        self._begin()

    def stop(self) -> None:
        """Look no more, and send no more."""
        self._started = False
        if self._task is not None:
            self._task.cancel()
        for sender in self._senders.values():
            sender.close()

    def targets(self) -> list[dict[str, str | None]]:
        """Return each target as it may be shown, and why it was not reached, for people."""
        return [{"target": s.shown, "problem": s.problem} for s in self._senders.values()]

    def _begin(self) -> None:
        if self._started and self._senders and (self._task is None or self._task.done()):
            self._task = tasks.supervised("looking for what is to be notified", self._run)

    def _decided(self, decision: Decision) -> None:
        if decision.kind in _OF_INTEREST:
            self._woken.set()

    async def _run(self) -> None:
        while self._senders:
            self._woken.clear()
            for told in await self.look():
                value = self.as_json(told)
                for sender in self._senders.values():
                    sender.send(value)
            try:
                await asyncio.wait_for(self._woken.wait(), LOOK_S)
                await asyncio.sleep(SETTLE_S)
            except TimeoutError:
                pass

    async def look(self) -> list[Notification]:
        """Return what is to be told now."""
        service = self._service
        if self._watch is None:
            self._watch = Watch(await self._known())
        now = service.now()
        found = notifications.find(
            service.pool.accounts,
            now=now,
            wall_now=service.wall_now(),
            held_s=service.settings.limits.max_wait_s,
            before=self._watch.standing,
            state_problem=service.state_problem(),
            login_ends=self.login_ends(),
        )
        begun, ended = self._watch.compare(found, now)
        if not begun and not ended:
            return []
        verdicts = await self._note(begun, ended)
        return list(self._watch.took(found, verdicts, now))

    async def _known(self) -> Collection[Subject]:
        log = self._log()
        try:
            noted = await log.noted() if log is not None else ()
        except StoreError:
            return ()
        here = {str(state.key) for state in self._service.pool.accounts}
        here |= {"", *self._service.pool.accounts.providers()}
        return [subject for subject in noted if subject.about in here]

    async def _note(
        self, begun: Collection[Subject], ended: Collection[Subject]
    ) -> Mapping[Subject, Verdict]:
        """Ask the log; without it this proxy decides by itself, for all workers if it is first."""
        log = self._log()
        try:
            if log is not None:
                return await log.note(begun, ended)
        except StoreError:
            pass
        verdicts, changed = notifications.note(self._rows, begun, ended, self._service.now())
        self._rows |= changed
        return verdicts if self.is_first else dict.fromkeys(verdicts, Verdict.KNOWN)

    def as_json(self, told: Notification) -> dict[str, Any]:
        """Return *told* as targets get it."""
        service = self._service
        wall_now = service.wall_now()
        until = wall_now + told.until - service.now()
        return {
            "event": told.subject.event.value,
            "text": told.text,
            "at": _iso(wall_now),
            "provider": told.provider,
            "account": None if told.account is None else str(told.account),
            "model": told.model,
            "window": told.window,
            "used": told.used,
            "until": _iso(until) if isfinite(told.until) else None,
            "host": socket.gethostname(),
            "version": __version__,
        }

    async def _send(self, target: Target | FromVariable, value: Mapping[str, Any]) -> None:
        assert self._options is not None
        if isinstance(target, FromVariable):
            try:
                target = target.read(os.environ)
            except Wrong as error:
                raise NotSent(str(error)) from None
        http = self._http_of(self._options)
        port = self._options.listen_port or 8080
        await notify_targets.send(target, value, http=http, own_port=port, timeout_s=SEND_S)


def _iso(wall_at: float) -> str:
    at = datetime.fromtimestamp(wall_at, UTC)
    return at.isoformat(timespec="seconds").replace("+00:00", "Z")


class Sender:
    """One target, what waits for it, and whether it is reached.

    Attributes:
        shown: the target, without what is a secret of it.
        problem: why the last notification did not arrive; None if it did.
    """

    def __init__(
        self,
        target: Target | FromVariable,
        send: Callable[[Target | FromVariable, Mapping[str, Any]], Any],
    ) -> None:
        self.shown = target.shown
        self.problem: str | None = None
        self._target, self._send = target, send
        self._waiting: deque[Mapping[str, Any]] = deque(maxlen=MAX_WAITING)
        self._task: asyncio.Task[object] | None = None

    def send(self, value: Mapping[str, Any]) -> None:
        """Have *value* sent; returns at once."""
        self._waiting.append(value)
        if self._task is None or self._task.done():
            self._task = tasks.once(f"notifying {self.shown}", self._run)

    def close(self) -> None:
        """Send nothing any more."""
        self._waiting.clear()
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        while self._waiting:
            value = self._waiting.popleft()
            try:
                await self._send(self._target, value)
            except NotSent as error:
                self._failed(value, str(error))
            except Exception as error:
                # Of an address that nobody thought of; its text may quote what is secret.
                self._failed(value, f"it cannot be sent ({type(error).__name__})")
            else:
                if self.problem is not None:
                    logger.info(f"account-pool: {self.shown}: notifications arrive again")
                self.problem = None

    def _failed(self, value: Mapping[str, Any], problem: str) -> None:
        if self.problem is None:
            logger.warning(
                f"account-pool: {self.shown}: the notification {value['event']} did not arrive: "
                f"{problem}; the next one tries again"
            )
        self.problem = problem

"""Tells the owner of the pool when an account goes, and when it is back (`pool_notify`).

What is told is decided in `core/notifications.py`; here it is looked for, and handed to the
targets. Each target has a queue of its own: one that hangs or fails delays no request and no
other target. That it fails is logged once; the next notification tries it again.

A target is a webhook, ntfy, the desktop or a command. Nothing goes there through the pool
itself: our HTTP client does not take its proxy from the environment, and commands do not find
this proxy there. What is shown of a target is its host or its program: paths, queries and
arguments hold secrets.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import sys
from asyncio.subprocess import DEVNULL, PIPE
from base64 import b64encode
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from math import isfinite
from typing import Any, assert_never
from urllib.parse import unquote, urlsplit, urlunsplit

from mitmproxy.options import Options
from msgspec.structs import replace

from account_pool.config.notify import (
    NOTIFY_SEND,
    Command,
    Desktop,
    FromVariable,
    Ntfy,
    Target,
    Webhook,
)
from account_pool.core import notifications
from account_pool.core.account import AccountKey
from account_pool.core.browser import stays_here
from account_pool.core.decisions import Decision, Kind
from account_pool.core.notifications import Event, Notification, Row, Subject, Verdict, Watch
from account_pool.core.wrong import Wrong
from account_pool.credentials.command import kill_group, started
from account_pool.credentials.http import Http, HttpFailed
from account_pool.filesystem import reason_of
from account_pool.proxy.fleet import SharedNotices
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
        self._log: Callable[[], SharedNotices | None] = lambda: None
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

    def start(self, log: Callable[[], SharedNotices | None]) -> None:
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
                async with asyncio.timeout(LOOK_S):
                    await self._woken.wait()
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
        # Of a mode that names one (regular@9090), no option has it.
        port = self._service.fleet.port or self._options.listen_port or 8080
        await send(target, value, http=http, own_port=port, timeout_s=SEND_S)


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


# -- how targets are reached

#: Services that accept no fields but their own, and which of those is the text.
_TEXT_FIELDS: Mapping[str, str] = {
    "hooks.slack.com": "text",
    "chat.googleapis.com": "text",
    "discord.com": "content",
    "discordapp.com": "content",
}
_GOOD_NEWS = frozenset({Event.BACK.value})
_URGENT = frozenset({Event.DISABLED.value, Event.LOGIN_LAPSED.value, Event.ALL_ON_COOLDOWN.value})
TITLE = "account-pool"
#: What desktops read as markup.
_NO_MARKUP = str.maketrans({"<": "(", ">": ")", "&": "+"})
#: Shows a toast; the text comes on the input, so that nothing in it is code.
_TOAST = """
$told = [Console]::In.ReadToEnd() | ConvertFrom-Json
[void][Windows.UI.Notifications.ToastNotificationManager,Windows.UI.Notifications,ContentType=WindowsRuntime]
$kind = [Windows.UI.Notifications.ToastTemplateType]::ToastText02
$toast = [Windows.UI.Notifications.ToastNotificationManager]::GetTemplateContent($kind)
$lines = $toast.GetElementsByTagName('text')
[void]$lines.Item(0).AppendChild($toast.CreateTextNode($told.title))
[void]$lines.Item(1).AppendChild($toast.CreateTextNode($told.text))
$app = '{1AC14E77-02E7-4E5D-B744-2EB1AE5198B7}\\WindowsPowerShell\\v1.0\\powershell.exe'
[Windows.UI.Notifications.ToastNotificationManager]::CreateToastNotifier($app).Show(
    [Windows.UI.Notifications.ToastNotification]::new($toast))
"""
_PROXY_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


class NotSent(Exception):
    """A notification did not arrive; the text says why, without what is a secret of the target."""


async def send(
    target: Target, value: Mapping[str, Any], *, http: Http, own_port: int, timeout_s: float
) -> None:
    """Send *value* to *target*, within *timeout_s* seconds. Raises NotSent.

    Args:
        http: how this proxy reaches others by itself.
        own_port: where it listens.
    """
    match target:
        case Webhook(url):
            body = _body_for(urlsplit(url).hostname or "", value)
            await _post(http, url, body, timeout_s)
        case Ntfy(url, topic):
            await _post(http, url, _ntfy(topic, value), timeout_s)
        case Command(arguments):
            await _run(arguments, target.shown, f"{json.dumps(value)}\n", own_port, timeout_s)
        case Desktop():
            text = json.dumps({"title": TITLE, "text": value["text"]})
            arguments = desktop_command(str(value["text"]), sys.platform)
            await _run(arguments, arguments[0], text, own_port, timeout_s)
        case _:
            assert_never(target)


def _body_for(host: str, value: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return *value*, or what the service at *host* takes instead."""
    for known, name in _TEXT_FIELDS.items():
        if host == known or host.endswith(f".{known}"):
            return {name: f"{TITLE}: {value['text']}"}
    return value


def _ntfy(topic: str, value: Mapping[str, Any]) -> Mapping[str, Any]:
    event = value["event"]
    return {
        "topic": topic,
        "title": TITLE,
        "message": value["text"],
        "priority": 4 if event in _URGENT else 3,
        "tags": ["white_check_mark" if event in _GOOD_NEWS else "warning"],
    }


async def _post(http: Http, url: str, body: Mapping[str, Any], timeout_s: float) -> None:
    parts = urlsplit(url)
    headers = {"content-type": "application/json", "user-agent": f"account-pool/{__version__}"}
    if parts.username is not None:
        password = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["authorization"] = f"Basic {b64encode(password.encode()).decode()}"
        parts = parts._replace(netloc=parts.netloc.rpartition("@")[2])
    if stays_here(parts.hostname or ""):
        http = replace(http, proxy=None)  # an upstream proxy has a loopback of its own
    content = json.dumps(body).encode()
    try:
        response = await http.ask(
            "POST", urlunsplit(parts), headers=headers, content=content, timeout_s=timeout_s
        )
    except HttpFailed as error:
        raise NotSent(str(error)) from None
    if response.status >= 300:
        raise NotSent(f"{parts.hostname} answered with status {response.status}")


def desktop_command(text: str, platform: str) -> tuple[str, ...]:
    """Return what shows *text* on the desktop of *platform* (`sys.platform`).

    *text* is an argument or comes on the input; it is never a part of a script.
    """
    if platform == "win32":
        return ("powershell.exe", "-NoProfile", "-NonInteractive", "-Command", _TOAST)
    if platform == "darwin":
        script = (
            "on run argv",
            "display notification (item 2 of argv) with title (item 1 of argv)",
            "end run",
        )
        lines = [part for line in script for part in ("-e", line)]
        return ("osascript", *lines, TITLE, text)
    return (NOTIFY_SEND, f"--app-name={TITLE}", "--", TITLE, text.translate(_NO_MARKUP))


def environment(environ: Mapping[str, str], own_port: int) -> dict[str, str]:
    """Return *environ* without variables that lead a command through this proxy."""
    kept = dict(environ)
    for name, value in environ.items():
        if name.upper() in _PROXY_VARIABLES and _is_own(value, own_port):
            del kept[name]
    return kept


def _is_own(address: str, own_port: int) -> bool:
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        return stays_here(parts.hostname or "") and parts.port == own_port
    except ValueError:
        return False


async def _run(
    arguments: Sequence[str], shown: str, text: str, own_port: int, timeout_s: float
) -> None:
    """Run *arguments* with *text* on the input; what it prints is dropped. Raises NotSent.

    It has a process group of its own, which is killed at *timeout_s*.
    """
    try:
        environ = environment(os.environ, own_port)
        process = await started(arguments, environ, stdin=PIPE, stdout=DEVNULL, stderr=DEVNULL)
    except (OSError, ValueError) as error:
        raise NotSent(f"{shown} cannot be started ({reason_of(error)})") from None
    ended = False
    try:
        async with asyncio.timeout(timeout_s):
            await process.communicate(text.encode())
            ended = True
    except TimeoutError:
        raise NotSent(f"{shown} did not finish within {timeout_s:g} s") from None
    finally:
        if not ended:
            await kill_group(process)
    if process.returncode != 0:
        raise NotSent(f"{shown} exited with status {process.returncode}")

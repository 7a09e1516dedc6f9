"""How a notification reaches its target: a webhook, ntfy, the desktop, a command.

Nothing goes through the pool itself: our HTTP client does not take its proxy from the
environment, and commands do not find this proxy there. What is shown of a target is its host
or its program: paths, queries and arguments hold secrets.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, assert_never
from urllib.parse import unquote, urlsplit, urlunsplit

from account_pool.config.notify import (
    NOTIFY_SEND,
    Command,
    Desktop,
    Ntfy,
    Target,
    Webhook,
    is_loopback,
)
from account_pool.core.notifications import Event
from account_pool.credentials.command import kill_group, started
from account_pool.credentials.errors import reason_of
from account_pool.credentials.http import Http, HttpFailed
from account_pool.version import __version__

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
            await _run(arguments, target.shown, json.dumps(value), own_port, timeout_s)
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
    if is_loopback(parts.hostname or ""):
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
        return is_loopback(parts.hostname or "") and parts.port == own_port
    except ValueError:
        return False


async def _run(
    arguments: Sequence[str], shown: str, text: str, own_port: int, timeout_s: float
) -> None:
    """Run *arguments* with *text* on the input; what it prints is dropped. Raises NotSent.

    It has a process group of its own, which is killed at *timeout_s*.
    """
    try:
        process = await started(
            asyncio.create_subprocess_exec(
                *arguments,
                stdin=PIPE,
                stdout=DEVNULL,
                stderr=DEVNULL,
                env=environment(os.environ, own_port),
                start_new_session=sys.platform != "win32",
            )
        )
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

"""The client of the REST API of a proxy on this machine: is it there, what does it say, changes."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from account_pool.admin.auth import MAX_TOKEN_BYTES, TOKEN_FILE
from account_pool.admin.http import STARTING
from account_pool.cli.output import Failed
from account_pool.cli.processes import DEFAULT_PORT, HOST, Places, running_ports
from account_pool.config.accounts_file import command
from account_pool.filesystem import read_file
from account_pool.version import __version__

#: A proxy that is well answers within milliseconds, also under load.
PROBE_S = 2.0
ASK_S = 10.0
#: How often one that starts, or is very busy, is asked before a change.
_PROBES = 3
#: As the admin API has them.
_NO_TOKEN, _WRONG_TOKEN = "no_token", "wrong_token"
_FROM_ELSEWHERE = frozenset({"not_local", "wrong_host"})
_MAX_BYTES = 16 * 1024 * 1024
_OTHER_VERSION = f"it may be of another version than {__version__}; start it again"


class Missing(StrEnum):
    """Why the health of a proxy is not known: what there is to say of its port."""

    NOBODY = "is used by nobody"
    #: something listens and does not answer in time, or is a pool that has not started yet
    SILENT = "accepts connections and does not answer"
    #: what answers is not the pool
    OTHER = "is used by something that is not the pool"
    #: the pool, which may not be asked from here
    REFUSES = "is used by a pool that takes no requests of this machine"


@dataclass(frozen=True, slots=True)
class Health:
    """What a pool says of itself.

    Attributes:
        instance: differs for each proxy that was ever started.
        ready: it has read its accounts and serves.
        busy: requests in flight.
        size: accounts.
        accounts_file: path of the file they are of; None: they are of the environment.
    """

    instance: str
    ready: bool
    busy: int
    size: int
    accounts_file: Path | None = None


class NoAnswer(Failed):
    """The pool did not answer as it should; the text says so to the user.

    *code* is that of the error response, such as unknown_account; "" without one.
    """

    def __init__(self, text: str = "", code: str = "") -> None:
        super().__init__(text)
        self.code = code


class NoProxy(NoAnswer):
    """No proxy answers at that port."""


class Lacks(NoAnswer, KeyError):
    """What the pool has answered lacks something; it may be of another version."""

    __str__ = Exception.__str__  # not quoted, as that of a KeyError is


class Answer(dict[str, Any]):
    """An object of an answer; what is looked up in it in vain is an error for the user."""

    def __missing__(self, name: str) -> Any:
        raise Lacks(f"the answer of the proxy has no {name!r}: {_OTHER_VERSION}")


class PoolConnection:
    """A connection to the pool of a port, kept open: a new one is two lines in its log.

    Args:
        timeout_s: of each question.
        with_token: send this machine's admin token where that is required, to a pool only.
    """

    def __init__(self, port: int, timeout_s: float = ASK_S, *, with_token: bool = True) -> None:
        self._port, self._timeout_s, self._with_token = port, timeout_s, with_token
        self._token: str | None = None
        self._wrong: str | None = None
        self._kept: http.client.HTTPConnection | None = None
        self._name: str | None = None

    def __enter__(self) -> PoolConnection:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    def cut_off(self) -> None:
        """Let what another thread waits for fail at once."""
        sock = None if self._kept is None else self._kept.sock
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def accounts(self) -> Mapping[str, Any]:
        """Return what GET /account-pool answers: `accounts` and `summary`. Raises NoAnswer."""
        value = self.ask("/account-pool")
        if not _is_pool(value):
            raise _not_the_pool(self._port)
        return value

    def name(self) -> str:
        """Return what the proxy is called among those that share its state; "": not known."""
        if self._name is None:
            try:
                proxies = self.ask("/proxies")["proxies"]
                self._name = str(next(one["name"] for one in proxies if one["this"]))
            except (NoAnswer, LookupError, TypeError, StopIteration):
                self._name = ""  # of an older version
        return self._name

    def ask(self, path: str) -> Mapping[str, Any]:
        """Return the object the pool answers to a GET of *path*. Raises NoAnswer."""
        had_one = self._kept is not None
        try:
            return _call(self._connection(), self._port, "GET", path, token=self._token)
        except NoProxy as error:
            self.close()
            # An old connection may have ended by itself; that says nothing of the proxy.
            if not had_one or isinstance(error.__cause__, TimeoutError):
                raise
        except NoAnswer as error:
            if error.code == _WRONG_TOKEN:
                # Not again: after ten wrong ones a minute no token counts.
                self._token, self._wrong = None, self._token
            if error.code != _NO_TOKEN or not self._with_token:
                raise
            token = local_token(self._port)
            if token in (None, self._wrong) or not isinstance(self.probe(), Health):
                raise
            self._token = token
        return self.ask(path)

    def probe(self) -> Health | Missing:
        """Return how the pool is, or why that is not known."""
        had_one = self._kept is not None
        found = self._probe()
        if isinstance(found, Health):
            return found
        self.close()
        # An old connection may have ended by itself; that says nothing of the proxy.
        return self.probe() if had_one else found

    def _connection(self) -> http.client.HTTPConnection:
        if self._kept is None:
            self._kept = http.client.HTTPConnection(HOST, self._port, timeout=self._timeout_s)
        return self._kept

    def _probe(self) -> Health | Missing:
        try:
            return _health(*_exchange(self._connection(), "GET", "/health"))
        except ConnectionRefusedError:
            return Missing.NOBODY
        except (TimeoutError, ConnectionError):
            return Missing.SILENT
        # Whatever it is, it does not speak HTTP as we do.
        except (OSError, http.client.HTTPException):
            return Missing.OTHER


def probe(port: int) -> Health | Missing:
    """Return how the pool on *port* of this machine is, or why that is not known."""
    with PoolConnection(port, PROBE_S) as connection:
        return connection.probe()


def probe_patiently(port: int) -> Health | Missing:
    """As `probe`; but what is silent is asked again: a machine may be busy, a proxy start."""
    found = (probe(port) for _ in range(_PROBES))
    return next((one for one in found if one is not Missing.SILENT), Missing.SILENT)


def accounts(port: int, timeout_s: float = ASK_S, *, with_token: bool = True) -> Mapping[str, Any]:
    """Return what GET /account-pool answers: `accounts` and `summary`. Raises NoAnswer."""
    with PoolConnection(port, timeout_s, with_token=with_token) as connection:
        return connection.accounts()


def _is_pool(value: Mapping[str, Any]) -> bool:
    accounts, summary = value.get("accounts"), value.get("summary")
    named = isinstance(accounts, list) and all(
        isinstance(one, dict) and isinstance(one.get("key"), str) for one in accounts
    )
    return named and isinstance(summary, dict)


def ask(port: int, path: str) -> Mapping[str, Any]:
    """Return the object the pool on *port* answers to a GET of *path*. Raises NoAnswer."""
    with PoolConnection(port) as connection:
        return connection.ask(path)


def until_ready(port: int, timeout_s: float, look_s: float) -> Health | None:
    """Return how the pool on *port* is once it serves; None where it does not in that time."""
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        if isinstance(found := probe(port), Health) and found.ready:
            return found
        time.sleep(look_s)
    return None


def occupied(port: int, found: Health | Missing) -> str:
    """Return what to say of a port that a proxy cannot have, where *found* is."""
    who = "a proxy runs already" if isinstance(found, Health) else "something listens"
    return f"{who} at {HOST}:{port}: end it first, or name another --port"


def change(port: int, path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the object the pool on *port* answers to a POST of *body* to *path*.

    With the admin token of this machine, which nothing but a pool gets to see. Raises
    NoAnswer, with the proxy's own words where it refuses; NoProxy where none answers.
    """
    if (found := probe_patiently(port)) is Missing.SILENT:
        raise NoAnswer(f"{HOST}:{port} {Missing.SILENT}; try again later")
    if found is Missing.OTHER:
        raise _not_the_pool(port)
    if found is Missing.REFUSES:
        ask(port, "/health")  # it says why
    with contextlib.closing(http.client.HTTPConnection(HOST, port, timeout=ASK_S)) as connection:
        return _call(connection, port, "POST", path, body, token=local_token(port))


def _call(
    connection: http.client.HTTPConnection,
    port: int,
    method: str,
    path: str,
    body: Mapping[str, Any] | None = None,
    *,
    token: str | None,
) -> Mapping[str, Any]:
    """Return the object that answers one request."""
    try:
        status, value = _exchange(connection, method, path, body, token)
    except (OSError, http.client.HTTPException) as error:
        raise NoProxy(no_proxy(port)) from error
    kept = Places.usual(port).confdir / TOKEN_FILE
    if status == 401 and not token and method != "GET":
        raise NoAnswer(
            f"the proxy at {HOST}:{port} requires its admin token, and you have none in {kept}: "
            "it is beside its state database, for its owner alone",
            _NO_TOKEN,
        )
    if status == 401 and not token:
        raise NoAnswer(
            f"the proxy at {HOST}:{port} requires its admin token because proxyauth is set; "
            f"its dashboard, http://{HOST}:{port}/, asks for it",
            _NO_TOKEN,
        )
    if status == 401:
        raise NoAnswer(
            f"the proxy at {HOST}:{port} does not accept the admin token in "
            f"{kept}: its own is beside its state database",
            _WRONG_TOKEN,
        )
    if isinstance(value, dict) and status in {200, 201}:
        return value
    said = value.get("error") if isinstance(value, dict) else None
    if isinstance(said, dict) and isinstance(said.get("message"), str) and "code" in said:
        if said["code"] == "not_found":
            page = path.partition("?")[0]
            raise NoAnswer(f"the proxy has no {page}: {_OTHER_VERSION}", "not_found")
        raise NoAnswer(said["message"], str(said["code"]))
    raise _not_the_pool(port)


def _not_the_pool(port: int) -> NoAnswer:
    return NoAnswer(f"{HOST}:{port} {Missing.OTHER}")


def local_token(port: int) -> str | None:
    """Return the admin token of this machine's proxies, None where it cannot be read."""
    try:
        path = Places.usual(port).confdir / TOKEN_FILE
        return read_file(path, MAX_TOKEN_BYTES).decode("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None


def no_proxy(port: int) -> str:
    """Return what to say of a port where no proxy answers."""
    at = "" if port == DEFAULT_PORT else f" -p {port}"
    if others := running_ports(Places.usual(port).confdir):
        one = " and ".join(map(str, others))
        return f"no proxy answers at {HOST}:{port}; one runs at port {one}: name it with -p"
    return (
        f"no proxy answers at {HOST}:{port}; start one with `{command()} run{at} -- COMMAND` or "
        f"`{command()} serve{at}`, or name another --port; list, add, remove, check and doctor "
        "work without one"
    )


def _exchange(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: Mapping[str, Any] | None = None,
    token: str | None = None,
) -> tuple[int, Any]:
    """Return the status and the JSON value, None if it is none. Never by a proxy."""
    headers = {"accept": "application/json", "content-type": "application/json"}
    if token:
        headers["authorization"] = f"Bearer {token}"
    connection.request(method, path, None if body is None else json.dumps(body), headers)
    response = connection.getresponse()
    text = response.read(_MAX_BYTES)
    try:
        return response.status, json.loads(text, object_hook=Answer)
    except (ValueError, RecursionError):
        return response.status, None


def _health(status: int, value: Any) -> Health | Missing:
    instance = value.get("instance") if isinstance(value, dict) else None
    error = value.get("error") if isinstance(value, dict) else None
    code = error.get("code") if isinstance(error, dict) else None
    if status == 503 and code == STARTING:
        return Missing.SILENT
    if code in _FROM_ELSEWHERE:
        return Missing.REFUSES
    if status != 200 or not isinstance(instance, str):
        return Missing.OTHER
    path = value.get("accounts_file")
    return Health(
        instance=instance,
        ready=value.get("ready", True) is True,
        busy=_count(value.get("busy")),
        size=_count(value.get("size")),
        accounts_file=Path(path) if isinstance(path, str) and path else None,
    )


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value >= 0 else 0

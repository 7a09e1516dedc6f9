"""A connection to the server that takes writes for a pool, of those that were written down.

It is redis-py's, over a socket that bounds answers in size and time. TLS is checked here. A
password is read when a connection begins, so that one that was changed is found.

A cluster is never followed to a host that it names itself: the hosts of the URL are asked one
after the other. A Sentinel's answer is followed; what it names must be this machine, or show a
certificate for that name.
"""

from __future__ import annotations

import contextlib
import re
import selectors
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from account_pool.core.browser import stays_here
from account_pool.core.credential import Secret
from account_pool.core.wrong import without_secrets
from account_pool.store.pool_state import Address, Host, Lookup
from account_pool.store.store import DamagedError, FullError, StoreError, UnfitError

#: How large an answer may be.
MAX_REPLY_BYTES = 32 * 1024 * 1024
#: How often the time for more of an answer a connection may take, and all of an answer.
CONNECT_TIMES, WHOLE_TIMES = 4, 20

Argument = str | bytes | int | float


class Timeouts(NamedTuple):
    """How long is waited, seconds: for a connection, for more of an answer, for all of it."""

    connect_s: float
    answer_s: float
    whole_s: float

    @classmethod
    def of(cls, answer_s: float) -> Timeouts:
        return cls(CONNECT_TIMES * answer_s, answer_s, WHOLE_TIMES * answer_s)


class BoundedSocket:
    """A socket of which each answer is bounded. The rest is the socket's own."""

    def __init__(self, sock: socket.socket, whole_s: float) -> None:
        self._sock = sock
        self._whole_s = whole_s
        self.next_answer()

    def sendall(self, data: bytes) -> None:
        self.next_answer()
        self._sock.sendall(data)

    def next_answer(self) -> None:
        """Let another answer begin."""
        self._left = MAX_REPLY_BYTES
        self._over_at = time.monotonic() + self._whole_s

    def recv(self, size: int, *flags: int) -> bytes:
        self._check()
        data = self._sock.recv(size, *flags)
        self._left -= len(data)
        return data

    def recv_into(self, buffer: Any, *rest: int) -> int:
        self._check()
        size = self._sock.recv_into(buffer, *rest)
        self._left -= size
        return size

    def _check(self) -> None:
        if self._left < 0:
            raise OSError("the reply is too large")
        if time.monotonic() > self._over_at:
            raise TimeoutError("the reply takes too long")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


def _encrypted(sock: socket.socket, tls: ssl.SSLContext, host: Host) -> ssl.SSLSocket:
    try:
        return tls.wrap_socket(sock, server_hostname=host.name)
    except TimeoutError:
        # A port without TLS waits for the end of a line.
        raise OSError("the TLS handshake operation timed out") from None


def make_connection(
    host: Host,
    *,
    tls: ssl.SSLContext | None,
    timeouts: Timeouts,
    user: str | None = None,
    password: Callable[[], Secret | None] = lambda: None,
    database: int = 0,
) -> Any:
    """Return a `redis.Connection` that is not connected yet.

    It raises redis.RedisError. *password* is asked when it connects.
    """
    # Only proxies of a fleet pay for it.
    from redis.connection import Connection  # noqa: PLC0415
    from redis.credentials import CredentialProvider  # noqa: PLC0415

    class Login(CredentialProvider):
        def get_credentials(self) -> tuple[str] | tuple[str, str]:
            secret = password()
            revealed = "" if secret is None else secret.reveal()
            return (revealed,) if user is None else (user, revealed)

    class Bounded(Connection):
        """A connection over a socket of ours."""

        def _connect(self) -> Any:
            try:
                sock = socket.create_connection(host, timeout=timeouts.connect_s)
            except ValueError:  # no host can have such a name
                raise OSError("name or service not known") from None
            try:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if tls is not None:
                    sock = _encrypted(sock, tls, host)
                sock.settimeout(timeouts.answer_s)
            except BaseException:
                sock.close()
                raise
            return BoundedSocket(sock, timeouts.whole_s)

    return Bounded(
        host.name,
        host.port,
        db=database,
        socket_timeout=timeouts.answer_s,
        credential_provider=None if password() is None and user is None else Login(),
        # RESP3 would have the server say when to move, and where to: it is not followed.
        protocol=2,
    )


def ask(connection: Any, *command: Argument) -> Any:
    """Return the answer to *command*. Raises redis.RedisError."""
    connection.send_command(*command, check_health=False)
    return connection.read_response()


def is_stale(connection: Any) -> bool:
    """Say whether an idle connection is of no use: its server has ended it, or said something."""
    sock = connection._sock
    if sock is None:
        return True
    with contextlib.suppress(OSError, ValueError), selectors.DefaultSelector() as selector:
        selector.register(sock, selectors.EVENT_READ)
        return bool(selector.select(0))
    return True


# -- which of several servers


class _NotInUrl(StoreError):
    """The pool is on another server of a cluster, which is none of those that were asked."""


class Servers:
    """The servers of an address. Its caller has one thread at a time connect.

    *primary* is the one that was connected to last; None before.
    """

    def __init__(self, address: Address) -> None:
        """Name servers; nothing is connected yet, and no secret read."""
        self.address = address
        self.primary: Host | None = None
        self.password = Lookup("password", address.references.get("password"))
        self._sentinel_password = Lookup(
            "sentinel_password", address.references.get("sentinel_password")
        )
        self._timeouts = Timeouts.of(address.timeout_s)
        self._tls: ssl.SSLContext | None = None
        #: in the order in which they are asked: the one that answered last is first
        self._hosts = list(address.hosts)

    def connect(self) -> Any:
        """Return a connection to the one that takes writes now.

        Raises redis.RedisError, OSError or StoreError.
        """
        match self.address.kind:
            case "sentinel":
                return self._first(self._by_sentinel)
            case "cluster":
                return self._first(self._in_cluster)
            case _:
                return self._first(self._connected)

    def _first(self, way: Callable[[Host], Any]) -> Any:
        """Return a connection by the first host that has one."""
        from redis.exceptions import AuthenticationError, RedisError  # noqa: PLC0415

        last: Exception | None = None
        for host in tuple(self._hosts):
            try:
                connection = way(host)
            except (RedisError, OSError, StoreError) as error:
                if isinstance(error, AuthenticationError):
                    self.password.refused()
                    self._sentinel_password.refused()
                # Of a cluster the pool may be on the one that is away.
                is_said = isinstance(last, AuthenticationError) or (
                    last is not None and isinstance(error, _NotInUrl)
                )
                if not is_said:
                    last = error
            else:
                self._hosts.remove(host)
                self._hosts.insert(0, host)
                return connection
        assert last is not None  # there is a host
        raise last

    def _connected(self, host: Host) -> Any:
        address = self.address
        connection = self._made(host, address.user, self.password, address.database)
        self.primary = host
        return connection

    def _made(
        self, host: Host, user: str | None, password: Callable[[], Secret | None], database: int
    ) -> Any:
        address = self.address
        if address.tls and self._tls is None:
            self._tls = _trust(address)
        connection = make_connection(
            host,
            tls=self._tls,
            timeouts=self._timeouts,
            user=user,
            password=password,
            database=database,
        )
        try:
            connection.connect()
        except BaseException:
            # Certificates may be replaced in their files.
            self._tls = None
            connection.disconnect()
            raise
        return connection

    def _by_sentinel(self, host: Host) -> Any:
        address = self.address
        sentinel = self._made(host, address.sentinel_user, self._sentinel_password, 0)
        try:
            found = ask(sentinel, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", address.master)
        finally:
            sentinel.disconnect()
        match found:
            case [bytes(name), bytes(port)] if port.isdigit():
                primary = Host(name.decode("ascii", "replace"), int(port))
            case _:
                raise StoreError(
                    f"the Sentinel {host} knows no server {address.master}; write the name that "
                    "sentinel.conf has (sentinel monitor) as master=NAME"
                )
        if not address.tls and not stays_here(primary.name):
            raise StoreError(
                f"the Sentinel {host} names a server on another machine, and redis+sentinel:// is "
                "not encrypted; write rediss+sentinel://"
            )
        connection = self._connected(primary)
        if not _is_primary(connection):
            connection.disconnect()
            raise StoreError(f"the Sentinel {host} names a replica; it has not taken over yet")
        return connection

    def _in_cluster(self, host: Host) -> Any:
        from redis.exceptions import ResponseError  # noqa: PLC0415 - only proxies of a fleet

        connection = self._connected(host)
        try:
            # Only the server that holds the pool answers that.
            ask(connection, "GET", f"{{ap:{self.address.pool}}}:format")
            # Any server alone does so, too, and each of several would have logins of its own.
            if _is_alone(connection):
                raise StoreError(
                    f"the state engine {host} is no cluster; write "
                    f"{'rediss' if self.address.tls else 'redis'}:// and one server"
                )
        except ResponseError as error:
            connection.disconnect()
            if code_of(error) != "MOVED":
                raise
            raise _NotInUrl(
                f"the cluster at {self.address} holds the pool {self.address.pool} on a server "
                "that is not in the URL; write down all of its servers"
            ) from None
        except BaseException:
            connection.disconnect()
            raise
        return connection


def _is_primary(connection: Any) -> bool:
    from redis.exceptions import ResponseError  # noqa: PLC0415 - only proxies of a fleet

    try:
        role = ask(connection, "ROLE")
    except ResponseError:
        return True  # a user who may not ask that: a replica refuses writes
    return bool(role) and role[0] == b"master"


def _is_alone(connection: Any) -> bool:
    """Say whether it is no server of a cluster, as far as it says so."""
    from redis.exceptions import ResponseError  # noqa: PLC0415 - only proxies of a fleet

    try:
        return b"cluster_enabled:0" in ask(connection, "INFO", "cluster")
    except ResponseError:
        return False  # a user who may not ask that


def _trust(address: Address) -> ssl.SSLContext:
    """Return how a server is verified, and what this proxy shows it. Raises StoreError."""
    try:
        # Where a file is named, nothing else is trusted.
        context = ssl.create_default_context(cafile=address.ca or None)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if address.cert:
            context.load_cert_chain(address.cert, address.key or None)
        return context
    except (OSError, ValueError) as error:
        named = [path for path in (address.ca, address.cert, address.key) if path]
        reason = (getattr(error, "strerror", None) or "it is no certificate").lower()
        raise StoreError(
            f"ca, cert and key of the state engine cannot be used ({reason}); check "
            f"{', '.join(named)}"
        ) from None


# -- what it refuses, in words, with the remedy
#
# Its own text is data: it may quote a value, and a server that is none of ours may say anything.
# So it is told by its code, and only of what is not known a little is repeated.

MAX_SHOWN_CHARS = 160
#: Codes by the classes of redis-py, which takes them off the text.
_CODES = {
    "AskError": "ASK",
    "AuthenticationError": "WRONGPASS",
    "AuthenticationWrongNumberOfArgsError": "WRONGPASS",
    "BusyLoadingError": "LOADING",
    "ClusterCrossSlotError": "CROSSSLOT",
    "ClusterDownError": "CLUSTERDOWN",
    "MasterDownError": "MASTERDOWN",
    "MovedError": "MOVED",
    "NoPermissionError": "NOPERM",
    "NoScriptError": "NOSCRIPT",
    "OutOfMemoryError": "OOM",
    "ReadOnlyError": "READONLY",
    "TryAgainError": "TRYAGAIN",
}
#: By code, where another server has the pool now, or this one will have it in a moment.
_ELSEWHERE = {
    "ASK": "is moving the pool to another server",
    "CLUSTERDOWN": "is of a cluster that is down",
    "LOADING": "is loading its data",
    "MASTERDOWN": "is a replica without its primary",
    "MOVED": "does not hold the pool",
    "READONLY": "is a replica",
    "TRYAGAIN": "is moving the pool to another server",
}
#: By code: what is wrong, and what to do.
_REFUSALS = {
    "MISCONF": (
        "cannot write its data to its disk, and takes no writes",
        "free some space there, and look at its log",
    ),
    "NOREPLICAS": (
        "has too few replicas (min-replicas-to-write), and takes no writes",
        "start a replica",
    ),
    "BUSY": ("is busy with a script of another program", "look at what else uses it"),
    "CROSSSLOT": ("holds this pool on several servers", "report it: that is a mistake of ours"),
}
_AWAY = (
    # First: what it said follows, and is not for us to read.
    ("protocol error:", "does not speak the protocol of Redis"),
    ("connection refused", "cannot be reached: the connection was refused"),
    ("certificate verify failed", "has a certificate that is not trusted"),
    ("handshake operation timed out", "does not answer in TLS on this port"),
    ("wrong version number", "does not speak TLS on this port"),
    ("tlsv13 alert certificate required", "asks for a certificate of the proxy"),
    ("timeout connecting", "cannot be reached: it does not answer"),
    ("reply is too large", "sends more than an answer can have"),
    ("timeout", "does not answer in time"),
    ("timed out", "does not answer in time"),
    ("takes too long", "does not answer in time"),
    ("name or service not known", "cannot be found by its name"),
    ("name resolution", "cannot be found by its name"),
    ("nodename nor servname", "cannot be found by its name"),
    ("getaddrinfo failed", "cannot be found by its name"),
    ("no route to host", "cannot be reached: there is no route to it"),
    ("network is unreachable", "cannot be reached: there is no network"),
    ("max number of clients", "has as many clients as it may have (maxclients)"),
    ("closed by server", "has closed the connection"),
    ("reset by peer", "has closed the connection"),
    ("broken pipe", "has closed the connection"),
    # TLS without the alert that says why: it may be lost in a reset, which comes in many words.
    ("eof occurred", "has closed the connection"),
    ("unexpected eof", "has closed the connection"),
    ("connection abort", "has closed the connection"),
    ("was aborted", "has closed the connection"),
    ("forcibly closed", "has closed the connection"),
)
_CHECK = "check that it runs and can be reached"
_REMEDIES = {
    _ELSEWHERE["READONLY"]: "name the server that takes writes, or Sentinels, which know it",
    _ELSEWHERE["MOVED"]: "it is of a cluster: write redis+cluster:// (rediss+cluster:// with TLS) "
    "and all of its servers",
    "has closed the connection": "check that it runs, and whether it wants TLS "
    "(rediss://), or a certificate (cert=PATH and key=PATH)",
    "has a certificate that is not trusted": "name the file of its CA with ca=PATH, and the host "
    "as its certificate does",
    "does not speak the protocol of Redis": "check host and port: they are of something else",
    "does not speak TLS on this port": "name its TLS port (tls-port)",
    # One that hangs says as little as one that expects no TLS.
    "does not answer in TLS on this port": "check that it runs, and name its TLS port (tls-port)",
    "asks for a certificate of the proxy": "name one with cert=PATH and key=PATH",
    "refuses the user or the password": "check the user in the URL, and where its password is "
    "written down",
    "asks for a password": "write password=env:VARIABLE, file:PATH or command:LINE into the URL",
    "has as many clients as it may have (maxclients)": "raise it, or end some",
}
_UNKNOWN = re.compile(r"unknown command\W{1,3}([a-z|]{1,40})", re.IGNORECASE)
_COMMAND = re.compile(r"'([a-z][a-z|_-]{0,40})' command|'([a-z][a-z|_-]{0,40})'", re.IGNORECASE)


def code_of(error: BaseException) -> str:
    """Return the code of an answer that is an error, "ERR" where it has none."""
    if (known := _CODES.get(type(error).__name__)) is not None:
        return known
    # A function that was refused something quotes it.
    found = re.match(r"-?([A-Z]{3,20})\b", str(error))
    return found.group(1) if found else "ERR"


def is_elsewhere(error: BaseException) -> bool:
    """Say whether another server has the pool now, or will have in a moment."""
    if code_of(error) in _ELSEWHERE:
        return True
    # A write inside a function.
    return "against a read only replica" in str(error).lower()


def is_missing(error: Exception) -> bool:
    """Say whether the server does not have our functions, or our script."""
    said = str(error)
    return code_of(error) == "NOSCRIPT" or "unction not found" in said or "matching script" in said


def is_refused(error: Exception, command: str) -> bool:
    """Say whether the server does not know *command*, or does not allow it to this user."""
    said = str(error).lower()
    refused = ("no permission", "unknown command", "unknown subcommand")
    return command in said and any(part in said for part in refused)


def away_error(where: str, error: BaseException) -> StoreError:
    """Return the error for a server that gave no answer."""
    said = str(error).lower()
    code = code_of(error)
    if code == "WRONGPASS":
        is_asked = "authentication required" in said
        why = "asks for a password" if is_asked else "refuses the user or the password"
    elif is_elsewhere(error):
        why = _ELSEWHERE.get(code, _ELSEWHERE["READONLY"])
    else:
        why = next((reason for part, reason in _AWAY if part in said), "")
    why = why or f"cannot be reached ({type(error).__name__})"
    return StoreError(f"{where} {why}; {_REMEDIES.get(why, _CHECK)}")


def refusal_error(where: str, error: Exception) -> StoreError:
    """Return the error for an answer that is one."""
    code, said = code_of(error), str(error)
    if code == "OOM" or "command not allowed when used memory" in said:
        return FullError(f"{where} is out of memory; raise its maxmemory")
    if code == "UNFIT":
        return UnfitError(said.partition(" ")[2][:MAX_SHOWN_CHARS])
    if code == "DAMAGED" or "WRONGTYPE" in said:
        return damaged_error(where, "holds something that no proxy has written")
    if code == "NOPERM" or "no permission" in said.lower() or "ACL failure" in said:
        return StoreError(f"{where} does not allow {_denied(said)}; see its ACL in docs/fleet.md")
    if code in _REFUSALS:
        wrong, remedy = _REFUSALS[code]
        return StoreError(f"{where} {wrong}; {remedy}")
    if "invalid stream id" in said.lower():
        return StoreError(f"{where} is older than Redis 7.0; upgrade it")
    if "db index is out of range" in said.lower():
        return StoreError(f"{where} has no database of that number; correct the URL")
    if (unknown := _UNKNOWN.search(said)) is not None:
        command = unknown.group(1).upper()
        if command == "SENTINEL":
            return StoreError(
                f"{where} is no Sentinel; write the port of one, 26379 as a rule, or leave "
                "+sentinel and master out of the URL"
            )
        return StoreError(
            f"{where} does not know the command {command}: it is a Sentinel, or no Redis 7.0 or "
            "Valkey; of Sentinels write rediss+sentinel://HOST/?master=NAME"
        )
    shown = without_secrets(said)[:MAX_SHOWN_CHARS]
    return StoreError(f"{where} refuses what it was asked: {shown}")


def damaged_error(where: str, wrong: str) -> DamagedError:
    return DamagedError(f"{where} {wrong}", "name another pool, or another database")


def _denied(said: str) -> str:
    """Return what a user may not do."""
    lower = said.lower()
    if "key" in lower and "access" in lower:
        return "this user the keys of the pool"
    if "channel" in lower:
        return "this user the channel of the pool"
    found = _COMMAND.search(said)
    command = found and (found.group(1) or found.group(2))
    return f"this user the command {command.upper()}" if command else "this user all it needs"

"""OpenSSL is asked without an exception for each read and a copy for each record.

pyOpenSSL tells by an exception that nothing more is there, which mitmproxy meets twice for all
that comes; it copies each record (16 KiB) several times, and lets what is to be sent grow in
memory until all of it is encrypted. Here the same functions of OpenSSL are called on buffers
that are used again. Whatever is neither data nor a wait for more is left to pyOpenSSL to tell.

SSL_write takes one record at a time (pyOpenSSL sets SSL_MODE_ENABLE_PARTIAL_WRITE).
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

from OpenSSL import SSL

#: How much is encrypted at once, bytes: what follows of it fits into a buffer.
WRITE_BYTES = 65536
_BUFFER_BYTES = 2 * WRITE_BYTES
_RECORD_BYTES = 16384

_SSL: Any = SSL
_FUNCTIONS = ("BIO_read", "BIO_write", "SSL_get_error", "SSL_read", "SSL_write")
_CODES = ("SSL_ERROR_WANT_READ", "SSL_ERROR_ZERO_RETURN")
_PARTS = ("_from_ssl", "_into_ssl", "_ssl", "_raise_ssl_error")


class _Buffer(threading.local):
    """Memory for one call; a call lets other threads run."""

    def __init__(self) -> None:
        self.start: Any = _SSL._ffi.new("char[]", _BUFFER_BYTES)
        self.bytes: Any = _SSL._ffi.buffer(self.start, _BUFFER_BYTES)


def is_as_known() -> bool:
    """Say whether pyOpenSSL has OpenSSL's functions where they are looked for here."""
    lib, ffi = getattr(SSL, "_lib", None), getattr(SSL, "_ffi", None)
    named = all(hasattr(lib, name) for name in (*_FUNCTIONS, *_CODES))
    return named and all(hasattr(ffi, name) for name in ("buffer", "from_buffer", "new"))


def can_use(tls: object) -> bool:
    """Say whether *tls* is a connection in memory of pyOpenSSL's, as mitmproxy makes them."""
    return type(tls) is SSL.Connection and all(
        getattr(tls, name, None) is not None for name in _PARTS
    )


if is_as_known():
    _lib, _from_buffer, _buffer = _SSL._lib, _SSL._ffi.from_buffer, _Buffer()
    _WANT_READ, _ENDED = _lib.SSL_ERROR_WANT_READ, _lib.SSL_ERROR_ZERO_RETURN


def read(tls: Any, data: bytes) -> tuple[bytes, SSL.Error | None]:
    """Return what *data*, which came from the peer, adds to what it says.

    Beside it, what keeps more from coming: None for a mere wait, `SSL.ZeroReturnError` for
    an end in good order.
    """
    if data:
        lent = _from_buffer(data)
        if _lib.BIO_write(tls._into_ssl, lent, len(data)) != len(data):
            raise MemoryError("OpenSSL takes no more")
    ssl, start = tls._ssl, _buffer.start
    parts, at = [], 0
    while (count := _lib.SSL_read(ssl, start + at, _BUFFER_BYTES - at)) > 0:
        at += count
        if at > _BUFFER_BYTES - _RECORD_BYTES:
            parts.append(_buffer.bytes[:at])
            at = 0
    error = _lib.SSL_get_error(ssl, count)
    plain: bytes = _buffer.bytes[:at]
    if parts:
        plain = b"".join([*parts, plain])
    return plain, None if error == _WANT_READ else _error(tls, count)


def _error(tls: Any, result: int) -> SSL.Error:
    try:
        tls._raise_ssl_error(tls._ssl, result)
    except SSL.Error as error:
        return error
    return SSL.Error()


def pending(tls: Any) -> bytes:
    """Return what OpenSSL has to say to the peer."""
    count = _lib.BIO_read(tls._from_ssl, _buffer.start, _BUFFER_BYTES)
    if count <= 0:
        return b""
    found: bytes = _buffer.bytes[:count]
    return found if count < _BUFFER_BYTES else found + pending(tls)


def pieces(data: bytes) -> Iterable[bytes | memoryview]:
    """Return *data* in pieces for `write`."""
    if len(data) <= WRITE_BYTES:
        return (data,)
    view = memoryview(data)
    return [view[at : at + WRITE_BYTES] for at in range(0, len(data), WRITE_BYTES)]


def write(tls: Any, data: bytes | memoryview) -> bytes:
    """Return *data*, of at most WRITE_BYTES, encrypted.

    As in mitmproxy, what is said to a peer that has ended is lost. Raises SSL.Error.
    """
    lent, size, at = _from_buffer(data), len(data), 0
    ssl = tls._ssl
    while at < size:
        count = _lib.SSL_write(ssl, lent + at, size - at)
        if count <= 0:
            error = _error(tls, count)
            if isinstance(error, SSL.ZeroReturnError | SSL.SysCallError):
                break
            raise error
        at += count
    return pending(tls)

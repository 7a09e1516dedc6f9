"""Content decodings, a piece at a time and bounded.

The gate must see the first event of a compressed stream before the stream ends, and a
hostile body must blow up neither in memory nor in time. Brotli's decoder can be bounded
from version 1.2 on; with an older one, which mitmproxy 11 wants, `br` is not read at all.
"""

from __future__ import annotations

import functools
import logging
import sys
import zlib
from collections.abc import Callable
from typing import Protocol

import brotli

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

logger = logging.getLogger(__name__)

#: Raw bytes decoded at once, and the most they may become: the loop waits for one step. Text
#: becomes at most 1032 times as long with gzip, and much less in truth.
_SLICE = 256
_MAX_STEP_BYTES = 1024 * 1024
#: A body that is encoded more often is not read.
_MAX_ENCODINGS = 3

#: Frames (or gzip members) of one body, which cost the same whatever they hold: so many, and
#: of a stream, which may have one for each event, one more for so many bytes.
_FREE_FRAMES, _BYTES_PER_FRAME = 1000, 32

#: The largest window a decoder of the content-encoding zstd must support, 8 MiB (RFC 9659);
#: a frame may ask for sixteen times that in memory.
_WINDOW_LOG_MAX = 23


#: How much a response may unpack to while its end is kept: a million tokens, each an event.
MAX_PASSED_BYTES = 256 * 1024 * 1024
#: How much may come of few bytes meanwhile, and of each byte of many.
_FREE_BYTES, _MAX_RATIO = 8 * 1024 * 1024, 512


class Decoder:
    """Undoes a content-encoding incrementally.

    Args:
        encoding: the content-encoding header, "" for none; several are undone in turn.
        max_bytes: stop decoding beyond so many bytes; what was decoded stays valid.
        streams: it may be packed event by event.

    Raises ValueError for an encoding that cannot be read here.
    """

    def __init__(self, encoding: str, *, max_bytes: int, streams: bool = True) -> None:
        self._steps = _steppers(encoding, _BYTES_PER_FRAME if streams else None)
        self._left = max_bytes

    @property
    def is_full(self) -> bool:
        """Whether nothing more is decoded: there is too much of it."""
        return self._left <= 0

    def feed(self, data: bytes) -> bytes:
        """Return what *data* adds. Raises ValueError when it is damaged, or in too many frames."""
        if not self._steps:
            return data
        out = bytearray()
        try:
            for start in range(0, len(data), _SLICE):
                if self._left <= 0:
                    break
                out += self._step(data[start : start + _SLICE])
        except (zlib.error, brotli.error, zstd.ZstdError) as e:
            raise ValueError(f"damaged body: {type(e).__name__}") from None
        return bytes(out)

    def _step(self, piece: bytes) -> bytes:
        for step in self._steps:
            # The last one alone is held to the byte.
            limit = min(self._left, _MAX_STEP_BYTES) if step is self._steps[-1] else _MAX_STEP_BYTES
            piece = step(piece, limit)
            if len(piece) >= limit:
                self._left = 0  # more would have come
                return piece if step is self._steps[-1] else b""
        self._left -= len(piece)
        return piece


class End:
    """The end of a body, unpacked while it passes, however long it is.

    Attributes:
        kept: the last bytes, at least so many as asked for and at most twice as many;
            nothing of what cannot be read.
    """

    def __init__(self, encoding: str, *, keep_bytes: int) -> None:
        self.kept = bytearray()
        self._allowed = _FREE_BYTES
        self._keep = keep_bytes
        self._is_plain = is_none(encoding)
        try:
            self._decoder: Decoder | None = Decoder(encoding, max_bytes=MAX_PASSED_BYTES)
        except ValueError:
            self._decoder = None

    def feed(self, data: bytes | bytearray) -> None:
        """Take in what follows."""
        if self._is_plain:
            self._add(data)  # nothing grows: it may come in one piece
            return
        for start in range(0, len(data), _SLICE):
            if self._decoder is None:
                return
            piece = bytes(data[start : start + _SLICE])
            try:
                unpacked = self._decoder.feed(piece)
            except ValueError:
                self._give_up()
                return
            self._add(unpacked)
            self._allowed += len(piece) * _MAX_RATIO - len(unpacked)
            if self._decoder.is_full or self._allowed < 0:
                self._give_up()

    def _add(self, data: bytes | bytearray) -> None:
        self.kept += data
        if len(self.kept) > 2 * self._keep:
            del self.kept[: -self._keep]

    def _give_up(self) -> None:
        """Its end will not be known."""
        self._decoder = None
        self.kept.clear()


def as_whole(beginning: bytes, encoding: str, *, max_bytes: int) -> bytes:
    """Return the beginning of an encoded body as a body of its own, in the same encoding.

    Viewers read nothing of a gzip, br or zstd body that lacks its end. What cannot be
    read here stays as it is, and so does what has no encoding.
    """
    encode = _ENCODERS.get(encoding.strip().lower())
    if encode is None:
        return beginning
    try:
        return encode(Decoder(encoding, max_bytes=max_bytes).feed(beginning))
    except ValueError:
        return beginning


#: The quick ways: this is for one look, and everybody else waits.
_ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda text: zlib.compress(text, 1, wbits=zlib.MAX_WBITS | 16),
    "x-gzip": lambda text: zlib.compress(text, 1, wbits=zlib.MAX_WBITS | 16),
    "deflate": lambda text: zlib.compress(text, 1),
    "br": lambda text: bytes(brotli.compress(text, quality=1)),
    "zstd": lambda text: zstd.compress(text, level=1),
}


_Step = Callable[[bytes, int], bytes]


def is_left_alone(encoding: str) -> bool:
    """Say whether a body is handed on unread for want of a newer decoder, not as it is odd."""
    return not _BROTLI_HAS_BOUND and "br" in _names(encoding)


def is_none(encoding: str) -> bool:
    """Say whether *encoding* changes nothing."""
    return not _names(encoding)


def _names(encoding: str) -> list[str]:
    """Return what was done to a body, the first first."""
    names = [name.strip().lower() for name in encoding.split(",")]
    return [name for name in names if name not in ("", "identity", "none")]


def _steppers(encoding: str, bytes_per_frame: int | None) -> list[_Step]:
    names = _names(encoding)
    if len(names) > _MAX_ENCODINGS:
        raise ValueError(f"cannot read {len(names)} content-encodings")
    return [_stepper(name, bytes_per_frame) for name in reversed(names)]


def _stepper(encoding: str, bytes_per_frame: int | None) -> _Step:
    match encoding:
        case "gzip" | "x-gzip":
            return _Frames(_gzip_member, bytes_per_frame).feed
        case "deflate":
            return _Deflate().feed
        case "br":
            return _brotli()
        case "zstd":
            return _Frames(_zstd_frame, bytes_per_frame).feed
        case _:
            raise ValueError(f"cannot read content-encoding {encoding!r}")


#: A method that came with the bound, which itself cannot be asked for.
_BROTLI_HAS_BOUND = hasattr(brotli.Decompressor, "can_accept_more_data")


def _brotli() -> _Step:
    if not _BROTLI_HAS_BOUND:
        _tell_of_brotli()
        raise ValueError("cannot read content-encoding 'br' within bounds")
    process = brotli.Decompressor().process
    return lambda data, limit: bytes(process(data, output_buffer_limit=limit))


@functools.cache
def _tell_of_brotli() -> None:
    """Say so, once."""
    logger.warning(
        f"account-pool: brotli {brotli.__version__} has no bound for what a body unpacks to; "
        "answers with content-encoding br are handed on unread, and judged by status and headers. "
        "newer mitmproxys come with a brotli that has one (1.2)"
    )


def _gzip_member() -> _Frame:
    return zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)


def _zstd_frame() -> _Frame:
    options = {int(zstd.DecompressionParameter.window_log_max): _WINDOW_LOG_MAX}
    return zstd.ZstdDecompressor(options=options)


class _Frame(Protocol):
    """One gzip member or zstd frame; its decoder stops at the end of it."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


class _Frames:
    """Frames one after the other, which decode to one text (RFC 1952, 2.2; RFC 8878, 3).

    What follows a whole frame and is none is ignored, as browsers do.
    """

    def __init__(self, new_frame: Callable[[], _Frame], bytes_per_frame: int | None) -> None:
        self._new_frame = new_frame
        self._bytes_per_frame = bytes_per_frame
        self._frames = self._fed = 0
        self._frame = new_frame()
        self._first = True
        self._garbage = False

    def feed(self, data: bytes, limit: int) -> bytes:
        out = b""
        self._fed += len(data)
        while data and len(out) < limit and not self._garbage:
            if self._frame.eof:
                self._count()
                self._frame, self._first = self._new_frame(), False
            try:
                out += self._frame.decompress(data, limit - len(out))
            except (zlib.error, zstd.ZstdError):
                if self._first:
                    raise
                self._garbage = True
            data = self._frame.unused_data if self._frame.eof else b""
        return out

    def _count(self) -> None:
        more = self._fed // self._bytes_per_frame if self._bytes_per_frame else 0
        self._frames += 1
        if self._frames > _FREE_FRAMES + more:
            raise ValueError("too many frames")


class _Deflate:
    """`deflate` means zlib; some servers send the raw stream. The first bytes tell."""

    def __init__(self) -> None:
        self._inner: zlib._Decompress | None = None
        self._start = b""

    def feed(self, data: bytes, limit: int) -> bytes:
        if self._inner is None:
            data = self._start = self._start + data
            if len(data) < 2:
                return b""
            zlib_header = data[0] & 0x0F == 8 and not (data[0] * 256 + data[1]) % 31
            self._inner = zlib.decompressobj(zlib.MAX_WBITS if zlib_header else -zlib.MAX_WBITS)
        return b"" if self._inner.eof else self._inner.decompress(data, limit)

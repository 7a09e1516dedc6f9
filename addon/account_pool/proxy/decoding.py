"""Content decodings, a piece at a time and bounded.

The gate must see the first event of a compressed stream before the stream ends, and a
hostile body must not blow up in memory.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import brotli
import zstandard

#: Raw bytes decoded at once: bounds what one step of a decompression bomb can unpack, to
#: 8 MiB with zstd (four bytes make a block of 128 KiB), to a quarter of one with gzip.
_SLICE = 256


class UnknownEncoding(ValueError):
    """A content-encoding that cannot be read here."""


class Decoder:
    """Undoes one content-encoding incrementally.

    Args:
        encoding: the content-encoding header, "" for none.
        max_bytes: stop decoding beyond so many bytes; what was decoded stays valid.

    Raises UnknownEncoding.
    """

    def __init__(self, encoding: str, *, max_bytes: int) -> None:
        self._step = _stepper(encoding.strip().lower())
        self._left = max_bytes

    def feed(self, data: bytes) -> bytes:
        """Return what *data* adds. Raises ValueError when it is damaged."""
        if self._step is None:
            return data
        out = bytearray()
        try:
            for start in range(0, len(data), _SLICE):
                if self._left <= 0:
                    break
                piece = self._step(data[start : start + _SLICE])
                self._left -= len(piece)
                out += piece
        except (zlib.error, brotli.error, zstandard.ZstdError) as e:
            raise ValueError(f"damaged body: {type(e).__name__}") from None
        return bytes(out)


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
    "zstd": lambda text: zstandard.ZstdCompressor(level=1).compress(text),
}


def _stepper(encoding: str) -> Callable[[bytes], bytes] | None:
    match encoding:
        case "" | "identity" | "none":
            return None
        case "gzip" | "x-gzip":
            return zlib.decompressobj(wbits=zlib.MAX_WBITS | 16).decompress
        case "deflate":
            return _Deflate().feed
        case "br":
            return brotli.Decompressor().process
        case "zstd":
            return zstandard.ZstdDecompressor().decompressobj().decompress
        case _:
            raise UnknownEncoding(f"cannot read content-encoding {encoding!r}")


class _Deflate:
    """`deflate` means zlib; some servers send the raw stream. The first bytes tell."""

    def __init__(self) -> None:
        self._inner: zlib._Decompress | None = None
        self._start = b""

    def feed(self, data: bytes) -> bytes:
        if self._inner is None:
            data = self._start = self._start + data
            if len(data) < 2:
                return b""
            zlib_header = data[0] & 0x0F == 8 and not (data[0] * 256 + data[1]) % 31
            self._inner = zlib.decompressobj(zlib.MAX_WBITS if zlib_header else -zlib.MAX_WBITS)
        return self._inner.decompress(data)

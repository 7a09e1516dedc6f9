"""What the scripted provider says: good answers of many shapes, and refusals in many spellings.

Each holds the nonce of its request, so that an answer in the wrong hands is seen; the
provider and the clients build the same bytes from (name, nonce, vendor).
"""

from __future__ import annotations

import gzip
import json
import zlib
from dataclasses import dataclass
from email.utils import formatdate
from functools import cache
from time import time

import brotli
from mitmproxy.net.encoding import encode
from tests.scripts import anthropic, openai
from tests.upstream.replies import event as block

OPENAI, ANTHROPIC = "openai", "anthropic"
VENDORS = (OPENAI, ANTHROPIC)
SHAPES = ("json", "sse", "sse", "large", "gzip")
PATHS = {OPENAI: "/v1/chat/completions", ANTHROPIC: "/v1/messages"}
MODELS = {OPENAI: openai.MODEL, ANTHROPIC: anthropic.MODEL}

Headers = tuple[tuple[str, str], ...]
JSON: Headers = (("content-type", "application/json"),)
STREAM: Headers = (("content-type", "text/event-stream; charset=utf-8"),)
#: What limits name as the wait, in seconds.
WAIT_S = 1


@dataclass(frozen=True, slots=True)
class Said:
    """An answer: *pieces* of its body as they are sent.

    Attributes:
        length: it names its length beforehand.
        closes: HTTP/1.1: its end is that of the connection.
    """

    status: int
    headers: Headers
    pieces: tuple[bytes, ...]
    length: bool = True
    closes: bool = False

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)


def good(shape: str, nonce: str, vendor: str) -> Said:
    """Return the good answer of a request."""
    if shape == "sse":
        words = [f"{nonce} ", *(f"word{n} " for n in range(6)), nonce]
        stream = openai.chat_events if vendor == OPENAI else anthropic.message_events
        return Said(200, STREAM, tuple(stream(words)), length=False)
    text = f"{nonce} " * 9000 if shape == "large" else nonce
    reply = openai.chat_complete(text) if vendor == OPENAI else anthropic.message_complete(text)
    if shape == "gzip":
        packed = gzip.compress(reply.body, mtime=0)
        return Said(200, (*JSON, ("content-encoding", "gzip")), (packed,))
    size = 16_000
    pieces = (reply.body[at : at + size] for at in range(0, len(reply.body), size))
    return Said(200, JSON, tuple(pieces), length=shape != "large")


def error(vendor: str, kind: str, code: str | None, text: str) -> bytes:
    """Return an error in the vendor's envelope."""
    if vendor == ANTHROPIC:
        value: object = {"type": "error", "error": {"type": kind, "message": text}}
    else:
        value = {"error": {"message": text, "type": kind, "param": None, "code": code}}
    return json.dumps(value).encode()


def late_error(nonce: str, vendor: str) -> Said:
    """Return a stream that ends in an error after its first words."""
    stream = good("sse", nonce, vendor)
    name = "error" if vendor == ANTHROPIC else None
    text = error(vendor, "overloaded_error", "overloaded", f"overloaded {nonce}").decode()
    return Said(200, STREAM, (*stream.pieces[:5], block(text, name)), length=False)


def refusal(name: str, nonce: str, vendor: str, credential: str) -> Said:
    """Return the refusal called *name*. Some providers echo the *credential*."""
    made = _limit(name, nonce, vendor) or _other(name, nonce, vendor, credential)
    assert made is not None, name
    return made


def _limit(name: str, nonce: str, vendor: str) -> Said | None:
    """Return a limit, as several vendors and the gateways before them spell it."""
    limited = error(vendor, "rate_limit_error", "rate_limit_exceeded", f"Slow down. {nonce}")
    wait: Headers = (*JSON, ("retry-after", f"{WAIT_S}"))
    kind, _, how = name.partition("-")
    if kind == "429" and how in ("gzip", "deflate", "br", "zstd"):
        packed = encode(limited, how)
        assert isinstance(packed, bytes)
        return Said(429, (*wait, ("content-encoding", how)), (packed,))
    spent = anthropic.window_spent(WAIT_S) if vendor == ANTHROPIC else openai.rate_limited(WAIT_S)
    in_stream = openai.limit_in_chat_stream(WAIT_S).body
    if vendor == ANTHROPIC:
        event = error(vendor, "rate_limit_error", None, nonce).decode()
        in_stream = b"".join(anthropic.message_opening()) + block(event, "error")
    prose = f"Rate limit reached. Please try again in {WAIT_S}.5s. {nonce}"
    html = f"<html><body><h1>Too Many Requests</h1>{nonce}</body></html>".encode()
    table: dict[str, Said] = {
        "429-bare": Said(429, (), (b"",)),
        "429-retry-after": Said(429, wait, (limited,)),
        "429-retry-after-ms": Said(429, (*JSON, ("retry-after-ms", f"{WAIT_S}500")), (limited,)),
        "429-date": Said(
            429, (*JSON, ("retry-after", formatdate(time() + WAIT_S, usegmt=True))), (limited,)
        ),
        "429-window": Said(
            429,
            (
                *JSON,
                ("x-ratelimit-remaining-requests", "0"),
                ("x-ratelimit-reset-requests", f"{WAIT_S}s"),
            ),
            (limited,),
        ),
        "429-prose": Said(
            429, JSON, (error(vendor, "rate_limit_error", "rate_limit_exceeded", prose),)
        ),
        "429-quota": Said(
            429, JSON, (error(vendor, "insufficient_quota", "insufficient_quota", nonce),)
        ),
        "429-window-spent": Said(spent.status, spent.headers, (spent.body,)),
        "429-large": Said(429, wait, (_padded(vendor, nonce, 100_000),), length=False),
        "429-close-delimited": Said(429, wait, (limited,), length=False, closes=True),
        "429-html": Said(
            429, (("content-type", "text/html"), ("retry-after", f"{WAIT_S}")), (html,)
        ),
        "429-bomb-gzip": Said(429, (*wait, ("content-encoding", "gzip")), (_bomb("gzip"),)),
        "429-bomb-br": Said(429, (*wait, ("content-encoding", "br")), (_bomb("br"),)),
        "200-limit-in-json": Said(200, JSON, (openai.limit_in_json(WAIT_S).body,)),
        "200-limit-in-stream": Said(200, STREAM, (in_stream,), length=False),
    }
    if vendor == ANTHROPIC and name == "200-limit-in-json":
        return table["429-retry-after"]
    return table.get(name)


def _other(name: str, nonce: str, vendor: str, credential: str) -> Said | None:
    def said(
        status: int, kind: str, code: str | None, text: str, *headers: tuple[str, str]
    ) -> Said:
        return Said(status, (*JSON, *headers), (error(vendor, kind, code, f"{text} {nonce}"),))

    credit = "Your credit balance is too low to use this API."
    html = f"<html><body><h1>502 Bad Gateway</h1>{nonce}</body></html>".encode()
    elsewhere = f"https://localhost:1/{nonce}"
    match name:
        case "400-credit":
            return said(400, "invalid_request_error", "billing_hard_limit_reached", credit)
        case "402-payment":
            return said(402, "billing_error", "payment_required", "Payment required.")
        case "403-quota":
            return said(403, "permission_error", "insufficient_quota", "You exceeded your quota.")
        case "401-key":
            text = f"Incorrect API key provided: {credential}."
            return said(401, "authentication_error", "invalid_api_key", text)
        case "401-expired":
            return said(401, "authentication_error", "token_expired", "Your token has expired.")
        case "401-words":
            return said(401, "authentication_error", None, "Who are you?")
        case "403-words":
            return said(403, "permission_error", None, "Not here, not now.")
        case "403-suspended":
            text = "Your account has been suspended."
            return said(403, "permission_error", "account_suspended", text)
        case "400-request":
            return said(400, "invalid_request_error", "invalid_value", "messages: too short.")
        case "400-echo":
            text = f"The key {credential} may not."
            return said(400, "invalid_request_error", "invalid", text, ("x-key", credential))
        case "404-path":
            return said(404, "not_found_error", None, "No such path.")
        case "413-size":
            return said(413, "request_too_large", None, "The request is too large.")
        case "422-gzip" | "422-large":
            body = _padded(vendor, nonce, 272_000, kind="invalid_request_error")
            if name == "422-large":
                return Said(422, JSON, (body,))
            return Said(422, (*JSON, ("content-encoding", "gzip")), (gzip.compress(body, mtime=0),))
        case "307-elsewhere":
            return Said(307, (("location", elsewhere),), (b"",))
        case "500":
            return said(500, "api_error", "server_error", "The server had an error.")
        case "502-html":
            return Said(502, (("content-type", "text/html"),), (html,))
        case "503":
            return said(503, "api_error", None, "Unavailable.", ("retry-after", "0"))
        case "529":
            return said(529, "overloaded_error", None, "Overloaded")
        case _:
            return None


def _padded(vendor: str, nonce: str, size: int, kind: str = "rate_limit_error") -> bytes:
    # Hardly to be compressed, or gzip would make nothing of it.
    words = " ".join(f"{zlib.crc32(f'{nonce}{n}'.encode()):08x}" for n in range(size // 9))
    code = "rate_limit_exceeded" if kind == "rate_limit_error" else "invalid_value"
    return error(vendor, kind, code, f"{nonce} {words}")


@cache
def _bomb(encoding: str) -> bytes:
    """Return 32 MiB of nothing, packed."""
    nothing = bytes(32 << 20)
    if encoding == "gzip":
        return gzip.compress(nothing, mtime=0)
    packed: bytes = brotli.compress(nothing, quality=5)
    return packed

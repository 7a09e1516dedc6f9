"""What stands in for OpenAI: TLS on loopback, chat completions that stream, two refusals.

Shapes are those of https://platform.openai.com/docs/api-reference/chat and
https://platform.openai.com/docs/guides/rate-limits.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from email import message_from_string
from http import HTTPStatus
from pathlib import Path
from typing import Any

from cryptography import x509
from mitmproxy.certs import CertStore
from mitmproxy.options import CONF_BASENAME, KEY_SIZE

MODEL = "gpt-5-nano"


@dataclass(frozen=True, slots=True)
class Answer:
    """What is sent to a request.

    Attributes:
        pieces: of the body.
        pause_s: how long nothing is sent after each of them.
        code: of the error in it; "" where it is none.
    """

    status: int
    headers: Sequence[tuple[str, str]]
    pieces: Sequence[bytes]
    pause_s: float = 0.0
    code: str = ""


#: Says what to answer to a credential, and to the JSON that came with it.
Script = Callable[[str, Any], Answer]


async def serve(script: Script, tls: ssl.SSLContext) -> asyncio.Server:
    """Return a server that answers as *script* says, until its `async with` block ends."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # The proxy closes its connections when it ends.
        with suppress(OSError, asyncio.IncompleteReadError):
            while True:
                _, _, head = (await reader.readuntil(b"\r\n\r\n")).decode().partition("\r\n")
                headers = message_from_string(head)
                body = await reader.readexactly(int(headers["content-length"]))
                credential = headers["authorization"].removeprefix("Bearer ")
                await _send(writer, script(credential, json.loads(body)))
        writer.close()

    return await asyncio.start_server(answer, "127.0.0.1", 0, ssl=tls)


async def _send(writer: asyncio.StreamWriter, answer: Answer) -> None:
    lines = [f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in answer.headers]
    writer.write("\r\n".join([*lines, "transfer-encoding: chunked", "", ""]).encode())
    for piece in answer.pieces:
        writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        await writer.drain()
        await asyncio.sleep(answer.pause_s)
    writer.write(b"0\r\n\r\n")
    await writer.drain()


def server_context(confdir: Path) -> tuple[Path, ssl.SSLContext]:
    """Return the authority that mitmproxy makes in *confdir*, and the TLS of a server it signs."""
    store = CertStore.from_store(confdir, CONF_BASENAME, KEY_SIZE)
    certificate = confdir / "provider.pem"
    names = [x509.DNSName("localhost")]
    certificate.write_bytes(store.get_cert("localhost", names).cert.to_pem())
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # What mitmproxy signs has the key of its authority.
    tls.load_cert_chain(certificate, confdir / f"{CONF_BASENAME}-ca.pem")
    return confdir / f"{CONF_BASENAME}-ca-cert.pem", tls


# -- what it says


def chat_stream(words: Sequence[str], pause_s: float) -> Answer:
    """Return a chat completion that is streamed, a word an event."""
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": "", "refusal": None}]
    choices = [_choice(delta) for delta in [*deltas, *({"content": word} for word in words)]]
    usage = {"prompt_tokens": 9, "completion_tokens": len(words), "total_tokens": 9 + len(words)}
    chunks = [*(_chunk([one]) for one in [*choices, _choice({}, "stop")]), _chunk([], usage)]
    events = [f"data: {json.dumps(chunk)}\n\n".encode() for chunk in chunks]
    headers = [
        ("content-type", "text/event-stream; charset=utf-8"),
        ("x-ratelimit-limit-requests", "500"),
        ("x-ratelimit-remaining-requests", "499"),
        ("x-ratelimit-reset-requests", "120ms"),
    ]
    return Answer(200, headers, [*events, b"data: [DONE]\n\n"], pause_s)


def _choice(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def _chunk(choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> dict[str, Any]:
    return {
        "id": "chatcmpl-fake",
        "object": "chat.completion.chunk",
        "created": 1_790_000_000,
        "model": MODEL,
        "choices": choices,
        "usage": usage,
    }


def rate_limited(seconds: int) -> Answer:
    """Return the 429 of a spent tokens-per-minute budget."""
    message = (
        f"Rate limit reached for {MODEL} in organization org-fake on tokens per min (TPM): "
        f"Limit 30000, Used 30000, Requested 385. Please try again in {seconds}s. Visit "
        "https://platform.openai.com/account/rate-limits to learn more."
    )
    return _refusal(
        "tokens",
        "rate_limit_exceeded",
        message,
        ("retry-after", str(seconds)),
        ("retry-after-ms", f"{seconds}000"),
        ("x-ratelimit-limit-tokens", "30000"),
        ("x-ratelimit-remaining-tokens", "0"),
        ("x-ratelimit-reset-tokens", f"{seconds}s"),
    )


def insufficient_quota() -> Answer:
    """Return the 429 of an account without money."""
    message = "You exceeded your current quota, please check your plan and billing details."
    return _refusal("insufficient_quota", "insufficient_quota", message)


def _refusal(kind: str, code: str, message: str, *headers: tuple[str, str]) -> Answer:
    error = {"message": message, "type": kind, "param": None, "code": code}
    body = json.dumps({"error": error}).encode()
    return Answer(429, [("content-type", "application/json"), *headers], [body], code=code)

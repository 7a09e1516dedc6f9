"""A credential goes to its provider and nowhere else.

Every place a proxy writes to is searched for every secret of the run, the client's own
included; and the same search finds them when a script shows one on purpose.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
import zlib
from pathlib import Path

import httpx
import pytest

from account_pool.demo.exchange import Fault, Reply, Request
from account_pool.demo.scripts import anthropic, gemini, openai
from tests.e2e import leak
from tests.e2e.harness import CLIENT, OPENAI, account, chat, generate, messages, respond

SECRET = re.compile(rb"sk-fake-\w+-000")
BASE64 = [base64.b64encode(b"x" * shift + b"sk-fake-")[4:-4] for shift in range(3)]
LABELS = ("first", "second", "third")
ACCOUNTS = [
    account(f"{provider}-{label}".replace("-", "_"), provider)
    for provider in ("openai", "anthropic", "gemini")
    for label in LABELS
]


def script(request: Request) -> Reply:
    """Refuse the first account of each provider, break with the second, then answer."""
    if "first" in request.credential:
        return {"o": openai.rate_limited, "a": anthropic.rate_limited, "g": gemini.per_minute}[
            request.credential.removeprefix("sk-fake-")[0]
        ]()
    if "second" in request.credential and request.turn == 2:
        return Reply(fault=Fault.RESET)
    if request.path.startswith("/v1/messages"):
        return anthropic.message_stream(["Good"])
    if ":streamGenerateContent" in request.path:
        return gemini.content_stream(["Good"])
    if request.path == "/v1/responses":
        return openai.response_stream(["Good"])
    return openai.chat_stream(["Good"])


async def everything_a_client_sees(proxy) -> bytes:
    """Send requests of all kinds, good and bad, and return all that comes back."""
    seen = b""
    requests = [chat(), respond(), messages(), generate(), generate(key_in_query=True)] * 3
    requests += [
        {"method": "GET", "url": f"{OPENAI}/v1/models"} | {"headers": chat()["headers"]},
        {"method": "POST", "url": f"{OPENAI}/v1/chat/completions", "content": b"\xff{not json"},
    ]
    for http2 in (False, True):
        async with proxy.client(http2=http2) as http:
            for request in requests:
                try:
                    answer = await http.request(**request)
                except httpx.TransportError as error:
                    seen += repr(error).encode()
                    continue
                seen += b"".join(b": ".join(pair) for pair in answer.headers.raw)
                seen += answer.content
    return seen


def unpacked(data: bytes) -> bytes:
    """Return *data* and what is compressed in it, as a dump keeps bodies."""
    parts = [data]
    for match in re.finditer(rb"\x1f\x8b\x08", data):
        try:
            parts.append(gzip.decompress(data[match.start() :]))
        except (OSError, EOFError, zlib.error):
            continue
    return b"\n".join(parts)


def written_by(folder: Path) -> dict[str, bytes]:
    """Return the files a proxy wrote, but the one its user wrote."""
    return {
        path.name: unpacked(path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file() and path.name != "accounts.yaml" and "mitmproxy" not in path.parts[-2]
    }


async def places(setting, upstream, *scripts: str) -> dict[str, bytes]:
    """Run a proxy with everything that writes switched on; return what each place holds."""
    proxy = setting.prepare(
        ACCOUNTS,
        provider=upstream,
        options={
            "termlog_verbosity": "debug",
            "flow_detail": 4,
            "hardump": "traffic.har",
            "pool_max_wait": 0,
        },
        extra_args=["-w", "traffic.mitm", *scripts],
    )
    async with proxy:
        seen = await everything_a_client_sees(proxy)
    return {
        "client": seen,
        "log": proxy.output.encode(),
        **written_by(proxy.folder),
    }


def found(data: bytes) -> set[bytes]:
    return set(SECRET.findall(data)) | {text for text in BASE64 if text in data}


async def test_no_secret_of_the_run_is_anywhere_but_at_the_provider(provider, setting):
    upstream = await provider(script)
    searched = await places(setting, upstream)
    assert {"client", "log", "traffic.mitm", "traffic.har"} <= set(searched)
    assert {name: found(data) for name, data in searched.items() if found(data)} == {}
    # The search had something to find: every provider was asked with several accounts.
    used = set(upstream.journal.credentials)
    for name in ("openai", "anthropic", "gemini"):
        assert len([secret for secret in used if name in secret]) >= 2
    assert json.loads(searched["traffic.har"])["log"]["entries"]


@pytest.mark.parametrize("place", ["client", "log", "traffic.mitm", "traffic.har"])
async def test_the_search_finds_what_is_shown_on_purpose(provider, setting, place):
    upstream = await provider(script)
    searched = await places(setting, upstream, "-s", leak.__file__)
    assert found(searched[place])


async def test_what_is_shown_names_the_account_instead(provider, setting):
    upstream = await provider(script)
    searched = await places(setting, upstream)
    assert b"pool:openai/openai_" in searched["traffic.mitm"]
    assert CLIENT.encode() not in searched["traffic.mitm"]

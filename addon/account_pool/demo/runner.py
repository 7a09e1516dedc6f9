"""Runs the demo: a scripted provider, a real mitmdump, a client; then cleans up.

Everything lives in one temporary folder and one child process, and both are gone
afterwards, whether it went well, failed, or was interrupted.
"""

from __future__ import annotations

import asyncio
import json
import signal
import ssl
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx

from account_pool.config.replace import CannotEdit, make_private, write_beside
from account_pool.demo import scenario
from account_pool.demo.certificates import make_certificate
from account_pool.demo.mitmdump import (
    POOL_READY,
    START_TIMEOUT_S,
    Mitmdump,
    MitmdumpFailed,
    addon_script,
)
from account_pool.demo.provider import Provider
from account_pool.demo.scenario import Transcript

#: Far more than it needs; the demo must end by itself even where nothing works.
TIMEOUT_S = START_TIMEOUT_S + 120

#: What the proxy printed when it did not start.
LOG = "~/.mitmproxy/account-pool-demo.log"


class DemoFailed(Exception):
    """The client saw something else than the good answer."""


def run_demo() -> int:
    """Run the demo. Returns 0, or 1 after one line on stderr, or 128 + signal."""
    try:
        asyncio.run(_run())
    except KeyboardInterrupt:
        return _fail("interrupted", 128 + signal.SIGINT)
    except asyncio.CancelledError:
        return _fail("terminated", 128 + signal.SIGTERM)
    except TimeoutError:
        return _fail(f"did not end within {TIMEOUT_S:g} s")
    except (DemoFailed, MitmdumpFailed, OSError, httpx.HTTPError) as error:
        return _fail(str(error) or type(error).__name__)
    return 0


def _fail(why: str, code: int = 1) -> int:
    print(f"account-pool demo: {why}", file=sys.stderr)
    return code


async def _run() -> None:
    task = asyncio.current_task()
    assert task is not None
    # So that a SIGTERM runs the same cleaning up as a Ctrl-C. Windows has none.
    with suppress(NotImplementedError):
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    with tempfile.TemporaryDirectory(prefix="account-pool-demo-") as folder:
        async with asyncio.timeout(TIMEOUT_S):
            await _run_in(Path(folder))


async def _run_in(folder: Path) -> None:
    transcript = Transcript()
    certificate = make_certificate(folder)
    async with Provider(scenario.script(), certificate) as provider:
        accounts = folder / "accounts.yaml"
        accounts.touch(mode=0o600)
        accounts.write_text(scenario.accounts_yaml(provider.port), encoding="utf-8")
        options = {
            "confdir": folder / "mitmproxy",
            "flow_detail": 0,
            "pool_accounts": accounts,
            "pool_state": "memory:",
            "ssl_verify_upstream_trusted_ca": certificate.authority,
        }
        sets = [arg for name, value in options.items() for arg in ("--set", f"{name}={value}")]
        script = str(addon_script())
        mitmdump = Mitmdump(
            "-s", script, *sets, folder=folder, ready=POOL_READY, on_line=transcript.log_line
        )
        async with _kept_on_failure(mitmdump), mitmdump as proxy:
            transcript.opening(provider.url, proxy.url, script)
            provider.journal.on_reply = transcript.exchange
            authority = folder / "mitmproxy" / "mitmproxy-ca-cert.pem"
            async with _client(proxy.url, authority) as client:
                for number, question in enumerate(scenario.QUESTIONS, 1):
                    transcript.question(number, question)
                    await _ask(client, provider.url, question, transcript)
            _check_journal(provider)
            transcript.closing()


@asynccontextmanager
async def _kept_on_failure(mitmdump: Mitmdump) -> AsyncIterator[None]:
    """Keep what *mitmdump* printed where it failed, and say where."""
    try:
        yield
    except MitmdumpFailed as error:
        where = _write_log(mitmdump.output)
        raise MitmdumpFailed(f"{error}{where and f'; its log is {where}'}") from None


def _write_log(text: str) -> str:
    """Write *text* beside the logs of `run`; return where, "" where that is not possible."""
    path = Path(LOG).expanduser()
    try:
        make_private(path.parent)
        write_beside(path, f"{text}\n", 0o600).replace(path)
    except (OSError, CannotEdit):
        return ""
    return LOG


def _client(proxy_url: str, authority: Path) -> httpx.AsyncClient:
    tls = ssl.create_default_context(cafile=str(authority))
    # By transport: the spelling of a client's proxy argument changed between httpx versions.
    transport = httpx.AsyncHTTPTransport(proxy=httpx.Proxy(proxy_url), verify=tls)
    return httpx.AsyncClient(transport=transport, timeout=TIMEOUT_S)


async def _ask(
    client: httpx.AsyncClient,
    provider_url: str,
    question: scenario.Question,
    transcript: Transcript,
) -> None:
    """Send *question* as a client would and show its answer as it comes."""
    request = client.build_request(
        "POST",
        f"{provider_url}/v1/chat/completions",
        headers={"authorization": f"Bearer {scenario.CLIENT_TOKEN}"},
        json={
            "model": "gpt-5-nano",
            "stream": True,
            "messages": [{"role": "user", "content": question.text}],
        },
    )
    response = await client.send(request, stream=True)
    words = []
    try:
        if response.status_code != 200:
            body = (await response.aread()).decode(errors="replace")
            raise DemoFailed(f"the client saw {response.status_code}: {' '.join(body.split())}")
        async for word in _words(response):
            words.append(word)
            transcript.word(word)
    finally:
        await response.aclose()
    if "".join(words) != question.answer:
        raise DemoFailed(f"the answer was damaged: {''.join(words)!r}")
    transcript.answered(response.status_code, len(words))


async def _words(response: httpx.Response) -> AsyncIterator[str]:
    """Yield the text of a chat stream, piece by piece."""
    async for line in response.aiter_lines():
        data = line.removeprefix("data: ")
        if data in (line, "[DONE]"):
            continue
        for choice in json.loads(data)["choices"]:
            if text := choice["delta"].get("content"):
                yield text


def _check_journal(provider: Provider) -> None:
    """Raise DemoFailed unless the provider saw the accounts of the pool and only those."""
    seen = set(provider.journal.credentials)
    if scenario.CLIENT_TOKEN in seen or not seen <= set(scenario.LABELS):
        raise DemoFailed("the provider saw a credential that is not in the pool")
    if provider.journal.errors:
        raise DemoFailed(f"the scripted provider failed: {provider.journal.errors[0]!r}")

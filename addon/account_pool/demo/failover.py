"""`account-pool demo`: a failover of three accounts of one provider, shown as it happens.

On a terminal in colour; into a file or a pipe plain text, one fact per line. Every secret below
is an obvious fake. They never leave this machine, and the demo uses the real machinery to prove
that the client never sees one.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import ssl
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from email import message_from_string
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx
from cryptography import x509
from mitmproxy.certs import CertStore
from mitmproxy.options import CONF_BASENAME, KEY_SIZE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from account_pool.config.accounts_file import command
from account_pool.demo.mitmdump import (
    POOL_READY,
    START_TIMEOUT_S,
    TIME,
    Mitmdump,
    MitmdumpFailed,
    addon_script,
)
from account_pool.filesystem import expanded, make_private, write_whole

#: What the client sends: no account of the pool, so the provider would turn it away.
CLIENT_TOKEN = "sk-fake-client-000"  # noqa: S105
TOKENS = {
    "work": "sk-fake-work-000",
    "old": "sk-fake-old-000",
    "spare": "sk-fake-spare-000",
}
LABELS = {token: label for label, token in TOKENS.items()}

#: Seconds between two words: slow enough to see that they stream.
WORD_PAUSE_S = 0.06
RATE_LIMIT_S = 38


@dataclass(frozen=True, slots=True)
class Question:
    """One request of the client, and the only answer it should ever see."""

    text: str
    answer: str

    @property
    def words(self) -> list[str]:
        first, *rest = self.answer.split(" ")
        return [first, *(f" {word}" for word in rest)]


QUESTIONS = (
    Question(
        "What happens when my account hits its limit?",
        "The proxy reads the refusal, puts that account on cooldown for as long as it names, "
        "and replays your request on another account. You only see this answer.",
    ),
    Question(
        "And the next request?",
        "It goes straight to an account that can serve; the other two are skipped.",
    ),
    Question(
        "Does it still stream?",
        "Word by word, as the provider sends it. Nothing is held back once it has begun.",
    ),
)


def said_to(label: str, text: str) -> Answer:
    """Return what the provider says: one account limited, one out of money, one fine."""
    if label == "work":
        return rate_limited(RATE_LIMIT_S)
    if label == "old":
        return insufficient_quota()
    question = next(question for question in QUESTIONS if question.text == text)
    return chat_stream(question.words, WORD_PAUSE_S)


def accounts_yaml(port: int) -> str:
    """Return the accounts file of the demo, for a provider at localhost:*port*."""
    accounts = "".join(
        f"  - {{provider: openai, label: {label}, token: {token}}}\n"
        for label, token in TOKENS.items()
    )
    hosts = f"providers:\n  openai: {{hosts: ['localhost:{port}']}}\n"
    return f"accounts:\n{accounts}{hosts}"


#: The pool's own line about an attempt that was refused, e.g. "openai/work: 429
#: rate_limit, on cooldown for 38 s (gpt-5-nano) -> openai/old (429 code=...)".
_REFUSED = re.compile(
    r"openai/(?P<label>[\w-]+): (?P<cause>.+), "
    r"on cooldown for (?P<time>[\w ]+?)(?: \(.+?\))? -> "
)
_UNITS = {"s": "seconds", "min": "minutes", "h": "hours", "d": "days"}


class Transcript:
    """Prints the demo. Knows what it has shown, decides nothing."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        if not self._console.is_terminal:
            # A file or a pipe has no 80 columns.
            self._console.width = 1000
        self._asked: dict[str, int] = dict.fromkeys(LABELS.values(), 0)
        self._refused: dict[str, int] = dict.fromkeys(LABELS.values(), 0)
        self._resting: dict[str, str] = {}
        self._streaming = False
        self._held: list[str] = []

    def opening(self, provider_url: str, proxy_url: str, script: str) -> None:
        self._print("One provider, three accounts: work is rate limited, old is out of quota,")
        self._print("spare is fine. The client holds none of their keys.\n")
        self._print(f"  provider  {provider_url} (scripted, stands in for OpenAI)", "dim")
        self._print(f"  proxy     {proxy_url} (mitmdump -s {script})", "dim")

    def question(self, number: int, question: Question) -> None:
        self._print(f'\n{number}. POST /v1/chat/completions  "{question.text}"', "bold")

    def provider_said(self, label: str, answer: Answer) -> None:
        """Show what the provider answers to an account, the moment it does."""
        self._asked[label] += 1
        if not answer.code:
            self._print(f"   openai/{label:6} {answer.status}", "green")
            return
        self._refused[label] += 1
        self._print(f"   openai/{label:6} {answer.status} {answer.code}", "yellow")

    def log_line(self, line: str) -> None:
        """Show what mitmdump says, if the pool said it; never in the middle of an answer."""
        line = TIME.sub("", line)
        refused = _REFUSED.match(line)
        if refused is None:
            return
        until = _until(refused["time"])
        self._resting[refused["label"]] = f"on cooldown until {until}: {refused['cause']}"
        line += f", until {until}"
        if self._streaming:
            self._held.append(line)
        else:
            self._print(f"     pool: {line}", "cyan")

    def word(self, word: str) -> None:
        """Show the next piece of the answer as it arrives at the client."""
        if not self._streaming:
            self._console.print("   > ", end="")
        self._streaming = True
        self._console.print(Text(word), end="")

    def answered(self, status: int, chunks: int) -> None:
        self._console.print()
        self._streaming = False
        lines, self._held = self._held, []
        for line in lines:
            self._print(f"     pool: {line}", "cyan")
        self._print(f"   the client saw: {status}, streamed in {chunks} chunks", "dim")

    def closing(self) -> None:
        table = Table("account", "asked", "refused", "now", box=None, padding=(0, 2, 0, 0))
        for label, asked in self._asked.items():
            now = self._resting.get(label, "on cooldown" if self._refused[label] else "available")
            table.add_row(f"openai/{label}", str(asked), str(self._refused[label]), now)
        self._console.print()
        self._console.print(table, soft_wrap=False)
        self._print(
            f"\nWith accounts of your own: add one with `{command()} add openai work` or "
            f"`{command()} login --from claude` (or codex, gemini, copilot, gh), then start your "
            f"tool with `{command()} run -- TOOL`, or a proxy with `{command()} serve`."
        )

    def _print(self, text: str, style: str = "") -> None:
        self._console.print(Text(text, style=style))


def _until(time: str) -> str:
    """Return the time of day *time* from now, which is spelt like "1 h 5 min"."""
    words = time.split()
    parts = {_UNITS[unit]: int(n) for n, unit in zip(words[::2], words[1::2], strict=True)}
    until = datetime.now().astimezone() + timedelta(**parts)
    return f"{until:%H:%M:%S}" if "seconds" in parts else f"about {until:%H:%M}"


# -- run: a scripted provider, a real mitmdump, a client; then all is cleaned up
#
# Everything lives in one temporary folder and one child process, and both are gone afterwards,
# whether it went well, failed, or was interrupted.

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
    transcript, confdir = Transcript(), folder / "mitmproxy"
    strangers: list[str] = []

    def script(credential: str, asked: Any) -> Answer:
        if (label := LABELS.get(credential)) is None:
            strangers.append(credential)
            return insufficient_quota()
        answer = said_to(label, asked["messages"][-1]["content"])
        transcript.provider_said(label, answer)
        return answer

    authority, tls = server_context(confdir)
    async with await serve(script, tls) as provider:
        port = provider.sockets[0].getsockname()[1]
        accounts = folder / "accounts.yaml"
        accounts.touch(mode=0o600)
        accounts.write_text(accounts_yaml(port), encoding="utf-8")
        options = {
            "confdir": confdir,
            "flow_detail": 0,
            "pool_accounts": accounts,
            "pool_state": "memory:",
            "ssl_verify_upstream_trusted_ca": authority,
        }
        sets = [arg for name, value in options.items() for arg in ("--set", f"{name}={value}")]
        addon, url = str(addon_script()), f"https://localhost:{port}"
        mitmdump = Mitmdump(
            "-s", addon, *sets, folder=folder, ready=POOL_READY, on_line=transcript.log_line
        )
        async with _kept_on_failure(mitmdump), mitmdump as proxy:
            transcript.opening(url, proxy.url, addon)
            async with _client(proxy.url, authority) as client:
                for number, question in enumerate(QUESTIONS, 1):
                    transcript.question(number, question)
                    await _ask(client, url, question, transcript)
            if strangers:
                raise DemoFailed("the provider saw a credential that is not in the pool")
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
    path = expanded(LOG)
    try:
        make_private(path.parent)
        write_whole(path, f"{text}\n", durable=False)
    except OSError:
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
    question: Question,
    transcript: Transcript,
) -> None:
    """Send *question* as a client would and show its answer as it comes."""
    request = client.build_request(
        "POST",
        f"{provider_url}/v1/chat/completions",
        headers={"authorization": f"Bearer {CLIENT_TOKEN}"},
        json={
            "model": MODEL,
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


# -- what stands in for OpenAI: TLS on loopback, chat completions that stream, two refusals
#
# Shapes are those of https://platform.openai.com/docs/api-reference/chat and
# https://platform.openai.com/docs/guides/rate-limits.

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

"""Real mitmdump processes with the addon, and clients that go through them.

Nothing here sleeps: a test waits for what it needs (a line, a request, an ending) and
fails when that does not come.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import shutil
import socket
import ssl
import sys
from asyncio.subprocess import DEVNULL, PIPE, STDOUT
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

import account_pool
from account_pool.demo.mitmdump import LISTENING, POOL_READY, Mitmdump, addon_script
from tests.e2e import forked, redirect
from tests.patience import PATIENCE_S
from tests.upstream.certificates import Certificate
from tests.upstream.provider import Provider

OPENAI = "https://api.openai.com"
ANTHROPIC = "https://api.anthropic.com"
GEMINI = "https://generativelanguage.googleapis.com"

#: What clients send; the provider must never see it on a request of the pool.
CLIENT = "sk-fake-client-000"
TIMEOUT_S = PATIENCE_S

#: What `pool_fast` is where a test sets none; "" for the default.
FAST = os.environ.get("POOL_TEST_FAST", "")
#: By how many workers a proxy serves where a test does not say it.
WORKERS = int(os.environ.get("POOL_TEST_WORKERS", "1"))

ACCOUNTS_FILE = "accounts.yaml"
CONFDIR = "mitmproxy"

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
#: Path of a Chromium; None where there is none.
CHROMIUM = next((path for name in _BROWSERS if (path := shutil.which(name))), None)


def free_port() -> int:
    """Return a port for a program that does not say which one it took.

    None that the system gives to a connection before that program listens.
    """
    while True:
        port = random.SystemRandom().randrange(20_000, 32_768)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def secret(label: str) -> str:
    """Return the fake credential of the account *label*."""
    return f"sk-fake-{label}-000"


FIRST, SECOND, THIRD = secret("first"), secret("second"), secret("third")


def account(label: str, provider: str = "openai", **settings: Any) -> dict[str, Any]:
    """Return one entry of accounts.yaml."""
    return {"provider": provider, "label": label, "token": secret(label), **settings}


def in_order(*labels: str, provider: str = "openai", **settings: Any) -> list[dict[str, Any]]:
    """Return accounts that are preferred in this order, so that tests know who is asked."""
    return [account(x, provider, priority=n, **settings) for n, x in enumerate(labels)]


TWO = in_order("first", "second")


#: How `account-pool serve` is called, in an environment with `PATH_OF_PACKAGE`.
COMMAND = (sys.executable, "-c", "from account_pool.cli import main; main()")
SERVE = (*COMMAND, "serve")
PATH_OF_PACKAGE = {"PYTHONPATH": str(Path(account_pool.__file__).parents[1])}


async def run_command(home: Path, *words: str, typed: str = "") -> tuple[int, str, str]:
    """Run `account-pool` for the user of *home*, on pipes.

    Returns its exit code, what it says, and what it says beside it.
    """
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        *words,
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        env={**os.environ, "HOME": str(home)},
    )
    async with asyncio.timeout(TIMEOUT_S):
        out, err = await process.communicate(typed.encode())
    return process.returncode or 0, out.decode(), err.decode()


class Proxy(Mitmdump):
    """A mitmdump, or several on one port, and clients that go through it."""

    def __init__(self, trusted: Path, *args: str, workers: int = 1, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.trusted = trusted
        self.workers = workers

    async def __aenter__(self) -> Proxy:
        await super().__aenter__()
        if self.workers > 1:
            await self.until(lambda: len(self.ready_workers()) == self.workers)
        return self

    def ready_workers(self) -> set[str]:
        """Return the names of the workers that have said that they are ready."""
        said = [re.match(rf"(worker \d+): .*{POOL_READY}", line) for line in self.lines]
        return {one[1] for one in said if one}

    def client(self, **settings: Any) -> httpx.AsyncClient:
        return client(self.trusted, self.url, **settings)

    async def _launch(self) -> Any:
        if self.workers > 1:
            return await asyncio.create_subprocess_exec(
                *SERVE,
                "--workers",
                str(self.workers),
                *self._args,
                cwd=self.folder,
                env={**self._env, **PATH_OF_PACKAGE},
                stdin=DEVNULL,
                stdout=PIPE,
                stderr=STDOUT,
                limit=1 << 20,
            )
        if not forked.is_possible(self._env):
            return await super()._launch()
        return await forked.FORKS.start(
            self._program, self._args, cwd=self.folder, env=dict(self._env)
        )


@dataclass(frozen=True, slots=True)
class Setting:
    """What all proxies of a test have in common.

    Attributes:
        certificate: of the scripted provider.
        authority: mitmproxy's own, made once per session because it takes a while.
        folder: of this test.
    """

    certificate: Certificate
    authority: Path
    folder: Path

    @property
    def trusted(self) -> Path:
        """What a client must trust to talk through a proxy."""
        return self.authority / "mitmproxy-ca-cert.pem"

    def prepare(
        self,
        accounts: Sequence[Mapping[str, Any]] | str | None,
        *,
        provider: Provider | None = None,
        providers: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        scripts: Sequence[str] = (),
        extra_args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        addon: bool = True,
        workers: int = WORKERS,
        **how: Any,
    ) -> Proxy:
        """Return a mitmdump that is ready to be started.

        Args:
            accounts: of accounts.yaml, or its text; None for no such file.
            provider: where connections to the vendors' hosts go.
            providers: section of accounts.yaml.
            options: given with --set.
            scripts: loaded before us.
            extra_args: given as they are.
            env: added to an environment that holds no account of its own.
            addon: False for mitmdump without us.
            workers: how many processes serve; more than one share a file in any case.
            how: more of what `Mitmdump` takes; it wins.
        """
        folder = self.folder / f"proxy-{len(list(self.folder.glob('proxy-*')))}"
        shutil.copytree(self.authority, folder / CONFDIR)
        if accounts is not None:
            # As it should be kept; the addon says so when it is not.
            (folder / ACCOUNTS_FILE).touch(mode=0o600)
            (folder / ACCOUNTS_FILE).write_text(_yaml(accounts, providers), encoding="utf-8")
        workers = workers if addon and how.get("program", "mitmdump") == "mitmdump" else 1
        settings = {
            "confdir": CONFDIR,
            "flow_detail": 0,
            "pool_state": "memory:" if workers == 1 else "state.sqlite",
            # Where a test is not about it, the gate waits for events, not for a busy machine.
            "pool_gate": PATIENCE_S,
            **({"pool_fast": FAST} if FAST else {}),
            # Named: what is only found in the working directory would have to be confirmed.
            **({"pool_accounts": ACCOUNTS_FILE} if accounts is not None else {}),
            "ssl_verify_upstream_trusted_ca": self.certificate.authority,
            **({"redirect_port": provider.port} if provider else {}),
            **(options or {}),
        }
        args = [arg for name, value in settings.items() for arg in ("--set", f"{name}={value}")]
        for script in scripts:
            args += ["-s", script]
        if provider:
            args += ["-s", redirect.__file__]
        if addon and workers == 1:
            args += ["-s", str(addon_script())]
        return Proxy(
            self.trusted,
            *args,
            *extra_args,
            workers=workers,
            **{
                "folder": folder,
                "env": _environment(folder, env),
                "ready": POOL_READY if addon else LISTENING,
                # pytest shows it where a test fails.
                "on_line": print,
                **how,
            },
        )


def _yaml(accounts: Sequence[Mapping[str, Any]] | str, providers: Mapping[str, Any] | None) -> str:
    if isinstance(accounts, str):
        return accounts
    # JSON is YAML, and needs no library.
    document: dict[str, Any] = {"accounts": accounts}
    if providers:
        document["providers"] = providers
    return json.dumps(document, indent=1)


def _environment(folder: Path, more: Mapping[str, str] | None) -> dict[str, str]:
    """Return an environment without accounts, proxies or a home of anyone."""
    kept = {k: v for k, v in os.environ.items() if k in ("PATH", "SYSTEMROOT", "TEMP", "LANG")}
    return {**kept, "HOME": str(folder), **(more or {})}


def point_clients_at(proxy: Proxy, monkeypatch: Any) -> None:
    """Set up the environment of every client as a user does: a proxy and a CA."""
    for variable in ("HTTP_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.lower(), raising=False)
    monkeypatch.setenv("HTTPS_PROXY", proxy.url)
    for variable in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.setenv(variable, str(proxy.trusted))


class PreferHttp2(ssl.SSLContext):
    """Offers HTTP/2 first, as browsers and curl do: mitmproxy may take the first it knows."""

    def set_alpn_protocols(self, alpn_protocols: Iterable[str]) -> None:
        super().set_alpn_protocols(sorted(alpn_protocols))


def client(
    trusted: Path, proxy_url: str | None = None, *, http2: bool = False, **settings: Any
) -> httpx.AsyncClient:
    """Return a client that trusts only *trusted*, through a proxy if there is one."""
    tls = PreferHttp2(ssl.PROTOCOL_TLS_CLIENT)
    tls.load_verify_locations(trusted)
    # By transport: the spelling of a client's proxy argument changed between httpx versions.
    transport = httpx.AsyncHTTPTransport(
        proxy=httpx.Proxy(proxy_url) if proxy_url else None,
        verify=tls,
        http2=http2,
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
    )
    settings.setdefault("timeout", TIMEOUT_S)
    return httpx.AsyncClient(transport=transport, **settings)


async def leave(task: asyncio.Task[Any]) -> None:
    """Give up what *task* waits for, as a client that goes away."""
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def chat(text: str = "Hello?", *, stream: bool = True, base: str = OPENAI) -> dict[str, Any]:
    """Return the arguments of a chat completion request, for `client.request(**chat())`."""
    return {
        "method": "POST",
        "url": f"{base}/v1/chat/completions",
        "headers": {"authorization": f"Bearer {CLIENT}"},
        "json": {
            "model": "gpt-5-nano",
            "stream": stream,
            "messages": [{"role": "user", "content": text}],
        },
    }


def respond(*, stream: bool = True) -> dict[str, Any]:
    """Return the arguments of a request to the responses API."""
    return {
        "method": "POST",
        "url": f"{OPENAI}/v1/responses",
        "headers": {"authorization": f"Bearer {CLIENT}"},
        "json": {"model": "gpt-5-nano", "stream": stream, "input": "Hello?"},
    }


def messages(*, stream: bool = True) -> dict[str, Any]:
    """Return the arguments of a request to the Anthropic API."""
    return {
        "method": "POST",
        "url": f"{ANTHROPIC}/v1/messages",
        "headers": {"x-api-key": CLIENT, "anthropic-version": "2023-06-01"},
        "json": {
            "model": "claude-haiku-4-5",
            "max_tokens": 64,
            "stream": stream,
            "messages": [{"role": "user", "content": "Hello?"}],
        },
    }


def generate(
    *, stream: bool = True, sse: bool = True, key_in_query: bool = False
) -> dict[str, Any]:
    """Return the arguments of a request to the Gemini API."""
    method = "streamGenerateContent" if stream else "generateContent"
    query = ["alt=sse"] if stream and sse else []
    query += [f"key={CLIENT}"] if key_in_query else []
    url = f"{GEMINI}/v1beta/models/gemini-3.5-flash:{method}"
    return {
        "method": "POST",
        "url": f"{url}?{'&'.join(query)}" if query else url,
        "headers": {} if key_in_query else {"x-goog-api-key": CLIENT},
        "json": {"contents": [{"role": "user", "parts": [{"text": "Hello?"}]}]},
    }

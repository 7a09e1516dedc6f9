"""Wires token exchanges into the proxy: trust, upstream proxy, the client's own call."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ssl
import time
from urllib.parse import urlsplit

from mitmproxy.options import Options

from account_pool.config import Config
from account_pool.credentials.copilot import CopilotExchange
from account_pool.credentials.editor import EditorHeaders
from account_pool.credentials.keeper import Keeper
from account_pool.providers.base import LocalAnswer
from account_pool.proxy.service import Service

#: How long a client's own exchange waits for the first one of ours, right after start.
FIRST_TRY_S = 15.0


def make(loaded: Config, editor_version: str, options: Options) -> CopilotExchange:
    """Return the exchange for the accounts of *loaded*; nothing is sent yet."""
    used = {entry.account.provider for entry in loaded.accounts}
    exchanges = {name: e for name, e in loaded.exchanges.items() if name in used}
    return CopilotExchange(
        exchanges,
        EditorHeaders(editor_version),
        wall_clock=time.time,
        verify=_trust(options) if exchanges else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
        proxy=_upstream_proxy(options),
    )


def serve(service: Service, keeper: Keeper, exchange: CopilotExchange, loaded: Config) -> None:
    """Let *service* answer clients that exchange a token, and learn their editor."""
    for name in loaded.exchanges:
        service.local[name] = functools.partial(_answer, keeper, name)
        service.seen[name] = exchange.client_seen


async def _answer(keeper: Keeper, provider: str) -> LocalAnswer:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(keeper.first_try(provider), FIRST_TRY_S)
    return keeper.exchange_answer(time.time(), provider)


def _trust(options: Options) -> ssl.SSLContext:
    """Return what mitmproxy itself trusts upstream, verification always on."""
    import certifi  # noqa: PLC0415 - only where there is an exchange

    context = ssl.create_default_context(
        cafile=options.ssl_verify_upstream_trusted_ca
        or (None if options.ssl_verify_upstream_trusted_confdir else certifi.where()),
        capath=options.ssl_verify_upstream_trusted_confdir,
    )
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _upstream_proxy(options: Options) -> str | None:
    """Return the user's upstream proxy (`--mode upstream:URL`), if there is one."""
    for mode in options.mode:
        kind, _, spec = mode.partition(":")
        if kind == "upstream":
            address = spec.partition("@")[0]
            auth = getattr(options, "upstream_auth", None)
            url = urlsplit(address)
            return f"{url.scheme}://{auth}@{url.netloc}" if auth else address
    return None

"""`account-pool check --try`: does each credential work? One cheap request for each.

Straight to the provider, not through the pool, so that every account is asked itself.
The credential is acquired as the proxy has it: exchanged, refreshed, kept in its database.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from mitmproxy import exceptions, http, optmanager
from mitmproxy.options import Options
from rich.text import Text

from account_pool.cli.accounts import CONFIG_NAMES, state_of
from account_pool.cli.output import fail, note, show, show_json, table, warn
from account_pool.cli.processes import CONFDIR
from account_pool.config.configuration import Config
from account_pool.config.review import review
from account_pool.core.account import AccountKey
from account_pool.core.credential import Credential
from account_pool.core.outcome import Outcome, OutcomeClass, UpstreamResponse
from account_pool.core.wrong import Wrong
from account_pool.credentials.http import Http, HttpFailed, HttpResponse
from account_pool.credentials.keeper import Keeper
from account_pool.credentials.sources import AccountEntry
from account_pool.filesystem import expanded
from account_pool.providers.base import CannotSwap, Origin
from account_pool.proxy import credential_swap
from account_pool.proxy.store_access import make_store
from account_pool.proxy.wiring import make_keeper, own_http
from account_pool.store.store import StoreError

#: Seconds for one answer, and for an exchange or a refresh before it.
_ASK_S, _CREDENTIAL_S = 15.0, 30.0
_USER_AGENT = "mitmproxy-account-pool (check)"
_STYLES = {"works": "green", "limited": "yellow", "unclear": "yellow"}
WORKS, LIMITED, REFUSED, UNCLEAR = "works", "limited", "refused", "unclear"
_BAD = frozenset({REFUSED, "no credential", "unreachable"})


@dataclass(frozen=True, slots=True)
class Tried:
    """What came of one account: a verdict, and what it rests on."""

    key: AccountKey
    verdict: str
    evidence: str


#: What the keeper publishes of each account: its credentials, or why it has none.
_Acquired = dict[AccountKey, tuple[Mapping[str, Credential], str | None]]


def try_all(loaded: Config, *, as_json: bool = False) -> int:
    """Try each account. Returns 0, or 1 if one cannot be used."""
    try:
        options = _options()
        # What the keeper has to say of an account stands in the table.
        logging.getLogger("account_pool").addHandler(logging.NullHandler())
        tried = asyncio.run(_try_all(loaded, options))
        # Those that cannot be read are in the table.
        warnings = [*loaded.warnings, *review(loaded, wall_now=time.time()).notices]
    except (StoreError, Wrong, exceptions.OptionsError) as error:
        return fail(error)
    code = int(any(one.verdict in _BAD for one in tried))
    if as_json:
        rows = [
            {"key": str(one.key), "credential": one.verdict, "evidence": one.evidence}
            for one in tried
        ]
        show_json({"accounts": rows, "warnings": [str(one) for one in warnings]})
        return code
    warn(*warnings)
    shown = table("account", "credential", "evidence")
    for one in tried:
        said = Text(one.verdict, style=_STYLES.get(one.verdict, "red"))
        shown.add_row(str(one.key), said, Text(one.evidence))
    show(shown)
    return code


def _options() -> Options:
    """Return mitmproxy's options as its own configuration sets them."""
    options = Options()
    optmanager.load_paths(options, *(expanded(CONFDIR) / name for name in CONFIG_NAMES))
    return options


async def _try_all(loaded: Config, options: Options) -> list[Tried]:
    """Try one account after the other. Raises StoreError, Wrong."""
    acquired: _Acquired = {}
    store = make_store(state_of(loaded), options, tell=note)
    editor = str(loaded.options.get("editor_version", ""))
    keeper = make_keeper(
        loaded,
        lambda key, kinds, problem, _again_in_s: acquired.update({key: (kinds, problem)}),
        store=store,
        editor_version=editor,
        options=options,
    )
    ask = own_http(options)
    keeper.start()
    try:
        entries = [entry for entry in loaded.accounts if entry.account.enabled]
        return [await _try(entry, loaded, keeper, acquired, ask) for entry in entries]
    finally:
        keeper.stop()


async def _try(
    entry: AccountEntry, loaded: Config, keeper: Keeper, acquired: _Acquired, ask: Http
) -> Tried:
    key = entry.account.key
    probe = probe_of(entry, exchanged=key.provider in loaded.exchanges)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_CREDENTIAL_S):
            await keeper.first_try(key.provider)
    kinds, problem = acquired.get(key, ({}, None))
    credential = kinds.get(probe.kind) if probe.kind else next(iter(kinds.values()), None)
    if credential is None:
        return Tried(key, "no credential", problem or f"not obtained within {_CREDENTIAL_S:g} s")
    try:
        answer = await _asked(entry, credential, probe, ask)
    except (HttpFailed, CannotSwap) as error:
        return Tried(key, "unreachable", str(error))
    outcome = entry.provider.classify(
        UpstreamResponse(
            status=answer.status,
            headers=answer.headers,
            text=answer.body.decode(errors="replace"),
            payload=answer.json(),
            wall_now=time.time(),
        )
    )
    return Tried(key, verdict(outcome), outcome.signal)


def probe_of(entry: AccountEntry, *, exchanged: bool) -> Probe:
    """Return what to ask with the credential of *entry*.

    *exchanged*: its token is one of GitHub, so that it speaks Copilot's API, perhaps at a
    tenant's own hosts.
    """
    probe = PROBES["copilot"] if exchanged else PROBES.get(entry.provider.name, USUAL)
    if exchanged and entry.provider.name not in PROBES:
        hosts = [rule.host for rule in entry.provider.hosts if rule.host.startswith("api.")]
        return dataclasses.replace(probe, host=hosts[0] if hosts else None)
    return probe


async def _asked(
    entry: AccountEntry, credential: Credential, probe: Probe, ask: Http
) -> HttpResponse:
    """Send *probe* with *credential*. Raises HttpFailed, CannotSwap."""
    swap = entry.provider.swap(entry.account, credential)
    url = f"https://{_authority(entry, credential, probe)}{probe.path}"
    headers = {"user-agent": _USER_AGENT, "accept": "application/json", **probe.headers}
    if probe.body:
        headers["content-type"] = "application/json"
    fields = [(name.encode(), value.encode()) for name, value in headers.items()]
    request = http.Request.make(probe.method, url, probe.body, fields)
    masked = credential_swap.mask(request, entry.provider, str(entry.account.key))
    sent = credential_swap.outgoing(request, swap, masked)
    return await ask.ask(
        sent.method,
        sent.url,
        headers=dict(sent.headers.items()),
        content=sent.raw_content or None,
        timeout_s=_ASK_S,
    )


def _authority(entry: AccountEntry, credential: Credential, probe: Probe) -> str:
    """Return host and port to ask, unless the swap knows better."""
    named = entry.account.companions.get("host") or credential.companions.get("host")
    rule = next((rule for rule in entry.provider.hosts if not rule.subdomains), None)
    text = probe.host or named or (f"{rule.host}:{rule.port}" if rule else "")
    if not text:
        raise CannotSwap("it has no host to send a request to")
    origin = Origin.parse(text)
    host = f"[{origin.host}]" if ":" in origin.host else origin.host
    return host if origin.port == 443 else f"{host}:{origin.port}"


# -- the cheapest question each provider answers to a good credential
#
# A list of models where there is one: it costs nothing, and a bad key is refused.


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One question.

    Attributes:
        path: with its query.
        kind: of the credential it takes; None: the one there is.
        host: where it is asked; None: the account's host, else the provider's first.
    """

    path: str
    method: str = "GET"
    kind: str | None = None
    host: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


#: Of a service of the user's own: what most of them have.
USUAL = Probe(path="/v1/models")
_ANTHROPIC = {"anthropic-version": "2023-06-01"}

#: By built-in provider; the paths are those its own documents name.
PROBES: Mapping[str, Probe] = {
    "openai": Probe(path="/v1/models"),
    "anthropic": Probe(path="/v1/models", headers=_ANTHROPIC),
    "claude-code": Probe(path="/v1/models", headers=_ANTHROPIC),
    "codex": Probe(path="/backend-api/codex/models?client_version=1.0.0"),
    "gemini": Probe(path="/v1beta/models"),
    # Says what is left; there is no list of models.
    "gemini-cli": Probe(
        path="/v1internal:retrieveUserQuota", method="POST", body=b'{"project":""}'
    ),
    # What the account is; the exchange has been tried by then.
    "copilot": Probe(path="/copilot_internal/user", kind="github", host="api.github.com"),
    "azure": Probe(path="/openai/models?api-version=2024-10-21"),
    # /models asks for no key.
    "openrouter": Probe(path="/api/v1/key"),
    "groq": Probe(path="/openai/v1/models"),
    "mistral": Probe(path="/v1/models"),
    "xai": Probe(path="/v1/models"),
    "deepseek": Probe(path="/models"),
    "together": Probe(path="/v1/models"),
    "fireworks": Probe(path="/inference/v1/models"),
    "cohere": Probe(path="/v1/models"),
    "cerebras": Probe(path="/v1/models"),
    "perplexity": Probe(path="/v1/models"),
    "zai": Probe(path="/api/paas/v4/models"),
    "moonshot": USUAL,
    "kimi-code": Probe(path="/coding/v1/models"),
    "minimax": USUAL,
    "dashscope": Probe(path="/compatible-mode/v1/models"),
    "ark": Probe(path="/api/v3/models"),
    "opencode-zen": Probe(path="/zen/v1/models"),
    "ollama-cloud": USUAL,
    "siliconflow": USUAL,
    "wandb": USUAL,
    "github-models": Probe(path="/catalog/models"),
    "new-api": USUAL,
    "litellm": USUAL,
}


def verdict(outcome: Outcome) -> str:
    """Say of a credential what the answer to its probe means."""
    match outcome.cls:
        case OutcomeClass.OK:
            return WORKS
        case OutcomeClass.RATE_LIMIT | OutcomeClass.QUOTA:
            return LIMITED
        case OutcomeClass.AUTH_EXPIRED | OutcomeClass.AUTH_INVALID | OutcomeClass.FORBIDDEN_ACCOUNT:
            return REFUSED
        case _:
            # The server's trouble, or a service without this path.
            return UNCLEAR

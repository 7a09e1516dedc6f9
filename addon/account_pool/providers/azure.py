"""Azure OpenAI and AI Foundry: one host per resource, deployments of its own names.

https://learn.microsoft.com/azure/ai-services/openai/reference. A resource belongs to
somebody: only the hosts that accounts name are ours, and a key goes to its own resource
and nowhere else. Names of deployments are free text; `deployments` maps the one a client
asks for to that of the account. Assistants, fine-tuning and administration pass.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from urllib.parse import quote, unquote

import msgspec
from msgspec.structs import replace

from account_pool.core.account import Account
from account_pool.core.credential import Credential
from account_pool.core.json_values import NOT_READ
from account_pool.core.meaning import LazyPattern
from account_pool.core.outcome import Scope
from account_pool.core.signals import (
    ACCOUNT,
    FORBIDDEN_ACCOUNT,
    OVERLOADED,
    QUOTA,
    RATE_LIMIT,
    REQUEST_ERROR,
    Rule,
    SignalTable,
    rules,
)
from account_pool.providers import envelopes, openai, sessions
from account_pool.providers.base import (
    NO_STEP,
    CannotSwap,
    HostRule,
    LocalResponse,
    Origin,
    Provider,
    RequestHead,
    Route,
    Swap,
    body_model,
    is_websocket,
)
from account_pool.providers.common_signals import COMPATIBLE_RULES
from account_pool.providers.compatible import judge

# -- who serves a request

_OPERATION = (
    r"(?:audio/(?:speech|transcriptions|translations)|chat/completions|completions|embeddings"
    r"|images/(?:edits|generations)|responses|responses/compact)"
)
_DEPLOYMENT = LazyPattern(rf"/openai/deployments/(?P<name>[^/]+)/{_OPERATION}")
# The model stands in the body: the newer API, inference of models that are not OpenAI's,
# and Anthropic's Messages.
_IN_BODY = LazyPattern(
    rf"/openai(?:/v1)?/{_OPERATION}|/models/(?:chat/completions|(?:images/)?embeddings)"
    r"|/anthropic/v1/messages(?:/count_tokens)?"
)
_POOL_GET = LazyPattern(NO_STEP + r"/openai(?:/v1)?/models(?:/[^/]+)?")
STORED = openai.stored_below("/openai(?:/v1)?")


def route(head: RequestHead) -> Route:
    """Pool inference, the list of models, and what is stored; all else is the resource's."""
    if STORED.route(head) and not is_websocket(head):
        return Route.POOL
    if head.method == "POST":
        pooled = _DEPLOYMENT.fullmatch(head.path) or _IN_BODY.fullmatch(head.path)
    elif head.method == "GET" and not is_websocket(head):
        pooled = _POOL_GET.fullmatch(head.path)
    else:
        pooled = None
    return Route.POOL if pooled else Route.PASS


def model(head: RequestHead) -> str | None:
    """Return the deployment in the path, else the model of the body."""
    found = _DEPLOYMENT.fullmatch(head.path)
    return unquote(found["name"]) if found else body_model(head)


# -- the credential


def swap(account: Account, credential: Credential) -> Swap:
    """Put the key in `api-key`, or a token of Entra ID in `Authorization`.

    Whatever host the client asked for, the request goes to the account's own. Raises
    CannotSwap for an account without one.
    """
    companions = {**account.companions, **credential.companions}
    host = companions.get("host")
    if not host:
        raise CannotSwap(f"{account.key} has no host: write that of its resource")
    token = credential.secret.reveal()
    is_entra = _JWT.fullmatch(token) is not None
    bearer = (b"authorization", f"Bearer {token}".encode())
    # {name the client asks for: deployment of the account}
    deployments = json.loads(companions.get("deployments") or "{}")
    of_account = Swap(
        headers=(bearer if is_entra else (b"api-key", token.encode()),),
        drop=_CREDENTIAL_HEADERS,
        drop_query=_CREDENTIAL_QUERY,
        origin=Origin.parse(host),
    )
    in_path = replace(of_account, path=_path_of(deployments) if deployments else None)
    in_body = replace(of_account, body=_body_of(deployments) if deployments else None)
    messages = in_body if is_entra else replace(in_body, headers=((b"x-api-key", token.encode()),))
    # Apart, so that a file sent to a deployment can be streamed through unread.
    by_path = (("/openai/deployments/", in_path), ("/anthropic/", messages))
    return replace(in_body, by_path=by_path)


_JWT = LazyPattern(r"eyJ[\w-]+\.[\w-]+\.[\w-]*")
_CREDENTIAL_HEADERS = frozenset(
    {b"api-key", b"authorization", b"ocp-apim-subscription-key", b"x-api-key"}
)
_CREDENTIAL_QUERY = ("api-key", "subscription-key")


def _path_of(deployments: Mapping[str, str]) -> Callable[[str], str]:
    def path(client_path: str) -> str:
        found = _DEPLOYMENT.fullmatch(client_path)
        mapped = deployments.get(unquote(found["name"])) if found else None
        if found is None or mapped is None:
            return client_path
        start, end = found.span("name")
        return client_path[:start] + quote(mapped, safe="") + client_path[end:]

    return path


def _body_of(deployments: Mapping[str, str]) -> Callable[[str, bytes], bytes]:
    def body(path: str, client_body: bytes) -> bytes:
        """Change `model` and not a byte of the other members."""
        if not _IN_BODY.fullmatch(path):
            return client_body
        try:
            members = msgspec.json.decode(client_body, type=dict[str, msgspec.Raw])
            name = msgspec.json.decode(members.get("model", msgspec.Raw(b"null")))
        except NOT_READ:
            # A form with a file, or what the provider will refuse by itself.
            return client_body
        mapped = deployments.get(name) if isinstance(name, str) else None
        if mapped is None:
            return client_body
        members["model"] = msgspec.Raw(msgspec.json.encode(mapped))
        return msgspec.json.encode(members)

    return body


# -- what a response says. Limits belong to a deployment (subscription, region, model). API
# Management in front of it counts per subscription key: its rate is a 429, its quota a 403.

_GUIDES = "https://learn.microsoft.com/azure/ai-services/openai/how-to"
_QUOTA = f"{_GUIDES}/quota"
_GATEWAY = "https://learn.microsoft.com/azure/api-management/azure-openai-token-limit-policy"

_RULES = rules(
    _GATEWAY,
    Rule("no capacity", OVERLOADED, status={0, 408, 429, 503},
        phrase=r"\bexperiencing high demand\b|\bpeak load\b"
        r"|\btemporarily unable to process your request\b",
        source="https://learn.microsoft.com/azure/foundry/openai/how-to/troubleshoot-errors"),
    Rule("no capacity", OVERLOADED, words={"no_capacity"},
        source=f"{_GUIDES}/provisioned-get-started"),
    Rule("the quota of the gateway", QUOTA, status={403, 429},
        phrase=r"\bquota (?:is |has been |was )?exceeded\b|\bout of call volume quota\b"),
    # The gateway's own envelope; in Azure's the sentence is about a deployment.
    Rule("the rate of the gateway", RATE_LIMIT, ACCOUNT, status={429},
        phrase=r"^(?:rate|token) limit is exceeded\b",
        when=lambda facts: "statusCode" in facts.error),
    Rule("the limit of the deployment", RATE_LIMIT, status={0, 429},
        phrase=r"\bhave exceeded\b.*\brate limit\b|\brate limit\b.*\bexceeded\b"
        r"|\brequests to\b.*\bhave been limited\b", source=_QUOTA),
    # A 401 as well: the identity is known, its role is missing.
    Rule("no permission on this resource", FORBIDDEN_ACCOUNT,
        words={"permission_denied", "authorization_failed"},
        source=f"{_GUIDES}/role-based-access-control"),
    Rule("no such deployment at this resource", REQUEST_ERROR, status={400, 404},
        words={"deployment_not_found", "unknown_model"}, missing_model=True,
        source="Azure 404, recorded"),
    *COMPATIBLE_RULES,
    # The code of a limit is its number.
    Rule("the limit of the deployment", RATE_LIMIT, status={0, 429},
        words={"429", "rate_limit_reached", "too_many_requests"}, source=_QUOTA),
)  # fmt: skip

SIGNALS = SignalTable(rules=_RULES, judge=judge, rate_scope=Scope.MODEL)

# -- refusals of our own


_CODES = {402: "insufficient_quota", 404: "DeploymentNotFound"}


def refusal(status: int, message: str, wait_s: float | None) -> LocalResponse:
    """`{"error": {code, message}}`; the code of most statuses is their number."""
    error = {"code": _CODES.get(status, str(status)), "message": message}
    # Out of credit is a 429 here as well: the code distinguishes it from a limit.
    return envelopes.sdk_response(429 if status == 402 else status, wait_s, {"error": error})


PROVIDER = Provider(
    name="azure",
    # Where a resource can be; ours are those that accounts name (`host_per_account`).
    hosts=tuple(
        HostRule(suffix, subdomains=True)
        for suffix in ("openai.azure.com", "services.ai.azure.com", "cognitiveservices.azure.com")
    ),
    env=(),
    route=route,
    model=model,
    credential_headers=_CREDENTIAL_HEADERS,
    credential_query=_CREDENTIAL_QUERY,
    conversation=partial(sessions.conversation, stored=STORED),
    created_ids=partial(sessions.ids_in_response, stored=STORED),
    swap=swap,
    judge=judge,
    classify=SIGNALS.classify,
    signals=SIGNALS,
    refusal=refusal,
    delay=envelopes.sdk_delay,
    delay_headers=envelopes.SDK_DELAY_HEADERS,
    delay_body=envelopes.delay_sentence,
    host_per_account=True,
    companions=frozenset({"host", "deployments"}),
)

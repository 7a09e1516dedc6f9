"""The cheapest question each provider answers to a good credential. Pure.

A list of models where there is one: it costs nothing, and a bad key is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from account_pool.core.outcome import Outcome, OutcomeClass


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
    # /models answers anybody.
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

WORKS, LIMITED, REFUSED, UNCLEAR = "works", "limited", "refused", "unclear"


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

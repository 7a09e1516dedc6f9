"""What Azure OpenAI says when it refuses, and API Management in front of it.

Limits belong to a deployment (subscription, region, model):
https://learn.microsoft.com/azure/ai-services/openai/how-to/quota. A gateway counts per
subscription key: its rate is a 429, its quota a 403
(https://learn.microsoft.com/azure/api-management/azure-openai-token-limit-policy).
"""

from __future__ import annotations

from account_pool.core.signals import (
    ACCOUNT,
    FORBIDDEN_ACCOUNT,
    OVERLOADED,
    QUOTA,
    RATE_LIMIT,
    REQUEST_ERROR,
    Rule,
    rules,
)
from account_pool.providers.compatible_signals import COMPATIBLE_RULES

_GUIDES = "https://learn.microsoft.com/azure/ai-services/openai/how-to"
_QUOTA = f"{_GUIDES}/quota"
_GATEWAY = "https://learn.microsoft.com/azure/api-management/azure-openai-token-limit-policy"

RULES = rules(
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

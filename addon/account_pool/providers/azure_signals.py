"""What Azure OpenAI says when it refuses, and API Management in front of it.

Limits belong to a deployment (subscription, region, model):
https://learn.microsoft.com/azure/ai-services/openai/how-to/quota. A gateway counts per
subscription key: its rate is a 429, its quota a 403
(https://learn.microsoft.com/azure/api-management/azure-openai-token-limit-policy).
"""

from __future__ import annotations

import re

from account_pool.core.outcome import OutcomeClass, Scope
from account_pool.core.signals import Rule
from account_pool.providers.compatible_signals import COMPATIBLE_RULES

_I = re.IGNORECASE
_QUOTA = "https://learn.microsoft.com/azure/ai-services/openai/how-to/quota"
_GATEWAY = "https://learn.microsoft.com/azure/api-management/azure-openai-token-limit-policy"

RULES: tuple[Rule, ...] = (
    Rule(
        why="no capacity",
        cls=OutcomeClass.OVERLOADED,
        status=frozenset({0, 408, 429, 503}),
        phrase=re.compile(
            r"\bexperiencing high demand\b|\bpeak load\b"
            r"|\btemporarily unable to process your request\b",
            _I,
        ),
        source="https://learn.microsoft.com/azure/foundry/openai/how-to/troubleshoot-errors",
    ),
    Rule(
        why="no capacity",
        cls=OutcomeClass.OVERLOADED,
        words=frozenset({"no_capacity"}),
        source="https://learn.microsoft.com/azure/ai-services/openai/how-to/provisioned-get-started",
    ),
    Rule(
        why="the quota of the gateway",
        cls=OutcomeClass.QUOTA,
        scope=Scope.ACCOUNT,
        status=frozenset({403, 429}),
        phrase=re.compile(
            r"\bquota (?:is |has been |was )?exceeded\b|\bout of call volume quota\b", _I
        ),
        source=_GATEWAY,
    ),
    Rule(
        why="the rate of the gateway",
        cls=OutcomeClass.RATE_LIMIT,
        scope=Scope.ACCOUNT,
        status=frozenset({429}),
        phrase=re.compile(r"^(?:rate|token) limit is exceeded\b", _I),
        # The gateway's own envelope; in Azure's the sentence is about a deployment.
        when=lambda facts: "statusCode" in facts.error,
        source=_GATEWAY,
    ),
    Rule(
        why="the limit of the deployment",
        cls=OutcomeClass.RATE_LIMIT,
        status=frozenset({0, 429}),
        phrase=re.compile(
            r"\bhave exceeded\b.*\brate limit\b|\brate limit\b.*\bexceeded\b"
            r"|\brequests to\b.*\bhave been limited\b",
            _I,
        ),
        source=_QUOTA,
    ),
    Rule(
        why="no permission on this resource",
        cls=OutcomeClass.FORBIDDEN_ACCOUNT,
        # A 401 as well: the identity is known, its role is missing.
        words=frozenset({"permission_denied", "authorization_failed"}),
        source="https://learn.microsoft.com/azure/ai-services/openai/how-to/role-based-access-control",
    ),
    Rule(
        why="no such deployment at this resource",
        cls=OutcomeClass.REQUEST_ERROR,
        status=frozenset({400, 404}),
        words=frozenset({"deployment_not_found", "unknown_model"}),
        missing_model=True,
        source="Azure 404, recorded",
    ),
    *COMPATIBLE_RULES,
    Rule(
        why="the limit of the deployment",
        cls=OutcomeClass.RATE_LIMIT,
        # The code of a limit is its number.
        status=frozenset({0, 429}),
        words=frozenset({"429", "rate_limit_reached", "too_many_requests"}),
        source=_QUOTA,
    ),
)

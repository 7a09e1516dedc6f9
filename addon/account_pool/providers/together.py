"""Together keys: api.together.xyz and api.together.ai, one service.

https://docs.together.ai/reference. Files, fine-tunings, batches, evaluations, endpoints
and code sessions belong to the account and pass.
"""

from __future__ import annotations

from account_pool.providers.compatible import CHAT, compatible
from account_pool.providers.together_signals import RULES

PROVIDER = compatible(
    "together",
    hosts=("api.together.xyz", "api.together.ai"),
    env=("TOGETHER_API_KEY", "TOGETHERAI_API_KEY"),
    posts=(
        *CHAT,
        "/audio/speech",
        "/audio/transcriptions",
        "/audio/translations",
        "/images/generations",
        "/rerank",
    ),
    rules=RULES,
)

"""Groq keys: api.groq.com/openai/v1.

https://console.groq.com/docs/api-reference. Limits belong to the organisation and the
model. Fine-tunings belong to it as well and pass.
"""

from __future__ import annotations

from account_pool.core.outcome import Scope
from account_pool.providers.compatible import CHAT, compatible
from account_pool.providers.groq_signals import RULES
from account_pool.providers.openai_signals import organisation
from account_pool.providers.things import Things

PROVIDER = compatible(
    "groq",
    hosts=("api.groq.com",),
    env=("GROQ_API_KEY",),
    prefixes=("/openai/v1",),
    posts=(*CHAT, "/responses", "/audio/speech", "/audio/transcriptions", "/audio/translations"),
    rules=RULES,
    rate_scope=Scope.MODEL,
    kept=Things.of("/openai/v1", together=("batches", "files")),
    shared=True,
    owner=organisation,
)

"""DeepSeek keys: api.deepseek.com, with and without `/v1`.

https://api-docs.deepseek.com. It sends no limit headers, and comments or empty lines
while it waits for capacity. Its codes are noise (`invalid_request_error` beside an empty
balance): status and sentence count. The balance of the account passes.
"""

from __future__ import annotations

from account_pool.providers.compatible import CHAT, compatible

PROVIDER = compatible(
    "deepseek",
    hosts=("api.deepseek.com",),
    env=("DEEPSEEK_API_KEY",),
    # `/beta`: completions in the middle; `/anthropic`: Anthropic's Messages.
    prefixes=("", "/v1", "/beta", "/beta/v1", "/anthropic/v1", "/anthropic"),
    posts=(*CHAT, "/messages"),
)

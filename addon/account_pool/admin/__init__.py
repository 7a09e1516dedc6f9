"""REST, dashboard and metrics, hosted inside the proxy; docs/code.md says what is in which file.

Requests arrive through `proxy/admin_exchange.py`. The handlers are imported with the first of
them: a proxy that gets none starts without them.
"""

"""REST, dashboard and metrics, hosted inside the proxy.

Reading order: `request` (a request to the proxy itself), `security` (who may send it),
`token` (the administrator's secret), `server` (from a request to its response), `app`
(the routes), `context` (what handlers read), `endpoints` (the handlers), `views` (the pool
as JSON), `actions` (what changes it), `accounts_files` (where added accounts are written),
`metrics`, `openapi` (the description of the API), `page` (the dashboard).

Requests arrive through `proxy/admin_exchange.py`. The handlers are imported with the first of
them: a proxy that gets none starts without them.
"""

"""REST, dashboard and metrics, hosted inside the proxy.

Reading order: `http` (a request to the proxy itself), `auth` (who may send it), `server`
(from a request to its response), `app` (the routes, the dashboard as a page), `routes` (the
handlers), `models` (what may be sent), `views` (the pool as JSON), `actions` (what changes it),
`metrics`, `openapi` (the description of the API, what is answered).

Requests arrive through `proxy/admin_exchange.py`. The handlers are imported with the first of
them: a proxy that gets none starts without them.
"""

"""REST, dashboard and metrics, hosted inside the proxy.

Reading order: `visit` (a request to the proxy itself), `security` (who may ask what),
`token` (the secret of the administrator), `office` (a visit, from the door to its
answer), `app` (which address does what), `views` (the pool as JSON), `actions` (what
changes it), `accounts_files` (where accounts are written down), `metrics`, `openapi`
(the description of all this), `page` (the dashboard).

How requests come here is `proxy/visits.py`. What answers them is imported with the first
of them: without visitors the proxy starts without it.
"""

"""A mitmproxy script: `GET http://pool.test/` through the proxy answers `pool.status`."""

from __future__ import annotations

from mitmproxy import ctx, http

HOST = "pool.test"


def request(flow: http.HTTPFlow) -> None:
    if flow.request.host == HOST:
        text = "\n".join(ctx.master.commands.call("pool.status"))
        flow.response = http.Response.make(200, text, {"content-type": "text/plain"})

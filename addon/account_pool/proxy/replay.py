"""A flow replayed from mitmweb or mitmproxy takes a lease like any other request.

Replay builds a plain HTTP layer without asking for ours, and a credential never goes
onto a flow. So the request is sent once more through this proxy's own port, where it
arrives as the request of a client of this machine.
"""

from __future__ import annotations

import logging
from pathlib import Path

from mitmproxy import ctx, http

from account_pool.proxy import delivery, destination
from account_pool.proxy.service import Service

logger = logging.getLogger(__name__)

#: Headers of one connection, which the second way through the proxy sets anew.
_HOP_BY_HOP = {"connection", "proxy-connection", "transfer-encoding", "content-length", "host"}
#: Longest time without a byte of the answer, in seconds.
READ_TIMEOUT_S = 600.0


async def answer(flow: http.HTTPFlow, service: Service) -> None:
    """Set the response of a replayed *flow* if its host is the pool's."""
    request = flow.request
    target = destination.of_request(request.pretty_host, request.port, request.scheme)
    providers = service.hosts.find(target.name, target.port)
    if not providers:
        return
    port = _own_port()
    if port is None:
        message = "replaying a pool request needs the proxy's own port; start it without -n"
        flow.response = delivery.local(providers[0].refusal(503, message, None))
        return
    try:
        flow.response = await _through(port, request)
    except Exception as e:
        # Whatever went wrong: without a response mitmproxy would send the placeholder.
        logger.warning(f"{providers[0].name}: the replay failed ({type(e).__name__})")
        message = "the replay did not get through the proxy; see its log"
        flow.response = delivery.local(providers[0].refusal(502, message, None))


def _own_port() -> int | None:
    server = ctx.master.addons.get("proxyserver")
    for address in server.listen_addrs() if server else ():
        if destination.is_loopback(address[0]) or address[0] in ("0.0.0.0", "::"):  # noqa: S104
            return int(address[1])
    return None


def _own_authority() -> str:
    return str(Path(ctx.options.confdir).expanduser() / "mitmproxy-ca-cert.pem")


async def _through(port: int, request: http.Request) -> http.Response:
    import ssl  # noqa: PLC0415 - as above

    import httpx  # noqa: PLC0415 - replays are rare, the import is slow

    verify = ssl.create_default_context(cafile=_own_authority())
    transport = httpx.AsyncHTTPTransport(
        verify=verify, trust_env=False, proxy=httpx.Proxy(f"http://127.0.0.1:{port}")
    )
    headers = [
        (name, value)
        for name, value in request.headers.items(multi=True)
        if name.lower() not in _HOP_BY_HOP
    ]
    async with (
        httpx.AsyncClient(transport=transport, timeout=READ_TIMEOUT_S) as client,
        client.stream(
            request.method, request.pretty_url, headers=headers, content=request.raw_content
        ) as response,
    ):
        body = b"".join([chunk async for chunk in response.aiter_raw()])
    replayed = http.Response.make(response.status_code, b"", tuple(response.headers.raw))
    replayed.headers.pop("transfer-encoding", None)
    replayed.raw_content = body
    return replayed

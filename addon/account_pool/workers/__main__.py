"""A worker process: mitmdump, for which the launcher listens. Takes mitmdump's arguments."""

from __future__ import annotations

import json
import os
import sys
from asyncio.base_events import BaseEventLoop
from contextlib import suppress
from typing import Any

from mitmproxy.proxy import mode_servers
from mitmproxy.tools.main import mitmdump

from account_pool.workers import worker
from account_pool.workers.worker import VARIABLE, Factory, Link, Listening


def main() -> None:
    """Be a worker: mitmdump with the arguments of this process."""
    # mitmproxy loads the addon by its path, and passes it nothing.
    worker.LINK = link = Link(json.loads(os.environ.pop(VARIABLE)))
    former = BaseEventLoop.create_server

    async def create_server(
        loop: BaseEventLoop, factory: Factory, host: Any = None, port: Any = None, **how: Any
    ) -> Any:
        if how.get("sock") is not None or port is None:
            return await former(loop, factory, host, port, **how)
        return await link.listen(factory, host, port, how.get("backlog", 100))

    BaseEventLoop.create_server = create_server  # type: ignore[assignment,method-assign]
    if link.number > 1:
        _leave_udp_to_the_first()
    sys.argv[0] = "mitmdump"
    with suppress(BrokenPipeError):
        sys.exit(mitmdump())


def _leave_udp_to_the_first() -> None:
    """A reverse proxy for HTTPS listens for HTTP/3 as well, which one process alone can."""

    async def start_udp_server(*_how: object) -> Listening:
        return Listening([], lambda: None)

    mode_servers.mitmproxy_rs.udp.start_udp_server = start_udp_server  # type: ignore[assignment]


if __name__ == "__main__":
    main()

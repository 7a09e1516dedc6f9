"""This proxy as one of several workers of a launcher (`workers/`); nothing where it is alone."""

from __future__ import annotations

import asyncio
import math
import signal

from mitmproxy.exceptions import OptionsError
from mitmproxy.options import Options
from mitmproxy.proxy.mode_specs import ProxyMode

from account_pool.proxy.draining import Drain
from account_pool.proxy.persistence import Persistence
from account_pool.proxy.service import Service
from account_pool.proxy.wiring import Wiring
from account_pool.store.pool_state import IN_MEMORY
from account_pool.workers import worker
from account_pool.workers.channel import Message
from account_pool.workers.worker import Link

#: Options of mitmproxy by which one process alone writes or sends something.
_ALONE = ("save_stream_file", "hardump", "rfile", "client_replay")
#: Modes of mitmproxy in which it accepts connections by itself.
_SHARED = ("regular", "upstream", "reverse", "socks5", "transparent")


class Siblings:
    """What the addon does as a worker, and what its siblings want of it.

    Attributes:
        link: the launcher; None where this is no worker.
        count: how many workers there are, this one too.
        is_first: this is the one that acts where one of them has to.
    """

    def __init__(self, service: Service) -> None:
        self.link: Link | None = worker.LINK
        self.count = 1 if self.link is None else self.link.count
        self.is_first = self.link is None or self.link.number == 1
        self._service = service
        self._wiring: Wiring | None = None

    def check(self, options: Options, *, state: str) -> None:
        """Raise OptionsError where several workers cannot do what *options* (mitmproxy's) say.

        *state* is `pool_state`.
        """
        if self.link is None:
            return
        wrong = [
            f"{name} is for a single process" for name in _ALONE if getattr(options, name, None)
        ]
        wrong += [
            f"mode {mode.full_spec} cannot be shared"
            for mode in map(ProxyMode.parse, options.mode)
            if mode.type_name not in _SHARED or mode.transport_protocol == "udp"
        ]
        if state == IN_MEMORY:
            wrong.append("they share a file; set pool_state to a path")
        if wrong:
            raise OptionsError("\n".join(f"--workers: {what}" for what in wrong))

    def begin(self, drain: Drain, wiring: Wiring) -> None:
        """Let the launcher end this proxy by *drain*, and the others share what *wiring* learns.

        Needs the running loop.
        """
        if (link := self.link) is None:
            return

        def end(at_once: bool) -> None:
            link.stopping()
            drain.begin()
            if at_once:
                drain.shutdown()

        link.end = end
        link.heard = self._heard
        self._wiring = wiring
        if wiring.persistence is not None:
            self._share(wiring.persistence)
        wiring.on_persistence = self._share
        # To end all processes of a service, some send it to each: that is asking once.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, end, False)

    def ready(self) -> None:
        """Take connections."""
        if self.link is not None:
            self.link.ready(self._service.settings.drain_s, _descriptors())

    def settings_changed(self) -> None:
        """Note that options have changed."""
        if self.link is not None:
            self.link.note_drain(self._service.settings.drain_s)

    def connection_closed(self) -> None:
        """A client's connection has ended."""
        if self.link is not None:
            self.link.closed()

    def _share(self, persistence: Persistence) -> None:
        """Let the others know at once what *persistence* learns."""
        link = self.link
        assert link is not None
        persistence.announce = lambda: link.tell({"do": "look"})
        persistence.pending.push = lambda tables: link.tell({"do": "rows", "tables": tables})

    def _heard(self, message: Message) -> None:
        """Take note of what another worker, or the launcher, says."""
        persistence = self._wiring.persistence if self._wiring is not None else None
        if persistence is None:
            return
        match message["do"]:
            case "look":
                persistence.look()
            case "died":
                persistence.look(died=True)
            case "rows":
                persistence.pending.adopt(
                    {name: [(*row,) for row in rows] for name, rows in message["tables"].items()}
                )


def _descriptors() -> float:
    """Return how many files this process may have open."""
    import resource  # noqa: PLC0415 - there are workers where there is this

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return math.inf if soft == resource.RLIM_INFINITY else soft

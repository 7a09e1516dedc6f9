"""No request waits for one of five connections to be free.

mitmproxy opens at most five connections to one address for each client, and lets the next
request wait until one of the five has ended. That may be never: an HTTP/2 connection that
takes no new requests stays one of them as long as an answer goes on there, and where the
provider speaks HTTP/1 only, each answer has a connection of its own. What waits so holds
the lease of its account, and its account looks silent.

How many requests there are at once is for `max_concurrent` to say, and for the client: over
HTTP/2 it may have 100. Stands on a private part of mitmproxy; where that is not as it was
known, `proxy.sweep` gives up waiting for a connection after a minute.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import nullcontext

_NAME = "max_conns"


def lift(handler: object) -> bool:
    """Let *handler*, of one client, open as many connections as there are requests.

    Returns whether that is done; where mitmproxy has no such bound, nothing is changed.
    """
    bounds = getattr(handler, _NAME, None)
    if type(bounds) is not defaultdict or bounds:
        return False
    setattr(handler, _NAME, defaultdict(nullcontext))
    return True

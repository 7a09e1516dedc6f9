"""The mitmproxy shell: translates between mitmproxy and the core, decides nothing.

Reading order: `addon` (what mitmproxy calls), `options`, `service` (what all requests
share), `interception` (which connections are ours), then one request: `destination`,
`call`, `stream` (the HTTP layer that replays), `answer` (how far an answer is read),
`wire` (the copy that is sent).
"""

import logging

from mitmproxy.version import VERSION

#: Much of this stands on parts of mitmproxy that have no promise of stability.
_KNOWN = ("11.", "12.")

if not VERSION.startswith(_KNOWN):
    logging.getLogger(__name__).warning(
        f"account-pool: mitmproxy {VERSION} is untested; 11.0.2 to 12.x are supported"
    )

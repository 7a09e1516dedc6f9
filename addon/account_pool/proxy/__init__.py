"""The mitmproxy shell: translates between mitmproxy and the core, decides nothing.

Reading order: `addon` (what mitmproxy calls), `options`, `service` (what all requests
share), `next_layer` (which connections are ours), then one request: `pooled_request` (whose
it is, and where it goes), `stream`, `pooled_exchange` with `refused_attempts`,
`response_reader` (how far a response is read), `credential_swap` (the copy that is sent).
"""

import logging

from mitmproxy.version import VERSION

#: Much of this stands on parts of mitmproxy that have no promise of stability.
_KNOWN = ("11.", "12.")

if not VERSION.startswith(_KNOWN):
    logging.getLogger(__name__).warning(
        f"account-pool: mitmproxy {VERSION} is untested; 11.0.2 to 12.x are supported"
    )

"""Why a request did not reach its provider, in mitmproxy's words, fit to be told.

To the client, the log and the decision alike. A proxy on the way chooses its reason phrase,
and may repeat the password it was given there.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable

from mitmproxy.options import Options

from account_pool.core.broken import remedy
from account_pool.core.decisions import one_line
from account_pool.proxy import redaction
from account_pool.proxy.redaction import Secrets

#: What Python and OpenSSL write in brackets and quotes, as people write it.
_PLAIN = (
    (re.compile(r"OpenSSL Error\(\[.*'([^']+)'\)\]\)"), r"TLS: \1"),
    (re.compile(r"\('([^'\s]+)', (\d+)(?:, \d+, \d+)?\)"), r"(\1 port \2)"),
)


def told(message: str, secrets: Secrets) -> str:
    """Return *message* of mitmproxy without *secrets* and quotes, in one line."""
    text = redaction.body(message.encode("utf-8", "replace"), secrets).decode("utf-8", "replace")
    for pattern, plain in _PLAIN:
        text = pattern.sub(plain, text)
    return one_line(redaction.without_quotes(text).rstrip(". "))


def unconnected(host: str, message: str, secrets: Secrets) -> str:
    """Say that there is no connection to *host*, why, and what helps."""
    reason = f"no connection to {one_line(host)}: {told(message, secrets)}"
    return "; ".join(filter(None, (reason, remedy(message))))


def secrets_of(options: Options, sent: Iterable[str] = ()) -> Secrets:
    """Return what must not be told: credentials that were *sent*, and the user's own for a proxy.

    Args:
        options: mitmproxy's; `upstream_auth` is user and password.
    """
    auth = getattr(options, "upstream_auth", None) or ""
    password = auth.partition(":")[2]
    encoded = base64.b64encode(auth.encode("utf-8", "surrogateescape")).decode()
    return redaction.secrets_of([*sent, auth, password, encoded])

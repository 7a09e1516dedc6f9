"""Takes credentials out of what a provider sends back, and out of what is said of it.

How they are found in bytes is in `core/credential.py`. A proxy on the way chooses its reason
phrase, and may repeat the password it was given there.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable

from mitmproxy import http
from mitmproxy.options import Options

from account_pool.core.credential import Secret, Secrets, mask, mask_fields, secrets_of
from account_pool.core.decisions import one_line
from account_pool.core.meaning import LazyPattern
from account_pool.core.steps import remedy

#: Where a text begins to quote, in the way of `repr`; the apostrophe in a word is none.
_QUOTE = LazyPattern(r"(?<!\w)b?[\"']")


def headers(response: http.Response, secrets: Secrets) -> None:
    """Mask every credential around the body of *response*: headers, trailers, reason."""
    fields(response.headers, secrets)
    if response.trailers is not None:
        fields(response.trailers, secrets)
    response.data.reason = mask(response.data.reason, secrets)


def fields(of: http.Headers, secrets: Secrets) -> None:
    """Mask every credential in the values of *of*."""
    masked = mask_fields(of.fields, secrets)
    if masked is not of.fields:
        of.fields = masked


def without_quotes(text: str) -> str:
    """Return *text* up to where it quotes something.

    mitmproxy's parsers quote the line they cannot read, with the credential that is in it.
    """
    quote_begins = _QUOTE.search(text)
    return text if quote_begins is None else f"{text[: quote_begins.start()]}[not shown]"


class Redactor:
    """Masks credentials in a body that streams; the length stays the same.

    What may be the beginning of a credential is
    held back until the next chunk shows, so a split one is found as well. Total: it
    returns every byte it was given. Never an empty piece: to a client that gets chunks,
    mitmproxy would write that as the last one.
    """

    def __init__(self, secrets: Secrets) -> None:
        self._secrets = secrets
        self._keep = max((len(secret) for secret in secrets), default=1) - 1
        self._held = b""

    def __call__(self, data: bytes) -> list[bytes]:
        masked = mask(self._held + data, self._secrets)
        if not data:  # the end
            self._held = b""
            return [masked] if masked else []
        cut = len(masked) - self._tail(masked)
        self._held = masked[cut:]
        return [masked[:cut]] if cut else []

    def _tail(self, data: bytes) -> int:
        """Return how many bytes at the end of *data* may begin a credential."""
        for length in range(min(self._keep, len(data)), 0, -1):
            end = data[-length:]
            if any(secret.startswith(end) for secret in self._secrets):
                return length
        return 0


#: What Python and OpenSSL write in brackets and quotes, as people write it.
_PLAIN = (
    (LazyPattern(r"OpenSSL Error\(\[.*'([^']+)'\)\]\)"), r"TLS: \1"),
    (LazyPattern(r"\('([^'\s]+)', (\d+)(?:, \d+, \d+)?\)"), r"(\1 port \2)"),
)


def reason_of(message: str, secrets: Secrets) -> str:
    """Return *message* of mitmproxy without *secrets* and quotes, in one line."""
    text = mask(message.encode("utf-8", "replace"), secrets).decode("utf-8", "replace")
    for pattern, plain in _PLAIN:
        text = pattern.sub(plain, text)
    return one_line(without_quotes(text).rstrip(". "))


def unconnected(host: str, message: str, secrets: Secrets) -> str:
    """Say that there is no connection to *host*, why, and what helps."""
    reason = f"no connection to {one_line(host)}: {reason_of(message, secrets)}"
    return "; ".join(filter(None, (reason, remedy(message))))


def secrets_and_passwords(options: Options, sent: Iterable[Secret] = ()) -> Secrets:
    """Return what must not be told: credentials that were *sent*, and the user's own for a proxy.

    Args:
        options: mitmproxy's; `upstream_auth` is user and password.
    """
    auth = getattr(options, "upstream_auth", None) or ""
    password = auth.partition(":")[2]
    encoded = base64.b64encode(auth.encode("utf-8", "surrogateescape")).decode()
    return secrets_of([auth, password, encoded]).union(*[secret.forms() for secret in sent])

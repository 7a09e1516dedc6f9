"""The responses a client gets when no account could serve: the provider's own, corrected.

Honest: status, envelope and text stay the provider's. Two things change: the wait, set
to the soonest return in the pool in every spelling the vendor's clients read, and any
echo of a credential, masked.
"""

from __future__ import annotations

from mitmproxy import http

from account_pool.core.credential import Secrets, mask
from account_pool.providers.base import LocalResponse, Provider
from account_pool.providers.envelopes import SHOULD_RETRY
from account_pool.proxy import redaction
from account_pool.proxy.response_reader import ResponseReader, StoredRefusal


def corrected(
    reader: ResponseReader,
    provider: Provider,
    wait_s: float | None,
    secrets: Secrets,
    wall_now: float,
) -> http.Response:
    """Return the refusal that *reader* holds, ready for the client.

    Args:
        wait_s: seconds until an account returns; None leaves the provider's own wait.
        secrets: credentials that must not be echoed.
        wall_now: seconds since the epoch, for waits that are told as moments.
    """
    response = reader.response
    redaction.headers(response, secrets)
    if not (reader.complete or reader.in_stream):
        broken = "broke off" if reader.broken else "is too long, or comes too slowly"
        return _in_its_place(response, provider, f"the provider's answer {broken}", wait_s)
    try:
        text = changed = reader.plain()
    except ValueError:
        if not reader.is_left_alone:
            # It cannot be searched for an echo of the credential.
            message = "the provider's answer has an encoding that the account pool cannot read"
            return _in_its_place(response, provider, message, wait_s)
        if wait_s is not None:
            set_wait(response, provider, wait_s, wall_now)
        _set_body(response, reader, b"", b"")
        return response
    if wait_s is not None and not reader.in_stream:
        # A stream that ended with an error is told as it came: its clients know that.
        set_wait(response, provider, wait_s, wall_now)
        plain = text.decode("utf-8", "surrogateescape")
        changed = provider.delay_body(plain, wait_s, wall_now).encode("utf-8", "surrogateescape")
    _set_body(response, reader, text, mask(changed, secrets))
    return response


def _in_its_place(
    response: http.Response, provider: Provider, message: str, wait_s: float | None
) -> http.Response:
    """Return *response* with a body of our own, for one that cannot be handed on."""
    ours = local(provider.refusal(response.status_code, message, wait_s))
    for name in ("content-encoding", "transfer-encoding", "content-length", "content-md5"):
        response.headers.pop(name, None)
    for name in ours.headers:
        response.headers[name] = ours.headers[name]
    response.trailers = None
    response.content = ours.content  # sets content-length
    return response


def as_refused(reader: ResponseReader, secrets: Secrets) -> http.Response:
    """Return the refusal that *reader* holds as it came, for people to look at.

    Without its body where that cannot be searched for an echo of the credential.
    """
    response = reader.response.copy()
    redaction.headers(response, secrets)
    try:
        text = reader.plain()
    except ValueError:
        response.data.content = None
    else:
        _set_body(response, reader, text, mask(text, secrets))
    return response


def repeated(
    stored: StoredRefusal, provider: Provider, wait_s: float | None, wall_now: float
) -> http.Response:
    """Return the last refusal of an account again, with the wait that holds now."""
    response = http.Response.make(stored.status, b"", stored.headers)
    for name in ("content-encoding", "transfer-encoding", "date"):
        response.headers.pop(name, None)
    text = stored.body.decode("utf-8", "replace")
    if wait_s is not None:
        set_wait(response, provider, wait_s, wall_now)
        text = provider.delay_body(text, wait_s, wall_now)
    response.content = text.encode()
    return response


def set_should_retry(response: http.Response, provider: Provider, *, again: bool) -> None:
    """Say whether the client should try again, where the vendor's clients obey that."""
    if SHOULD_RETRY in provider.delay_headers:
        response.headers[SHOULD_RETRY] = "true" if again else "false"


def local(answer: LocalResponse) -> http.Response:
    """Return a response of our own."""
    return http.Response.make(
        answer.status,
        answer.body,
        tuple((name.encode(), value.encode()) for name, value in answer.headers),
    )


def _set_body(response: http.Response, reader: ResponseReader, text: bytes, changed: bytes) -> None:
    """Give *response* the body of *reader*, whose *text* has become *changed*."""
    if changed != text or (reader.encoding and not reader.complete):
        response.headers.pop("content-encoding", None)
        response.content = changed  # sets content-length
        return
    response.data.content = b"".join(reader.held)
    if "content-length" in response.headers:
        response.headers["content-length"] = str(len(response.data.content))


def set_wait(response: http.Response, provider: Provider, wait_s: float, wall_now: float) -> None:
    """Let *response* name the wait that holds for the pool, in its headers."""
    for name in provider.delay_headers:
        response.headers.pop(name, None)
    for name, value in provider.delay(wait_s):
        response.headers[name] = value
    for name, value_at in provider.instants.items():
        if name in response.headers:
            response.headers[name] = value_at(wall_now + wait_s)

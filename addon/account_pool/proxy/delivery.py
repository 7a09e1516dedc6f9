"""The answers a client gets when no account could serve: the provider's own, corrected.

Honest: status, envelope and text stay the provider's. Two things change: the wait, set
to the soonest return in the pool in every spelling the vendor's clients read, and any
echo of a credential, replaced by the name of its account.
"""

from __future__ import annotations

from collections.abc import Iterable

from mitmproxy import http

from account_pool.providers.base import LocalAnswer, Provider
from account_pool.proxy.answer import AnswerReader
from account_pool.proxy.service import StoredRefusal
from account_pool.proxy.wire import PLACEHOLDER


def corrected(
    reader: AnswerReader,
    provider: Provider,
    wait_s: float | None,
    secrets: Iterable[tuple[str, str]],
) -> http.Response:
    """Return the refusal that *reader* holds, ready for the client.

    Args:
        wait_s: seconds until an account returns; None leaves the provider's own wait.
        secrets: pairs of (secret, name of its account).
    """
    response = reader.response
    response.data.content = b"".join(reader.held)
    if reader.in_stream:
        return response  # a stream that ended with an error: its clients know that
    text = reader.text()
    changed = _scrubbed(response, text, secrets)
    if wait_s is not None:
        _set_wait(response, provider, wait_s)
        changed = provider.delay_body(changed, wait_s)
    if changed != text:
        response.headers.pop("content-encoding", None)
        response.content = changed.encode()  # sets content-length
    elif "content-length" in response.headers:
        response.headers["content-length"] = str(len(response.data.content))
    return response


def repeated(
    stored: StoredRefusal,
    provider: Provider,
    wait_s: float | None,
    secrets: Iterable[tuple[str, str]],
) -> http.Response:
    """Return the last refusal of an account again, with the wait that holds now.

    Args: as `corrected`.
    """
    response = http.Response.make(stored.status, b"", stored.headers)
    for name in ("content-encoding", "transfer-encoding", "date"):
        response.headers.pop(name, None)
    text = _scrubbed(response, stored.body.decode("utf-8", "replace"), secrets)
    if wait_s is not None:
        _set_wait(response, provider, wait_s)
        text = provider.delay_body(text, wait_s)
    response.content = text.encode()
    return response


def local(answer: LocalAnswer) -> http.Response:
    """Return an answer of our own."""
    return http.Response.make(
        answer.status,
        answer.body,
        tuple((name.encode(), value.encode()) for name, value in answer.headers),
    )


def _set_wait(response: http.Response, provider: Provider, wait_s: float) -> None:
    for name in provider.delay_headers:
        response.headers.pop(name, None)
    for name, value in provider.delay(wait_s):
        response.headers[name] = value


def _scrubbed(response: http.Response, text: str, secrets: Iterable[tuple[str, str]]) -> str:
    """Return *text* without any of *secrets*, and take them out of the headers."""
    for secret, name in secrets:
        text = text.replace(secret, PLACEHOLDER + name)
        _scrub_headers(response, secret.encode(), (PLACEHOLDER + name).encode())
    return text


def _scrub_headers(response: http.Response, secret: bytes, placeholder: bytes) -> None:
    if any(secret in value for _, value in response.headers.fields):
        response.headers.fields = tuple(
            (name, value.replace(secret, placeholder)) for name, value in response.headers.fields
        )

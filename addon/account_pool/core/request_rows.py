"""A row about each client request that has ended: what it was, who served it, what it took.

A row holds nothing that a client or a provider wrote but a product's name (`request_labels`)
and that of a model: no prompt, no answer, no value of a header. A request leaves one `Ended`
behind, and `row_of` makes the row of it in the thread that writes it.
"""

from __future__ import annotations

from enum import StrEnum
from itertools import pairwise
from typing import NamedTuple

from account_pool.core.decisions import one_line, session_hash
from account_pool.core.instruments import Ended, Mark
from account_pool.core.outcome import OutcomeClass

COPILOT = "copilot"
#: The longest name of a model that is kept.
_MAX_MODEL = 128


class Status(StrEnum):
    """How a request ended."""

    #: it was answered, whole
    OK = "ok"
    #: its client got an error, the provider's or ours
    REFUSED = "refused"
    #: its client left, or its answer broke off
    ABORTED = "aborted"


class RequestRow(NamedTuple):
    """What is kept of a request. Times in seconds; `wall_at` since the epoch.

    Attributes:
        wall_at: when it was complete.
        provider, account: whose API; who served it, or refused it last, as `provider/label`.
        model: the model it asked for.
        endpoint: its path without ids (`/v1/responses/{id}`).
        tool: the product that asked.
        session: a hash that tells its conversation, as of decisions.
        http_status: of the response; 101 is the handshake of a WebSocket, of which each turn has a
            row of its own without a status.
        attempts, failovers: how often it was sent, and to another account than before.
        wait_s: how long it was held for an account or its credential.
        first_byte_s: from the complete request to the first byte of a good answer.
        duration_s: to its end.
        counted: 1 if usage counts it, else 0: what is only fetched, or was refused, is not.
        input_tokens ...: as in `usage.Usage`; None where the provider does not tell.
        cost_usd: at the price of that day; None where none is known.
        price: where the price is from ("accounts.yaml", "genai-prices 0.2.3"); "" where none is
            known or nothing is to be paid; None: it was not looked for yet.
        covered: 1 if a subscription has paid for it, so that `cost_usd` was saved; else 0.
        premium_requests: what it takes of Copilot's allowance; None elsewhere.
    """

    wall_at: float
    provider: str
    account: str | None
    model: str | None
    endpoint: str
    tool: str
    session: str | None
    status: str
    http_status: int | None
    attempts: int
    failovers: int
    wait_s: float
    first_byte_s: float | None
    duration_s: float
    counted: int
    input_tokens: int | None = None
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None
    cost_usd: float | None = None
    price: str | None = None
    covered: int = 0
    premium_requests: float | None = None


def row_of(ended: Ended) -> RequestRow:
    """Return the row about *ended*, without its cost."""
    # In the thread that writes the first row: its patterns take a while to compile.
    from account_pool.core.request_labels import endpoint_of, tool_name  # noqa: PLC0415

    facts, history, usage = ended.facts, ended.history, ended.usage
    model = ended.counted[2] if ended.counted else facts.model
    began_at = wait_s = 0.0
    first_byte_s = None
    for mark, value in ended.marks:
        if mark is Mark.BEGAN:
            began_at = value
        elif mark is Mark.WAITED:
            wait_s += value
        elif mark is Mark.HANDED_ON:
            first_byte_s = _seconds(value - began_at)
    duration_s = _seconds(ended.at - began_at)
    of_agent = facts.provider == COPILOT and facts.conversation.follow_up
    return RequestRow(
        wall_at=round(ended.wall_at - duration_s, 3),
        provider=facts.provider,
        account=str(history[-1].key) if history else None,
        model=_text(model) if model else None,
        endpoint=endpoint_of(facts.path),
        tool=tool_name(facts.agent, facts.user),
        session=session_hash(facts.conversation.session),
        status=ended.status or _status(ended).value,
        http_status=ended.http_status,
        attempts=len(history),
        failovers=sum(before.key != after.key for before, after in pairwise(history)),
        wait_s=_seconds(wait_s),
        first_byte_s=first_byte_s,
        duration_s=duration_s,
        counted=int(ended.counted is not None),
        **({} if usage is None else usage._asdict()),
        price=None if ended.counted else "",
        # What an agent sends on its own takes nothing of Copilot's allowance.
        premium_requests=0.0 if of_agent else None,
    )


def _status(ended: Ended) -> Status:
    """Return how *ended* ended."""
    status = ended.http_status
    if status is None:
        return Status.ABORTED
    last = ended.history[-1].outcome if ended.history else None
    # A refusal may come inside a response that began as a good one.
    if status >= 400 or (last is not None and last.cls is not OutcomeClass.OK):
        return Status.REFUSED
    return Status.OK if ended.whole else Status.ABORTED


def _seconds(value: float) -> float:
    return round(max(value, 0.0), 4)


def _text(name: str) -> str:
    """Return a name that a client chose as it can be written and shown in a line."""
    return one_line(name.encode("utf-8", "replace").decode(), _MAX_MODEL)

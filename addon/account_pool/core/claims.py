"""Who may refresh a login now: a state machine over one row that all proxies share.

    free -> claimed -> sent -> answered (free again), or left without an answer

A refresh token is worth one refresh, so one proxy at a time asks. Once a refresh token has
left, nobody but the server knows whether it is spent until the answer is here. The answer is
waited for, for minutes; where it never comes, the same token is sent again only when the access
token that came with it has ended, too. Nothing is lost by that, unless whoever had the claim is
only stopped or cut off, with the answer: it cannot be told from one that is gone.

Each claim has a number of its own (a fence) that grows. Who writes with a lower one than
what is stored was overtaken: its claim had ended before it could write.

Times are seconds of the store's clock, which all proxies share.
"""

from __future__ import annotations

from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

#: Seconds to come from the claim to the moment at which the request leaves.
CLAIM_S = 25.0
#: Seconds for which an answer is waited for, once the request has left.
ANSWER_S = 300.0
#: Seconds for which a claim lasts from then on: longer than the answer is waited for.
SENT_S = ANSWER_S + 30.0


class Claim(Struct, frozen=True, kw_only=True):
    """The row.

    Attributes:
        fence: the number of the last claim.
        owner: whose it is; "" when it is over.
        until: when it ends by itself.
        sent: digest of the refresh token that was sent and not answered; "" for none.
    """

    fence: int = 0
    owner: str = ""
    until: float = 0.0
    sent: str = ""


class Taken(NamedTuple):
    """No claim: somebody else refreshes, or the token was sent before.

    Attributes:
        left_s: seconds until the claim of somebody else ends by itself; 0: there is none,
            the token was sent and never answered.
        sent: the request of whoever claimed it has left.
    """

    left_s: float
    sent: bool


def ask(
    found: Claim,
    owner: str,
    *,
    stored_fence: int,
    token: str,
    now: float,
    is_gone: bool,
    is_over: bool,
) -> Claim | Taken:
    """Return the claim of *owner*, or why it gets none.

    Args:
        stored_fence: by which claim the stored tokens came. It is more than that of *found*
            where the row was lost with its file and the tokens, which more proxies know,
            were not; tokens of a lower number would not be stored.
        token: digest of the refresh token that is to be sent.
        is_gone: the process of whoever has the claim is known to be dead.
        is_over: the access token that came with *token* is worth nothing any more.
    """
    if found.owner != owner and is_held(found, now=now, is_gone=is_gone):
        return Taken(found.until - now, found.sent != "")
    if found.sent == token and not is_over:
        return Taken(0.0, True)
    fence = max(found.fence, stored_fence) + 1
    return Claim(fence=fence, owner=owner, until=now + CLAIM_S, sent=found.sent)


def is_held(found: Claim, *, now: float, is_gone: bool) -> bool:
    """Say whether somebody refreshes; *is_gone*: the owner's process is known to be dead."""
    # One that ends later than any could was made before a clock was set back.
    return found.owner != "" and now < found.until <= now + SENT_S and not is_gone


def send(found: Claim, fence: int, *, token: str, now: float) -> Claim | None:
    """Return the claim for a request that leaves now; None: it must not, the claim has ended."""
    if found.fence != fence or not found.owner or now >= found.until:
        return None
    return replace(found, until=now + SENT_S, sent=token)


def answered(found: Claim, fence: int) -> Claim:
    """The tokens of the answer are stored: nothing is under way by this claim."""
    return found if found.fence != fence else replace(found, sent="")


def release(found: Claim, fence: int, *, unknown: bool) -> Claim:
    """End the claim with this number, if it is still the one.

    *unknown*: nobody knows what became of the token that was sent.
    """
    if found.fence != fence:
        return found
    return Claim(fence=fence, sent=found.sent if unknown else "")


def may_save(stored_fence: int, fence: int, *, is_same_token: bool) -> bool:
    """Say whether the tokens of an answer may replace those that are stored.

    Args:
        stored_fence: by which claim those were stored.
        is_same_token: the stored refresh token is the one that was exchanged.

    A claim that ended is no reason to drop an answer: if nobody has stored a later one,
    its refresh token is the only one that is worth something.
    """
    return is_same_token and stored_fence <= fence

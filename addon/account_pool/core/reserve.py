"""What the owner of an account keeps: the last share of a window is not given away.

An account below its reserve is no candidate until the window is reset, whoever else can
serve. What is unknown or outdated excludes nobody: windows are believed until they are
reset (`headroom.py`), and nothing is made up in between.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from math import inf

from account_pool.core.cooldown import Cause, Cooldown
from account_pool.core.headroom import HeadroomSnapshot
from account_pool.core.outcome import OutcomeClass, Scope

#: Windows of a plan are named by their length, which vendors change: 5h, 7d, 30d.
_BY_LENGTH = re.compile(r"[1-9][0-9]{0,2}[mhd]")


def is_window(name: str, known: Collection[str]) -> bool:
    """Say whether a provider that reports the windows *known* may report *name*."""
    if name in known:
        return True
    return any(map(_BY_LENGTH.fullmatch, known)) and _BY_LENGTH.fullmatch(name) is not None


def reserved(
    reserve: Mapping[str, float], headroom: HeadroomSnapshot, now: float
) -> tuple[Cooldown, ...]:
    """Return what keeps an account with this *reserve* out of use, and until when.

    Args:
        reserve: share to be left, 0 to 1, by name of a window.
    """
    return tuple(
        Cooldown(
            model=window.model,
            since=window.told_at,
            until=window.expires_at,
            streak=0,
            cause=Cause(
                signal=f"reserve: {window.share:.0%} of {window.name} left, {kept:.0%} kept",
                cls=OutcomeClass.QUOTA,
                scope=Scope.ACCOUNT if window.model is None else Scope.MODEL,
                hinted=window.reset_at < inf,
            ),
        )
        for window in headroom.windows.values()
        if (kept := reserve.get(window.name)) is not None
        and window.share < kept
        and now < window.expires_at
    )

"""Why a mitmdump did not start, by what it printed. Pure.

It prints a traceback for a script that cannot be imported, one line for a mistake in
accounts.yaml or an address in use, and around them connections, what it listens on, and
the CancelledError of whatever was going on when it ended.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from account_pool.core.wrong import without_secrets

#: What mitmdump puts before each line.
_TIME = re.compile(r"^\[\d\d:\d\d:\d\d\.\d+\]\s*")
_OURS = "account-pool: "
#: Lines that stand there whether it starts or not.
_USUAL = re.compile(
    r"Loading script|listening at |exiting\.\.\.|Shutting down| stopped\.$|Try specifying a "
    r"|^\[[^\]]*\] ?(?:client|server) (?:dis)?connect"
    r"|^account-pool: (?:ready with|no accounts)| is skipped: |can be read by other users"
)
_ERROR = re.compile(r"error|fail|cannot|denied|not found|no such|invalid", re.IGNORECASE)
_TRACEBACK = "Traceback (most recent call last):"
#: They end what was going on, and are never why.
_CONSEQUENCES = ("CancelledError", "KeyboardInterrupt", "SystemExit")
INCOMPLETE = "the installation is incomplete: install the package again"
_REMEDIES = (
    ("No module named", INCOMPLETE),
    ("cannot import name", INCOMPLETE),
    ("address already in use", "name another port"),
)


def cause(lines: Sequence[str], exit_code: int | None) -> str:
    """Return the line of the output that says why, with a remedy where one is known.

    *exit_code* is negative for a signal, None while it runs.
    """
    texts = [_TIME.sub("", line).rstrip() for line in lines]
    raised = list(_raised(texts))
    telling = [text.strip() for text in texts if text.strip() and not _USUAL.search(text)]
    ours = [text.removeprefix(_OURS) for text in telling if text.startswith(_OURS)]
    if raised:
        found = raised[-1]
    elif ours:
        more = len(ours) - 1
        found = f"{ours[0]} (and {more} more)" if more else ours[0]
    else:
        errors = [text for text in telling if _ERROR.search(text)]
        found = (errors[:1] or telling[-1:] or [_silence(exit_code)])[0]
    remedy = next((remedy for sign, remedy in _REMEDIES if sign.lower() in found.lower()), "")
    return without_secrets(f"{found}; {remedy}" if remedy else found)


def _raised(texts: Sequence[str]) -> Iterator[str]:
    """Yield the last line of each traceback that can be a cause."""
    inside = False
    for text in texts:
        if text.strip() == _TRACEBACK:
            inside = True
        elif inside and text and not text.startswith(" "):
            inside = False
            if not any(name in text.partition(":")[0] for name in _CONSEQUENCES):
                yield text


def _silence(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        return f"it was ended by signal {-exit_code}"
    return "it said nothing"

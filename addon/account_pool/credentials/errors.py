"""Why a credential cannot be had, in words for the owner of the account."""

from __future__ import annotations


class CredentialError(Exception):
    """A source has no usable credential.

    Attributes:
        wrong: what is the matter. It names variables, files and commands, never the
            credential or a part of it.
        remedy: what the owner can do about it.
    """

    def __init__(self, wrong: str, remedy: str) -> None:
        super().__init__(f"{wrong}; {remedy}")
        self.wrong = wrong
        self.remedy = remedy


def reason_of(error: OSError | ValueError) -> str:
    """Return in a few words why the system takes no path or command.

    A ValueError: it is none, with a null character or half a character in it.
    """
    if isinstance(error, OSError):
        return (error.strerror or type(error).__name__).lower()
    return "it has a character that no name can have"


class ExchangeRefused(Exception):
    """GitHub will not exchange this token; trying again soon changes nothing."""

    def __init__(self, text: str, status: int = 0) -> None:
        super().__init__(text)
        self.status = status


class ExchangeFailed(Exception):
    """The exchange did not work this time.

    Attributes:
        retry_after_s: seconds GitHub asked to wait; None if it named none.
        is_wait: nothing was tried: that is exactly how long to wait.
        passes: it may work the next time; False: only the owner can cure it.
    """

    passes = True

    def __init__(
        self, text: str, retry_after_s: float | None = None, *, is_wait: bool = False
    ) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s
        self.is_wait = is_wait

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

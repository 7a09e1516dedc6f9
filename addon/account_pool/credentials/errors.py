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

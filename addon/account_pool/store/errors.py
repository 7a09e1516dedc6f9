"""Why something could not be kept, in words for the owner of the proxy."""

from __future__ import annotations


class StoreError(Exception):
    """The store cannot be read or written; the text names the file and the remedy."""


class DamagedError(StoreError):
    """What it holds makes no sense.

    Attributes:
        wrong: what is wrong, without the remedy.
    """

    def __init__(self, wrong: str, remedy: str) -> None:
        super().__init__(f"{wrong}; {remedy}")
        self.wrong = wrong


class FullError(StoreError):
    """There is no room for more, on the disk or in the quota of its user."""


class UnfitError(StoreError):
    """A value cannot be written, whatever is tried; the rest can."""


class MovedError(StoreError):
    """The file was taken away while we had it open: open it anew."""

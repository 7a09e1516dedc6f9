"""Why something could not be kept, in words for the owner of the proxy."""

from __future__ import annotations


class StoreError(Exception):
    """The store cannot be read or written; the text names the file and the remedy."""

"""The one way to say no to a visitor."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType


class Refused(Exception):
    """A request is not carried out.

    Attributes:
        status: of HTTP.
        code: for programs, such as `unknown_account`.
        message: for people; repeats nothing that was sent.
        headers: that go with it.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = headers

    def as_dict(self) -> dict[str, object]:
        """Return it for JSON."""
        return {"error": {"code": self.code, "message": self.message}}

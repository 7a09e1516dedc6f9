"""The one error that becomes an error response of the admin API."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType


class ApiError(Exception):
    """A request to the admin API that is refused.

    Attributes:
        status: HTTP status of the response.
        code: for programs, such as `unknown_account`.
        message: for people; repeats nothing of the request.
        headers: further headers of the response.
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
        """Return the body of the response, to be encoded as JSON."""
        return {"error": {"code": self.code, "message": self.message}}

"""mitmproxy's headers, looked up in one step.

`http.Headers` spells every field in lower case for every question, and mitmproxy asks
a dozen questions of each message it sends (is it chunked? how long? is the connection
kept?), most of them about fields that are not there.
"""

from __future__ import annotations

from typing import Any

from mitmproxy import http

Fields = tuple[tuple[bytes, bytes], ...]


class IndexedHeaders(http.Headers):
    """Headers with an index of their fields, made anew when the fields have changed."""

    _indexed: Fields | None = None
    _index: dict[bytes, list[bytes]]

    @classmethod
    def of(cls, fields: Fields) -> IndexedHeaders:
        """Make headers of *fields*, which were checked before."""
        headers = cls.__new__(cls)
        headers.fields = fields
        return headers

    def last(self, name: bytes) -> str:
        """Return the last value of *name*, which is in lower case; "" if there is none."""
        values = self._values(name)
        return values[-1].decode("latin-1") if values else ""

    def _values(self, name: str | bytes) -> list[bytes] | None:
        if self._indexed is not self.fields:
            self._make_index()
        if isinstance(name, str):
            name = name.encode("utf-8", "surrogateescape")
        return self._index.get(name.lower())

    def _make_index(self) -> None:
        self._indexed, self._index = self.fields, {}
        for field, value in self.fields:
            self._index.setdefault(field.lower(), []).append(value)

    def get_all(self, name: str | bytes) -> list[str]:
        return [value.decode("utf-8", "surrogateescape") for value in self._values(name) or ()]

    # These two are asked most: they do what `_values` does without a call of it.

    def get(self, name: str | bytes, default: Any = None) -> Any:
        if self._indexed is not self.fields:
            self._make_index()
        if isinstance(name, str):
            name = name.encode("utf-8", "surrogateescape")
        values = self._index.get(name.lower())
        if values is None:
            return default
        return b", ".join(values).decode("utf-8", "surrogateescape")

    def __contains__(self, name: object) -> bool:
        if self._indexed is not self.fields:
            self._make_index()
        if isinstance(name, str):
            name = name.encode("utf-8", "surrogateescape")
        return isinstance(name, bytes) and name.lower() in self._index

"""A function is known by its own source, and only while nobody stands around it."""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Callable
from typing import Any

import pytest
from mitmproxy.proxy.layer import Layer
from mitmproxy.proxy.layers.http import HttpStream
from mitmproxy.proxy.layers.tls import TLSLayer

from account_pool.proxy.fast.known import digest


class Proxy:
    """What libraries that watch others put in the place of a function; it passes for that."""

    def __init__(self, wrapped: Callable[..., Any]) -> None:
        self.__wrapped__ = wrapped

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__wrapped__, name)

    def __call__(self, *args: Any) -> Any:
        return self.__wrapped__(*args)


def watched(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def watching(*args: Any) -> Any:
        return function(*args)

    return watching


def with_parameters_in_lines(
    first: str,
    # in parentheses that end where it begins
    second: str,
) -> str:
    def inner() -> str:
        return first

    return inner() + str(
        second,
    )
    # and a comment at the end


@pytest.mark.parametrize(
    "function", [TLSLayer.send_data, HttpStream.passthrough, Layer.handle_event, watched,
                 with_parameters_in_lines, Proxy.__init__]
)  # fmt: skip
def test_all_of_a_source_counts(function) -> None:
    source = inspect.getsource(function).strip()
    assert digest(function) == hashlib.sha256(source.encode()).hexdigest()[:8]


def test_what_mitmproxy_decorates_itself_is_known() -> None:
    assert digest(TLSLayer.send_data)
    assert digest(HttpStream.passthrough)


@pytest.mark.parametrize("around", [watched, functools.cache, Proxy, functools.partial])
@pytest.mark.parametrize("function", [TLSLayer.send_data, HttpStream.passthrough])
def test_what_another_addon_has_wrapped_is_not(function, around) -> None:
    assert digest(around(function)) == ""
    assert digest(TLSLayer.send_data, around(function)) == ""


@pytest.mark.parametrize("function", [print, TLSLayer])
def test_what_has_no_source_is_not(function) -> None:
    assert digest(function) == ""

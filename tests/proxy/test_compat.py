"""A mitmproxy or an h11 that lacks what we lean on costs the feature, not the proxy."""

from __future__ import annotations

import logging
import runpy
import sys

import pytest
from mitmproxy import version
from mitmproxy.net.http.http1 import read
from mitmproxy.proxy.layers.http import Http1Client, Http1Server
from mitmproxy.test import tflow

import account_pool.proxy
from account_pool.proxy import http1, http_layer, replay
from tests.proxy.helpers import OK, post1


def test_ours_is_used_here():
    assert http_layer.own_http(1) is http1
    assert http_layer._QUICK is http1


@pytest.mark.parametrize(
    "missing", ["h11._readers", "h11._receivebuffer", "mitmproxy.proxy.layers.http._http1"]
)
def test_a_private_part_is_gone(monkeypatch, caplog, missing):
    caplog.set_level(logging.INFO)
    monkeypatch.delitem(sys.modules, "account_pool.proxy.http1")
    monkeypatch.delattr(account_pool.proxy, "http1")
    monkeypatch.setitem(sys.modules, missing, None)
    assert http_layer.own_http(1) is None
    assert "mitmproxy's own HTTP/1 is used (ModuleNotFoundError)" in caplog.text


def broken(*_args: object) -> None:
    raise TypeError("takes another argument now")


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("_read_headers", broken),
        ("_read_request_line", lambda line: ("", 0, b"PUT", b"", b"", b"/", b"HTTP/1.1")),
        ("_read_response_line", lambda line: (b"HTTP/1.1", 299, b"OK")),
    ],
)
def test_a_private_part_behaves_otherwise(monkeypatch, name, function):
    """mitmproxy's own classes do not come by here: what they make is right."""
    monkeypatch.setattr(http1, "read", type("read", (), {**vars(read), name: function}))
    for other in ("_read_request_line", "_read_response_line", "_read_headers"):
        monkeypatch.setattr(http1.read, other, staticmethod(getattr(http1.read, other)))
    assert http_layer.own_http(1) is None


def test_requests_are_served_without_it(rig_of, monkeypatch):
    monkeypatch.setattr(http_layer, "_QUICK", None)
    rig = rig_of()
    rig.send(post1())
    rig.server.send(OK)
    assert [answer.status for answer in rig.answers] == [200]
    kinds = {type(layer.context.layers[-1]) for layer in rig.layer.connections.values()}
    assert kinds == {Http1Server, Http1Client}


async def test_a_replay_that_cannot_be_is_answered_here(rig_of, monkeypatch, caplog):
    """Without an answer mitmproxy would send the request with the placeholder in it."""
    monkeypatch.delitem(sys.modules, "account_pool.proxy.replay_handler", raising=False)
    monkeypatch.setitem(sys.modules, "mitmproxy.addons.clientplayback", None)
    flow = tflow.tflow()
    flow.request.url = "https://api.openai.com/v1/chat/completions"
    await replay.answer(flow, rig_of().service)
    assert flow.response is not None
    assert flow.response.status_code == 502
    assert "the replay failed (ModuleNotFoundError)" in caplog.text


@pytest.mark.parametrize(("number", "warned"), [("11.0.2", False), ("12.9", False), ("13.0", True)])
def test_a_mitmproxy_that_nobody_has_tried_is_named(monkeypatch, caplog, number, warned):
    monkeypatch.setattr(version, "VERSION", number)
    runpy.run_path(account_pool.proxy.__file__)
    assert (f"mitmproxy {number} is untested" in caplog.text) == warned

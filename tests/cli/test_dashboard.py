"""`account-pool dashboard`: the link it opens, or prints."""

from __future__ import annotations

import json
import webbrowser

import pytest

from account_pool.cli import api
from account_pool.cli.main import run
from account_pool.cli.manage import open_dashboard

LINK = {"url": "http://127.0.0.1:8080/#code=fake-code", "expires_in_s": 60.0}
DISPLAY = {"DISPLAY": ":0"}


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the links that were opened, in a browser that works."""
    urls: list[str] = []
    monkeypatch.setattr(api, "change", lambda _port, _path, _body: LINK)
    monkeypatch.setattr(webbrowser, "open", lambda url: urls.append(url) or True)
    return urls


def shown(environ=DISPLAY, *, only_print=False, as_json=False) -> int:
    return open_dashboard(8080, environ, only_print=only_print, as_json=as_json)


def test_it_is_opened_and_not_printed(opened, capsys):
    assert shown() == 0
    assert opened == [LINK["url"]]
    out, err = capsys.readouterr()
    assert out == ""
    assert "fake-code" not in err


def test_it_is_printed_where_asked_for(opened, capsys):
    assert shown(only_print=True) == 0
    assert capsys.readouterr().out == f"{LINK['url']}\n"
    assert not opened


def test_it_is_printed_where_no_browser_opens(opened, capsys, monkeypatch):
    monkeypatch.setattr(webbrowser, "open", lambda _url: False)
    assert shown() == 0
    assert capsys.readouterr().out == f"{LINK['url']}\n"


@pytest.mark.skipif("sys.platform in ('darwin', 'win32')")
def test_no_browser_is_started_without_a_display(opened, capsys):
    assert shown({}) == 0
    assert capsys.readouterr().out == f"{LINK['url']}\n"
    assert not opened


def test_as_json(opened, capsys):
    assert shown(as_json=True) == 0
    assert json.loads(capsys.readouterr().out) == LINK
    assert not opened


def test_a_proxy_that_makes_no_links(monkeypatch, capsys):
    def refuse(*_asked: object) -> None:
        raise api.NoAnswer("there is no such endpoint", "not_found")

    monkeypatch.setattr(api, "change", refuse)
    assert shown() == 1
    assert "older version" in capsys.readouterr().err


def test_without_a_proxy(places, capsys):
    assert run(["dashboard", "-p", str(places.port)]) == 1
    assert "no proxy answers" in capsys.readouterr().err


@pytest.mark.usefixtures("opened")
def test_over_ssh_it_says_how_to_get_there(capsys):
    assert shown({"SSH_CONNECTION": "192.0.2.1 1 192.0.2.2 22"}, only_print=True) == 0
    assert "ssh -L 8080:127.0.0.1:8080" in capsys.readouterr().err

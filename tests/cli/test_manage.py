"""Commands of every day: what they print of an accounts file, and of what a proxy answers."""

from __future__ import annotations

import io
import json
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import pytest
from rich.console import Console

from account_pool.admin.auth import TOKEN_FILE
from account_pool.cli import api, history
from account_pool.cli.accounts import nearest
from account_pool.cli.history import as_table
from account_pool.cli.main import run
from account_pool.cli.processes import Launch
from account_pool.cli.shared import SharedProxy

FILE = """accounts:
  - {provider: openai, label: work, token: sk-fake-1}   # mine
  - {provider: openai, label: old, token: sk-fake-2, enabled: false, priority: 3}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "accounts.yaml"
    path.write_text(FILE)
    path.chmod(0o600)
    return path


@pytest.fixture(autouse=True)
def at_home(places):
    """No proxy runs at the port, and nothing of the user's is read."""
    return places


def test_without_a_proxy_the_file_is_listed(file, places, capsys):
    assert run(["list", "--port", str(places.port), "--accounts-file", str(file)]) == 0
    out, err = capsys.readouterr()
    assert "openai/work" in out
    assert "openai/old" in out
    assert "sk-fake" not in out + err
    assert "accounts.yaml" in err


def test_a_list_as_json_says_that_states_are_unknown(file, places, capsys):
    assert run(["list", "--json", "-p", str(places.port), "--accounts-file", str(file)]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["proxy"] is False
    assert [(a["key"], a["state"], a["priority"]) for a in value["accounts"]] == [
        ("openai/work", None, 0),
        ("openai/old", "off", 3),
    ]


def test_a_list_of_nothing_says_how_to_begin(places, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ACCOUNT_POOL_ACCOUNTS", raising=False)
    assert run(["list", "-p", str(places.port)]) == 1
    assert "account-pool add PROVIDER LABEL" in capsys.readouterr().err


def test_an_account_is_taken_out_of_the_file(file, places, capsys):
    at = ["-p", str(places.port), "--accounts-file", str(file)]
    assert run(["remove", "OpenAI/ Old ", *at]) == 0
    assert file.read_text() == "".join(FILE.splitlines(keepends=True)[:2])
    assert Path(f"{file}.bak").read_text() == FILE
    assert "removed openai/old" in capsys.readouterr().out
    assert run(["remove", "openai/old", *at]) == 1
    assert "openai/old is not in" in capsys.readouterr().err
    assert run(["remove", "openai/work", *at]) == 1
    assert "the last account" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [["enable", "openai/work"], ["disable", "openai/work"], ["clear", "openai/work"],
     ["next", "openai"], ["usage"], ["decisions"], ["decisions", "-f"]],
)  # fmt: skip
def test_what_needs_a_proxy_says_so(places, capsys, words):
    assert run([*words, "-p", str(places.port)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert f"no proxy answers at 127.0.0.1:{places.port}" in err


@pytest.mark.parametrize("name", ["work", "openai/", "/work", ""])
def test_a_name_that_is_none_says_how_one_looks(places, capsys, name):
    for verb in ("enable", "remove"):
        assert run([verb, name, "-p", str(places.port)]) == 1
        assert "provider/label" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [["usage", "--by", "colour"], ["usage", "--csv", "--json"], ["decisions", "-n", "0"],
     ["usage", "--from", "yesterday"], ["requests", "--to", "soon"]],
)  # fmt: skip
def test_wrong_usage(capsys, words):
    assert run(words) == 2
    assert capsys.readouterr().out == ""


def test_a_choice_that_there_is_not(capsys):
    assert run(["completion", "tcsh"]) == 2
    assert "'tcsh' is not one of 'bash'" in capsys.readouterr().err


def test_a_kind_of_decision_that_there_is_not(capsys):
    assert run(["decisions", "--kind", "colour"]) == 2
    assert "colour is not one of cooldown, release" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "in the last 30 days"),
        (["--days", "1"], "today"),
        (["--from", "2026-08-01", "--account", "openai", "--tool", "curl"],
         "by openai to curl since 2026-08-01"),
    ],
)  # fmt: skip
def test_when_nothing_was_served(monkeypatch, capsys, words, said):
    monkeypatch.setattr(api, "ask", lambda _port, _path: {"groups": []})
    assert run(["usage", *words]) == 0
    assert capsys.readouterr().err == f"account-pool: nothing was served {said}\n"


def row(day: str, account: str, model: str, tokens: int) -> dict[str, object]:
    return {
        "day": day,
        "account": account,
        "model": model,
        "requests": 1,
        "input_tokens": tokens,
        "cached_tokens": 0,
        "output_tokens": 1,
    }


ROWS = [
    row("2026-08-02", "openai/a", "gpt-5", 10),
    row("2026-08-02", "openai/b", "gpt-5", 40),
    row("2026-08-01", "gemini/a", "gemini-3", 1_000),
]


def test_totals_are_a_line_where_there_is_something_to_add():
    assert as_table(ROWS, "model").row_count == 4
    assert as_table(ROWS[:1], "model").row_count == 1


def test_what_costs_is_a_column_and_what_has_no_price_is_no_0():
    rows = [{**ROWS[0], "cost_usd": 1.5, "saved_usd": 0.0}, {**ROWS[1], "cost_usd": None}]
    table = as_table(rows, "account")
    assert [column.header for column in table.columns][-1] == "cost"
    assert list(table.columns[-1].cells) == ["$1.5000", "?", "$1.5000"]
    assert len(as_table(ROWS, "account").columns) == 5


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_name_and_no_number_is_cut_off(width):
    name = "openai/private-with-a-rather-long-label"
    rows = [row("2026-08-02", name, "gpt-5", 1_234_567), row("2026-08-02", "openai/b", "gpt-5", 1)]
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(as_table(rows, "account", width))
    text = console.file.getvalue()
    assert "…" not in text
    assert text.count("1,234,567") == 1
    assert text.count("1,234,568") == 1
    names = "".join(line[: width // 2].split("  ")[0].strip() for line in text.splitlines())
    assert name in names.replace("account", "")


@pytest.fixture
def running(stub, places):
    """A proxy that knows two accounts and refuses every change."""
    accounts = [
        {"key": key, "provider": "openai", "state": "available", "cooldowns": []}
        for key in ("openai/work", "openai/private-2")
    ]
    (stub / "accounts.json").write_text(json.dumps({"accounts": accounts, "summary": {}}))
    shared = SharedProxy(places, os.environ)
    shared.attach(Launch(str(stub)))
    yield places.port
    shared.detach()


def test_what_wasnearest_is_named(running, capsys):
    assert run(["enable", "openai/wrok", "-p", str(running)]) == 1
    said = capsys.readouterr().err
    assert said == (
        "account-pool: openai/wrok: the pool has no such account; did you mean openai/work?\n"
    )
    assert run(["remove", "openai/nothing-alike", "-p", str(running)]) == 1
    assert f"account-pool list -p {running}` shows those it has" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("openai/wrok", "openai/work"),
        ("openai/priv", "openai/private-2"),
        ("opnai/work", "openai/work"),
        ("openai/nope", None),
        ("nope/nope", None),
        ("opnai", "openai"),
    ],
)
def testnearest(name, meant):
    known = ["openai/work", "openai/private-2"] if "/" in name else ["openai", "gemini"]
    assert nearest(name, known) == meant


def test_a_list_is_in_columns(running, capsys):
    assert run(["list", "-p", str(running)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "openai/work       available",
        "openai/private-2  available",
    ]


def test_no_decision_is_not_silence(running, capsys):
    assert run(["decisions", "-p", str(running), "--account", "OpenAI/work"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "account-pool: no decision about openai/work so far\n"
    assert run(["decisions", "-p", str(running), "--account", "work"]) == 1
    assert "write provider/label" in capsys.readouterr().err


def told(monkeypatch, *answers):
    """Have a proxy say these; then the user leaves."""
    said = iter(answers)

    def ask(_connection, _target):
        if (answer := next(said, None)) is None:
            raise KeyboardInterrupt
        return {"decisions": answer, "next": 1, "alone": False}

    monkeypatch.setattr(history.api.PoolConnection, "ask", ask)
    monkeypatch.setattr(history.api.PoolConnection, "name", lambda _connection: "here")
    monkeypatch.setattr(history.time, "sleep", lambda _s: None)


def decision(name, proxy="here"):
    return {"id": name, "number": 1, "at": "2026-08-01T12:00:00Z", "text": name, "proxy": proxy}


def test_decisions_that_come_again_are_shown_once(monkeypatch, capsys):
    told(monkeypatch, [decision("a")], [decision("b"), decision("a")], [decision("b")])
    assert run(["decisions", "-f"]) == 0
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()] == ["a", "b"]


def test_that_decisions_of_other_proxies_are_missing_is_said_once(monkeypatch, capsys):
    said = iter([True, True, False, True])
    told(monkeypatch, *[[]] * 4)
    ask = history.api.PoolConnection.ask
    monkeypatch.setattr(
        history.api.PoolConnection, "ask", lambda *to: {**ask(*to), "alone": next(said)}
    )
    assert run(["decisions", "-f"]) == 0
    assert capsys.readouterr().err.count("what other proxies decide is missing") == 2


def test_of_several_proxies_each_decision_names_its_own(monkeypatch, capsys):
    told(monkeypatch, [decision("b", "there"), decision("a", "here")])
    assert run(["decisions"]) == 0
    shown = [line.split(maxsplit=2)[-1] for line in capsys.readouterr().out.splitlines()]
    assert shown == ["[here] a", "[there] b"]


@pytest.mark.parametrize(
    ("proxy", "shown"), [("there", "[there] a"), ("here", "a"), ("here/2", "a")]
)
def test_decisions_of_another_proxy_alone_name_it(monkeypatch, capsys, proxy, shown):
    told(monkeypatch, [decision("a", proxy)])
    assert run(["decisions"]) == 0
    assert capsys.readouterr().out.split(maxsplit=2)[-1] == f"{shown}\n"


def test_decisions_of_an_older_proxy_are_shown(monkeypatch, capsys):
    old = {"number": 1, "at": "2026-08-01T12:00:00Z", "text": "old"}
    told(monkeypatch, [old])
    assert run(["decisions"]) == 0
    assert capsys.readouterr().out.endswith(" old\n")
    # As of one that has been started in the place of a newer one.
    told(monkeypatch, [decision("new")], [old])
    assert run(["decisions", "-f"]) == 0
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()] == ["new", "old"]


def test_a_wrong_port_names_the_right_one(running, capsys):
    other = str(running - 1)
    for words in (["status"], ["usage"], ["logs"], ["enable", "openai/work"]):
        assert run([*words, "-p", other]) == 1
        assert f"at port {running}: name it with -p" in capsys.readouterr().err


def test_into_a_pipe_lines_end_where_their_text_does(file, capsys):
    assert run(["check", "--accounts-file", str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("account ")
    assert [line.rstrip() for line in lines] == lines


def test_what_was_removed_as_json(file, places, capsys):
    words = ["remove", "openai/old", "--json", "-p", str(places.port)]
    assert run([*words, "--accounts-file", str(file)]) == 0
    assert json.loads(capsys.readouterr().out) == {"removed": "openai/old", "written_to": str(file)}


@pytest.mark.parametrize("verb", ["enable", "disable", "clear"])
def test_without_a_proxy_the_offline_half_is_offered(verb, places, capsys):
    assert run([verb, "openai/work", "-p", str(places.port)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "no proxy answers" in err
    assert "list, add, remove, check and doctor work without one" in err


class Answers(BaseHTTPRequestHandler):
    """A program that answers everything alike."""

    status, body = 503, b'{"error": {"code": "starting", "message": "not yet"}}'
    sent: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:
        self.sent.append(self.headers["authorization"])
        self.send_response(self.status)
        self.send_header("content-length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_arguments: object) -> None:
        pass


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (503, Answers.body, "does not answer; try again later"),
        (503, b'{"error": 1}', "used by something that is not the pool"),
        (200, b"[]", "used by something that is not the pool"),
        (403, b'{"error": {"code": "not_local", "message": "only there"}}', "only there"),
        (421, b'{"error": {"code": "wrong_host", "message": "not so"}}', "not so"),
    ],
)
def test_only_a_pool_that_serves_gets_the_token(status, body, said, places, capsys):
    (places.confdir / TOKEN_FILE).write_text("fake-token-of-this-machine")

    class Found(Answers):
        sent: ClassVar[list[str | None]] = []

    Found.status, Found.body = status, body
    with ThreadingHTTPServer(("127.0.0.1", places.port), Found) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        assert run(["enable", "openai/work", "-p", str(places.port)]) == 1
        server.shutdown()
    assert said in capsys.readouterr().err
    assert set(Found.sent) == {None}


def test_a_pool_that_refuses_this_machine_is_no_stranger(places, capsys):
    """Such as one in a container, whose port was published and which is for itself alone."""

    class Refuses(Answers):
        status = 403
        body = b'{"error": {"code": "not_local", "message": "only there"}}'

    with ThreadingHTTPServer(("127.0.0.1", places.port), Refuses) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        assert run(["doctor", "-p", str(places.port)]) == 1
        assert run(["env", "-p", str(places.port)]) == 0
        server.shutdown()
    out, err = capsys.readouterr()
    assert "proxy         only there" in out
    assert f"127.0.0.1:{places.port} is used by a pool that takes no requests of this" in err
    assert "is not the pool" not in out + err

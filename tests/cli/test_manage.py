"""Commands of every day: what they print of an accounts file, and of what a proxy answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from account_pool.cli.history import as_table, grouped
from account_pool.cli.main import run

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
    "words", [["usage", "--by", "colour"], ["usage", "--csv", "--json"], ["decisions", "-n", "0"]]
)
def test_wrong_usage(capsys, words):
    assert run(words) == 2
    assert capsys.readouterr().out == ""


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


@pytest.mark.parametrize(
    ("by", "names", "first"),
    [
        ("account", ["gemini/a", "openai/b", "openai/a"], 1_000),
        ("provider", ["gemini", "openai"], 1_000),
        ("model", ["gemini-3", "gpt-5"], 1_000),
        ("day", ["2026-08-02", "2026-08-01"], 50),
    ],
)
def test_usage_is_summed(by, names, first):
    sums = grouped(ROWS, by)
    assert [one[by] for one in sums] == names
    assert sums[0]["input_tokens"] == first
    assert sum(one["requests"] for one in sums) == 3


def test_totals_are_a_line_where_there_is_something_to_add():
    assert as_table(grouped(ROWS, "model"), "model").row_count == 3
    assert as_table(grouped(ROWS[:1], "model"), "model").row_count == 1

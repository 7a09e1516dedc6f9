"""A path that begins with `~`, wherever a user may write one."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from account_pool.cli import certificates
from account_pool.cli.add import AddOptions
from account_pool.cli.main import run
from account_pool.cli.places import Places
from account_pool.cli.run import own_home
from account_pool.config import accounts_file, options
from account_pool.core.wrong import Wrong
from account_pool.credentials.vendor_logins import find_login_file
from account_pool.home import expanded, named_path, printable
from account_pool.store.fleet.fleet_store import unsaved_folder

PACKAGE = Path(__file__).parents[1] / "addon" / "account_pool"
#: Which no system has.
NOBODY = "~no-such-user/file"
WHY = "there is no such home directory"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    return tmp_path


def test_the_home_of_a_user(here):
    assert expanded("~/file") == named_path(Path("~/file")) == here / "file"
    assert named_path("a/~b") == Path("a/~b")
    assert named_path("") == Path()


def test_the_home_of_nobody():
    """As in mitmproxy it stays; what a user has named is an error that says which it is."""
    assert expanded(NOBODY) == Path(NOBODY)
    assert unsaved_folder(NOBODY).parent == Path(NOBODY)
    with pytest.raises(FileNotFoundError, match=WHY) as raised:
        named_path(NOBODY)
    assert raised.value.filename == NOBODY
    with pytest.raises(Wrong, match=WHY):
        options.BY_NAME["state"].read(NOBODY)
    with pytest.raises(FileNotFoundError, match=WHY):
        AddOptions(file=Path(NOBODY)).source()


@pytest.mark.parametrize(
    "words",
    [
        ["add", "openai", "--file", NOBODY],
        ["import", NOBODY],
        ["check", "--trust", "--accounts-file", NOBODY],
        ["serve", "--port", "0", "--accounts-file", NOBODY],
        ["service", "status", "--accounts-file", NOBODY],
    ],
)
def test_a_command_says_so_in_one_line(words, here, capsys):
    assert run(words) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"{NOBODY}: {WHY}")
    assert not (here / "~no-such-user").exists()


def test_a_variable_that_names_one_is_no_more_than_a_missing_file(here):
    found = certificates.stores(here / "ca.pem", {"SSL_CERT_FILE": NOBODY})
    assert [one.holds for one in found if one.name.startswith("SSL_CERT_FILE")] == [False]


def test_the_doctor_says_what_pool_state_names(here, capsys):
    confdir = Places.usual(0).confdir
    confdir.mkdir()
    (confdir / "config.yaml").write_text(f"pool_state: {NOBODY}\n")
    assert run(["doctor", "--port", "1"]) == 1
    assert f'pool_state: "{NOBODY}": {WHY}' in " ".join(capsys.readouterr().out.split())


@pytest.mark.skipif(sys.platform == "win32", reason="homes are in a variable there")
def test_a_user_without_a_home(monkeypatch):
    """As in a container that runs with a number that has no name."""
    import pwd

    def unknown(_number):
        raise KeyError("no name of this number")

    monkeypatch.delenv("HOME")
    monkeypatch.delenv("USERPROFILE")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert accounts_file.shown(Path("/a/b")) == "/a/b"
    assert own_home({}) == Path("~/.codex")
    assert find_login_file("codex", {}) == Path("~/.codex/auth.json")
    with pytest.raises(FileNotFoundError, match=WHY):
        named_path("~/file")


def test_nothing_else_asks_for_one():
    """`Path.expanduser` and `Path.home` raise RuntimeError, which nobody expects of a path."""
    asks = re.compile(r"expanduser|Path\.home\(")
    using = [path.name for path in PACKAGE.rglob("*.py") if asks.search(path.read_text("utf-8"))]
    assert using == ["home.py"]


def test_a_path_is_one_line_whatever_is_in_its_name():
    assert printable(Path("/a/b c/\u00e9.yaml")) == "/a/b c/\u00e9.yaml"
    assert printable("/a\nb\x1b[2J\udcff") == "/a\\nb\\x1b[2J\\udcff"

"""The device flow: what is asked, how often, and when it ends. The application of Gemini CLI.

What is read of the tools' files is in `test_vendor_logins.py`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from account_pool.credentials import new_logins
from account_pool.credentials.http import HttpFailed, HttpResponse
from account_pool.credentials.new_logins import (
    CLIENT_ID,
    gemini_client,
    gemini_has_own_home,
    request_code,
    wait_for_token,
)
from account_pool.credentials.sources import CredentialError

CODE = {
    "device_code": "device-fake",
    "user_code": "ABCD-1234",
    "verification_uri": "https://github.com/login/device",
    "expires_in": 900,
    "interval": 5,
}
PENDING, SLOW = {"error": "authorization_pending"}, {"error": "slow_down"}
TOKEN = {"access_token": "gho_fake000", "token_type": "bearer", "scope": "read:user"}


class Server:
    """Answers in turn, and keeps time: a sleep lasts as long as it says."""

    def __init__(self, *answers: Any) -> None:
        self.answers = [CODE, *answers]
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.slept: list[float] = []

    async def ask(self, _method, url, *, headers, content=None, timeout_s) -> HttpResponse:
        assert headers["accept"] == "application/json"
        self.asked.append((url, json.loads(content)))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, int):
            return HttpResponse(status=answer)
        return HttpResponse(status=200, body=json.dumps(answer).encode())

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)

    async def log_in(self, base: str = "https://github.com") -> str:
        code = await request_code(self.ask, base)
        assert "device-fake" not in repr(code)
        secret = await wait_for_token(
            self.ask, code, base=base, clock=lambda: sum(self.slept), sleep=self.sleep
        )
        return secret.reveal()


async def test_it_asks_until_there_is_a_token():
    server = Server(PENDING, PENDING, TOKEN)
    assert await server.log_in() == "gho_fake000"
    assert server.slept == [5, 5, 5]
    first, *polls = server.asked
    assert first == (
        "https://github.com/login/device/code",
        {"client_id": CLIENT_ID, "scope": "read:user"},
    )
    assert {url for url, _ in polls} == {"https://github.com/login/oauth/access_token"}
    assert polls[0][1]["device_code"] == "device-fake"
    assert polls[0][1]["grant_type"].endswith(":device_code")


@pytest.mark.parametrize(
    ("answers", "slept"),
    [
        ((SLOW, PENDING, TOKEN), [5, 10, 10]),
        (({**SLOW, "interval": 30}, TOKEN), [5, 30]),
        (({**SLOW, "interval": -1}, TOKEN), [5, 10]),
        ((HttpFailed("gone"), 502, TOKEN), [5, 10, 20]),
        ((429, TOKEN), [5, 10]),
        (([], TOKEN), [5, 10]),
    ],
)
async def test_it_slows_down_when_told_or_unanswered(answers, slept):
    server = Server(*answers)
    assert await server.log_in() == "gho_fake000"
    assert server.slept == slept


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ({"error": "expired_token"}, "was not entered in time; run account-pool login copilot"),
        ({"error": "access_denied"}, "cancelled on GitHub's page"),
        ({"error": "device_flow_disabled"}, "account-pool login --from gh"),
        ({"error": "<b>odd</b>"}, "neither a token nor a known reason"),
        ({"access_token": "two\nlines"}, "line break"),
    ],
)
async def test_it_ends_when_there_will_be_none(answer, why):
    with pytest.raises(CredentialError, match=why):
        await Server(PENDING, answer).log_in()


async def test_nobody_types_it_in():
    server = Server(*[PENDING] * 1000)
    with pytest.raises(CredentialError, match="in time"):
        await server.log_in()
    assert sum(server.slept) <= 900


@pytest.mark.parametrize("first", [{}, {"user_code": 3}, 404])
async def test_a_server_without_the_flow(first):
    server = Server()
    server.answers = [first]
    with pytest.raises(CredentialError, match="returned no login code"):
        await server.log_in("https://acme.ghe.com")


async def test_a_server_that_cannot_be_reached():
    server = Server()
    server.answers = [HttpFailed("cannot reach github.com (ConnectError)")]
    with pytest.raises(CredentialError, match="cannot reach github"):
        await server.log_in()


async def test_what_a_server_names_is_bounded_and_printable():
    server = Server(TOKEN)
    server.answers[0] = {**CODE, "interval": 1e9, "expires_in": 1e5, "user_code": "A\x1b[2J"}
    code = await request_code(server.ask)
    assert (code.interval_s, code.lasts_s, code.text) == (5.0, 1800.0, "A [2J")


CLIENT = {
    "client_id": "123456789-fake0fake0.apps.googleusercontent.com",
    "client_secret": "GOCSPX-" + "fake0" * 5,
}
CLIENT_SCRIPT = f'var a="{CLIENT["client_id"]}",b="{CLIENT["client_secret"]}";'


class TestGeminiClient:
    """The application of Gemini CLI in the copy of it that is installed."""

    def program(self, folder: Path, script: str) -> str:
        """Install the tool with the application in *script*, below *folder*."""
        (folder / script).parent.mkdir(parents=True, exist_ok=True)
        (folder / script).write_text(CLIENT_SCRIPT)
        program = folder / "gemini"
        program.touch()
        return str(program)

    @pytest.mark.parametrize(
        "script",
        [
            "bundle/chunk.js",
            "node_modules/@google/gemini-cli-core/dist/src/code_assist/oauth2.js",
        ],
    )
    def test_it_is_found_in_the_package_that_a_link_leads_to(
        self, tmp_path: Path, script: str
    ) -> None:
        package = tmp_path / "lib/node_modules/@google/gemini-cli"
        self.program(package, script)
        (package / "dist").mkdir()
        (package / "dist/index.js").write_text("GEMINI_CLI_HOME")
        (tmp_path / "bin").mkdir()
        program = tmp_path / "bin/gemini"
        program.symlink_to(package / "dist/index.js")
        assert gemini_client(str(program), None) == CLIENT
        assert gemini_has_own_home(str(program))
        with pytest.raises(CredentialError, match="is not found in it"):
            gemini_client(str(program), "987654321-other00000.apps.googleusercontent.com")

    def test_on_windows_its_package_is_beside_it(self, tmp_path: Path) -> None:
        self.program(tmp_path / "node_modules/@google/gemini-cli", "bundle/gemini.js")
        assert gemini_client(str(tmp_path / "gemini.cmd"), CLIENT["client_id"]) == CLIENT

    @pytest.mark.parametrize(
        ("bound", "most"), [("MAX_FOLDERS", 2), ("MAX_SCRIPTS", 2), ("MAX_SCRIPT_BYTES", 20)]
    )
    def test_of_a_folder_of_any_size_a_part_is_read(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: str, most: int
    ) -> None:
        program = self.program(tmp_path, "c/c/a.js")
        for name in ("a", "b"):
            (tmp_path / f"{name}.js").touch()
        assert gemini_client(program, None) == CLIENT
        monkeypatch.setattr(new_logins, bound, most)
        with pytest.raises(CredentialError, match="is not found in it"):
            gemini_client(program, None)

    @pytest.mark.skipif(os.name != "posix", reason="pipes are of POSIX")
    def test_what_is_no_script_ends_nothing(self, tmp_path: Path) -> None:
        program = self.program(tmp_path, "z/client.js")
        os.mkfifo(tmp_path / "a.js")
        (tmp_path / "b.js").symlink_to("b.js")
        (tmp_path / "c.js").symlink_to("nowhere")
        (tmp_path / "d.js").mkdir()
        (tmp_path / "e").symlink_to(".")
        (tmp_path / "f.js").write_bytes(bytes(range(256)))
        closed = tmp_path / "g.js"
        closed.touch(mode=0)
        assert gemini_client(program, None) == CLIENT
        assert not gemini_has_own_home(program)

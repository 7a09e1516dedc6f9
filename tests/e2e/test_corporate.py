"""`run` and `serve` where a company's own authority signs: what docs/corporate.md promises."""

from __future__ import annotations

import asyncio
import shlex
import signal
import sys

import pytest

from account_pool.cli import processes
from account_pool.cli.processes import read_record
from tests.e2e.harness import CLIENT, FIRST, SECOND, TIMEOUT_S, client
from tests.e2e.test_causes import Server
from tests.e2e.test_curl import CURL
from tests.e2e.test_run import Home
from tests.scripts import openai
from tests.upstream.certificates import make_certificate
from tests.upstream.replies import by_credential

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")

GOOD = openai.chat_complete("Good morning")
#: Each may name the file of the company's authority.
VARIABLES = pytest.mark.parametrize(
    "variable", ["SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"]
)


@pytest.fixture
async def home(tmp_path, setting, provider):
    """A home whose proxy trusts nothing but what its environment names."""
    server = await provider(by_credential({FIRST: GOOD, CLIENT: GOOD}))
    home = Home(tmp_path / "home", setting, server.port)
    home.server = server
    (home.places.confdir / "config.yaml").unlink()
    yield home
    if record := read_record(home.places):
        processes.end(record.pid, record.proof)


def curl(port: int, *more: str) -> list[str]:
    asked = '{"model": "gpt-5-nano", "messages": []}'
    return [
        *(CURL, "-sS", "--fail-with-body", "--max-time", str(TIMEOUT_S), "--json", asked, *more),
        f"https://localhost:{port}/v1/chat/completions",
    ]


@VARIABLES
async def test_the_proxy_trusts_what_a_python_client_does(home, setting, variable):
    named = {variable: str(setting.certificate.authority)}
    process = await home.run("print(ask())", **named)
    out, err = await process.communicate()
    assert (process.returncode, out.decode()) == (0, "Good morning\n"), err
    assert home.server.journal.credentials == [FIRST]
    assert home.is_left_alone()


@VARIABLES
@pytest.mark.skipif(CURL is None, reason="curl is not installed")
async def test_curl_reaches_the_pool_and_others(home, setting, provider, variable):
    """A host that is not the pool's shows its own certificate, which the bundle must hold."""
    other = await provider(by_credential({CLIENT: GOOD}))
    own = ["-H", f"authorization: Bearer {CLIENT}"]
    both = f"{shlex.join(curl(home.provider_port))}; {shlex.join(curl(other.port, *own))}"
    named = {variable: str(setting.certificate.authority)}
    process = await home.command("run", "--", "sh", "-ec", both, **named)
    out, err = await process.communicate()
    assert (process.returncode, out) == (0, GOOD.body * 2), err
    assert home.server.journal.credentials == [FIRST]
    assert other.journal.credentials == [CLIENT]


async def test_an_authority_that_nobody_named(tmp_path, setting):
    """The cause is told to the tool, in the log and by the decision, and there is one try."""
    certificate = make_certificate(tmp_path)
    async with Server(certificate.server_context(["http/1.1"])) as server:
        home = Home(tmp_path / "home", setting, server.port)
        (home.places.confdir / "config.yaml").unlink()
        process = await home.run(f"""
            try:
                ask()
            except SystemExit as why:
                print(why)
            own = "http://127.0.0.1:{home.places.port}/decisions"
            print(httpx.get(own, trust_env=False).json()["decisions"][0]["reason"])
        """)
        out, err = await process.communicate()
        assert process.returncode == 0, err
        assert server.count == 1
    why = (
        "no connection to localhost: Certificate verify failed: unable to get local issuer "
        "certificate"
    )
    answered, decided = out.decode().splitlines()
    assert answered.startswith(f"Error: openai/first: {why}")
    assert decided.startswith(why)
    log = home.places.log.read_text()
    assert log.count(f"openai/first: {why}") == 1
    for text in (answered, log):
        assert "SSL_CERT_FILE" in text
        assert "ssl_verify_upstream_trusted_ca" in text
        assert not any(secret in text for secret in (FIRST, SECOND))


@VARIABLES
async def test_serve_trusts_it_too(home, setting, variable):
    named = {variable: str(setting.certificate.authority), "PYTHONUNBUFFERED": "1"}
    process = await home.command("serve", **named)
    try:
        assert process.stdout is not None
        async with asyncio.timeout(TIMEOUT_S):
            while b"ready with" not in (line := await process.stdout.readline()):
                assert line, "it ended"
        async with client(setting.trusted, home.places.url) as http:
            url = f"https://localhost:{home.provider_port}/v1/chat/completions"
            answer = await http.post(url, json={"model": "gpt-5-nano", "messages": []})
        assert (answer.status_code, answer.content) == (200, GOOD.body)
    finally:
        process.send_signal(signal.SIGTERM)
        await process.communicate()

"""`account-pool check --try`: each credential is asked once, and none is shown."""

from __future__ import annotations

import asyncio
from contextlib import closing
from hashlib import sha256

import pytest

from account_pool.cli.main import run
from account_pool.cli.try_accounts import PROBES, verdict
from account_pool.core.credential import Secret
from account_pool.core.outcome import Outcome, OutcomeClass
from account_pool.providers.base import RequestHead, Route
from account_pool.providers.registry import BUILT_IN
from account_pool.store.sqlite import SqliteTokens
from account_pool.store.store import Tokens
from tests.scripts import openai
from tests.store.servers import new_pool
from tests.upstream.exchange import Reply, Request
from tests.upstream.replies import json_reply

#: Whose probe the pool itself would not serve, and why.
NOT_POOLED = {
    "openrouter": "its list of models answers anybody; the key's own page does not",
    "claude-code": "the pool serves Claude Code only",
    "gemini-cli": "the pool serves Gemini CLI only",
}


def test_every_provider_has_a_probe():
    assert set(PROBES) == set(BUILT_IN)


@pytest.mark.parametrize("name", sorted(set(PROBES) - set(NOT_POOLED)))
def test_a_probe_is_a_request_the_provider_knows(name):
    provider, probe = BUILT_IN[name], PROBES[name]
    path, _, query = probe.path.partition("?")
    host = probe.host or (provider.hosts[0].host if provider.hosts else "x.openai.azure.com")
    head = RequestHead(method=probe.method, host=host, port=443, path=path, query=query)
    assert provider.route(head) is Route.POOL


@pytest.mark.parametrize(
    ("cls", "said"),
    [
        (OutcomeClass.OK, "works"),
        (OutcomeClass.RATE_LIMIT, "limited"),
        (OutcomeClass.QUOTA, "limited"),
        (OutcomeClass.AUTH_INVALID, "refused"),
        (OutcomeClass.AUTH_EXPIRED, "refused"),
        (OutcomeClass.FORBIDDEN_ACCOUNT, "refused"),
        (OutcomeClass.REQUEST_ERROR, "unclear"),
        (OutcomeClass.SERVER_ERROR, "unclear"),
        (OutcomeClass.OVERLOADED, "unclear"),
    ],
)
def test_what_an_answer_says_of_the_credential(cls, said):
    assert verdict(Outcome(cls=cls)) == said


KEYS = {"fine": "sk-fake-fine-000", "spent": "sk-fake-spent-000", "bad": "sk-fake-bad-000"}


def models(request: Request) -> Reply:
    """Answer as a service with OpenAI's API does, by key."""
    assert (request.method, request.path) == ("GET", "/v1/models")
    if request.credential == KEYS["fine"]:
        return json_reply({"object": "list", "data": []})
    return openai.insufficient_quota() if request.credential == KEYS["spent"] else (
        openai.invalid_key()
    )  # fmt: skip


@pytest.fixture
def write(places, setting, monkeypatch):
    """Write an accounts file of services at these addresses, and trust the provider."""
    (places.confdir / "config.yaml").write_text(
        f"ssl_verify_upstream_trusted_ca: {setting.certificate.authority}\n"
    )
    # It must not go through the proxy of the environment, which may be our own.
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")

    def write(*accounts: tuple[str, str, str]) -> str:
        path = places.confdir / "accounts.yaml"
        path.touch(mode=0o600)
        text = "".join(
            f"  - {{provider: mine-{n}, label: {label}, token: {token}}}\n"
            for n, (label, token, _) in enumerate(accounts)
        )
        services = "".join(
            f"  mine-{n}: {{like: openai, hosts: ['{host}']}}\n"
            for n, (_, _, host) in enumerate(accounts)
        )
        path.write_text(f"accounts:\n{text}providers:\n{services}pool: {{state: 'memory:'}}\n")
        return str(path)

    return write


async def test_each_credential_is_asked_once_and_none_is_shown(provider, write, capsys):
    server = await provider(models)
    host = f"localhost:{server.port}"
    path = write(*((label, token, host) for label, token in KEYS.items()))
    assert await asyncio.to_thread(run, ["check", "--try", "--accounts-file", path]) == 1
    out, err = capsys.readouterr()
    rows = {line.split()[0]: line for line in out.splitlines()}
    assert "works" in rows["mine-0/fine"]
    assert "limited" in rows["mine-1/spent"]
    assert "insufficient_quota" in rows["mine-1/spent"]
    assert "refused" in rows["mine-2/bad"]
    assert "sk-fake" not in out + err
    assert server.journal.credentials == list(KEYS.values())


@pytest.mark.parametrize("config", ["config.yaml", "config.yml"])
async def test_all_is_well_is_exit_code_0_also_while_one_is_limited(
    provider, write, places, config
):
    (places.confdir / "config.yaml").rename(places.confdir / config)
    server = await provider(models)
    host = f"localhost:{server.port}"
    path = write(*((label, KEYS[label], host) for label in ("fine", "spent")))
    assert await asyncio.to_thread(run, ["check", "--try", "--accounts-file", path]) == 0


def test_a_host_that_is_not_there_and_a_token_that_cannot_be_had(write, capsys):
    path = write(
        ("gone", KEYS["fine"], "127.0.0.1:9"), ("none", "{command: 'exit 3'}", "127.0.0.1:9")
    )
    assert run(["check", "--try", "--accounts-file", path]) == 1
    out = capsys.readouterr().out
    assert "unreachable" in out
    assert "no credential" in out
    assert "sk-fake" not in out


def test_a_wrong_file_is_told_as_without_try(write, capsys):
    assert run(["check", "--try", "--accounts-file", "missing.yaml"]) == 1
    assert "missing.yaml" in capsys.readouterr().err


def test_an_engine_that_mitmproxys_configuration_names(write, places, capsys, monkeypatch):
    path = write(("one", KEYS["fine"], "127.0.0.1:9"))
    with (places.confdir / "config.yaml").open("a") as file:
        file.write("pool_state: rediss://pool:fake-hunter2@db.example/\n")
    assert run(["check", "--try", "--accounts-file", path]) == 1
    said = "".join(capsys.readouterr())
    assert "password=env:VARIABLE" in said
    assert "hunter2" not in said


def test_logins_of_the_file_are_moved_to_an_engine_and_that_is_said(
    places, tmp_path, capsys, shared_servers
):
    login = "mine-0:" + sha256(b"rt-fake-0").hexdigest()
    state = places.confdir / "account-pool.sqlite"
    with closing(SqliteTokens(state)) as tokens:
        tokens.save(login, Tokens(access=Secret("at-fake-1"), refresh=Secret("rt-fake-1")))
    key = tmp_path / "key"
    key.write_text("ab" * 32)
    url = f"{shared_servers('redis').url(new_pool())}&sealing_key=file:{key}"
    path = tmp_path / "mine.yaml"
    path.touch(mode=0o600)
    path.write_text(
        "accounts:\n"
        "  - provider: mine-0\n"
        "    label: one\n"
        "    token: {oauth: {refresh_token: rt-fake-0, token_url: 'http://127.0.0.1:9/', "
        "client_id: me}}\n"
        "providers: {mine-0: {like: openai, hosts: ['127.0.0.1:9']}}\n"
        f"pool: {{state: '{url}'}}\n"
    )
    named = ["--accounts-file", str(path)]
    run(["check", *named])
    said = "".join(capsys.readouterr())
    assert f"1 login is in {state} and not in the engine yet" in said
    run(["check", "--try", *named])
    out, err = capsys.readouterr()
    assert f"account-pool: 1 login was taken over from {state}" in err
    # It has a token to ask with, though none is written down.
    assert "unreachable" in out and "-fake-" not in out + err
    run(["doctor", "-p", str(places.port), *named])
    assert str(state) not in capsys.readouterr().out
    # The file again.
    path.write_text(path.read_text().partition("pool:")[0])
    for command in (["check"], ["doctor", "-p", str(places.port)]):
        run([*command, *named])
        said = "".join(capsys.readouterr())
        assert f"1 login is in {state}, but the newest tokens are in the state engine" in said
    run(["list", *named])
    out, err = capsys.readouterr()
    assert "mine-0/one" in out and "Traceback" not in err

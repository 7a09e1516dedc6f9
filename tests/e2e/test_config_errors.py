"""A wrong accounts.yaml stops the proxy before it serves; none at all does not."""

from __future__ import annotations

from tests.e2e.harness import CLIENT, TWO, account, chat, client
from tests.scripts import openai
from tests.upstream.replies import by_credential

GOOD = openai.chat_complete("Good morning")

BROKEN = """\
accounts:
  - provider: opnai
    label: work
    token: sk-fake-work-000
  - provider: openai
    label: Spare
    token: sk-fake-spare-000
    max_concurrent: -1
  - provider: openai
    label: spare
    token: "${A_VARIABLE"
    wieght: 2
"""


async def test_all_errors_are_named_at_once_and_nothing_is_served(setting):
    proxy = setting.prepare(BROKEN)
    assert await proxy.run_to_end() != 0
    for expected in ("opnai", "max_concurrent", "the name of a variable", "wieght", "spare"):
        assert expected in proxy.output
    assert "accounts.yaml" in proxy.output
    # Where: provider, max_concurrent, duplicate label, variable, unknown key.
    for line in (2, 8, 10, 11, 12):
        assert f":{line}" in proxy.output or f"line {line}" in proxy.output, proxy.output
    assert "Traceback" not in proxy.output
    assert "sk-fake-work-000" not in proxy.output


async def test_a_misspelt_key_and_a_vendors_name_are_one_line_each(setting):
    proxy = setting.prepare(
        "accounts:\n  - {provider: github, label: a, token: sk-fake-work-000}\n"
        "  - {provider: openai, lable: b, token: sk-fake-work-000}\n"
    )
    assert await proxy.run_to_end() != 0
    lines = [line for line in proxy.lines if "accounts.yaml:" in line]
    assert len(lines) == 2
    assert '"github" is not a provider; did you mean copilot' in lines[0]
    assert "lable: unknown key; did you mean label?" in lines[1]


async def test_a_file_that_is_not_yaml(setting):
    proxy = setting.prepare("accounts: [\n  - {provider: openai")
    assert await proxy.run_to_end() != 0
    assert "accounts.yaml" in proxy.output
    assert "Traceback" not in proxy.output


async def test_a_named_file_that_does_not_exist(setting):
    proxy = setting.prepare(None, options={"pool_accounts": "missing.yaml"})
    assert await proxy.run_to_end() != 0
    assert "missing.yaml" in proxy.output
    assert "Traceback" not in proxy.output


async def test_a_wrong_option_is_refused(setting):
    proxy = setting.prepare(TWO, options={"pool_strategy": "random"})
    assert await proxy.run_to_end() != 0
    assert "pool_strategy" in proxy.output
    assert "Traceback" not in proxy.output


async def test_printing_every_byte_is_refused(setting):
    """mitmproxy's proxy_debug prints what is sent, credentials included."""
    proxy = setting.prepare(TWO, options={"proxy_debug": "true"})
    assert await proxy.run_to_end() != 0
    assert "proxy_debug" in proxy.output


async def test_without_accounts_traffic_passes_untouched_and_one_line_says_what_to_do(
    provider, pool_proxy, setting
):
    upstream = await provider(by_credential({CLIENT: GOOD}))
    proxy = await pool_proxy(None, provider=upstream)
    # Untouched: not even decrypted.
    async with client(setting.certificate.authority, proxy.url) as http:
        answer = await http.request(**chat(stream=False))
    assert answer.content == GOOD.body
    assert upstream.journal.credentials == [CLIENT]
    lines = [line for line in proxy.lines if "accounts.yaml" in line]
    assert len(lines) == 1


async def test_the_usual_environment_variable_is_an_account(provider, pool_proxy):
    upstream = await provider(by_credential({"sk-fake-environment-000": GOOD}))
    proxy = await pool_proxy(
        None, provider=upstream, env={"OPENAI_API_KEY": "sk-fake-environment-000"}
    )
    async with proxy.client() as http:
        answer = await http.request(**chat(stream=False))
    assert answer.status_code == 200
    assert upstream.journal.credentials == ["sk-fake-environment-000"]


async def test_every_kind_of_source(provider, pool_proxy, tmp_path):
    """value, ${ENV}, env, file + pointer, command: all end on the wire, none in the log."""
    (tmp_path / "login.json").touch(mode=0o600)
    (tmp_path / "login.json").write_text('{"login": {"token": "sk-fake-file-000"}}')
    sources = {
        "value": "sk-fake-value-000",
        "interpolated": "${FAKE_KEY}",
        "env": {"env": "FAKE_KEY_TOO"},
        "file": {"file": str(tmp_path / "login.json"), "pointer": "/login/token"},
        "command": {"command": "echo sk-fake-command-000"},
    }
    names = ("value", "interpolated", "env", "file", "command")
    upstream = await provider(by_credential({f"sk-fake-{name}-000": GOOD for name in names}))
    proxy = await pool_proxy(
        [account(label) | {"token": token} for label, token in sources.items()],
        provider=upstream,
        options={"pool_strategy": "round-robin"},
        env={"FAKE_KEY": "sk-fake-interpolated-000", "FAKE_KEY_TOO": "sk-fake-env-000"},
    )
    async with proxy.client() as http:
        for _ in names:
            assert (await http.request(**chat(stream=False))).status_code == 200
    assert set(upstream.journal.credentials) == {f"sk-fake-{name}-000" for name in names}

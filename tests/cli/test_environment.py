"""What a tool gets in its environment, and the lines of `account-pool env` for a shell."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from account_pool.cli.arguments import Shell
from account_pool.cli.environment import (
    ALL_VARIABLES,
    BUNDLE_VARIABLES,
    TOOLS,
    Trust,
    detect,
    for_any_program,
    hint,
    is_proxy,
    missing,
    named,
    placeholders,
    proxy_url,
    quote,
    set_lines,
    tool_of,
    unset_lines,
    variables,
    without_hosts,
    without_own_proxy,
)
from account_pool.providers.base import HostRule
from account_pool.providers.registry import BUILT_IN
from tests.patience import tries

# -- Which variables point a tool at the proxy, and which keys it starts with.

URL = "http://127.0.0.1:8080"
TRUST = Trust(bundle=Path("/home/me/bundle.pem"), extra=Path("/home/me/mitmproxy.pem"))
OPENAI = [HostRule("api.openai.com")]
COPILOT = [HostRule("githubcopilot.com", subdomains=True)]


def test_every_ecosystem_gets_its_own_variable():
    chosen = variables(URL, TRUST, OPENAI, {})
    assert chosen["HTTPS_PROXY"] == chosen["https_proxy"] == URL
    assert {chosen[name] for name in BUNDLE_VARIABLES} == {"/home/me/bundle.pem"}
    # These add to what is trusted.
    assert chosen["NODE_EXTRA_CA_CERTS"] == chosen["DENO_CERT"] == "/home/me/mitmproxy.pem"
    assert chosen["NODE_USE_ENV_PROXY"] == "1"
    assert set(chosen) <= set(ALL_VARIABLES)


def test_plain_http_is_left_alone():
    assert not {"HTTP_PROXY", "http_proxy", "ALL_PROXY"} & set(variables(URL, TRUST, OPENAI, {}))


@pytest.mark.parametrize(
    ("no_proxy", "hosts", "left"),
    [
        ("localhost,127.0.0.1", OPENAI, "localhost,127.0.0.1"),
        ("localhost, api.openai.com ,corp", OPENAI, "localhost,corp"),
        ("openai.com", OPENAI, ""),
        (".openai.com", OPENAI, ""),
        ("*.openai.com", OPENAI, ""),
        ("API.OpenAI.com:443", OPENAI, ""),
        ("notopenai.com", OPENAI, "notopenai.com"),
        ("com", OPENAI, ""),
        ("*", OPENAI, ""),
        ("*", [], "*"),
        ("x.githubcopilot.com,localhost", COPILOT, "localhost"),
        ("githubcopilot.com", COPILOT, ""),
        ("[::1]:9443,x", [HostRule("::1", 9443)], "x"),
        ("::1", [HostRule("::1")], ""),
        ("", OPENAI, ""),
    ],
)
def test_no_proxy_does_not_lead_round_the_pool(no_proxy, hosts, left):
    assert without_hosts(no_proxy, hosts) == left


def test_no_proxy_is_only_touched_where_it_must_be():
    present = {"NO_PROXY": "localhost", "no_proxy": "api.openai.com,localhost"}
    chosen = variables(URL, TRUST, OPENAI, present)
    assert "NO_PROXY" not in chosen
    assert chosen["no_proxy"] == "localhost"


@pytest.mark.parametrize(
    ("command", "tool"),
    [
        ("claude", "claude"),
        ("/usr/local/bin/claude", "claude"),
        (r"C:\npm\codex.cmd", "codex"),
        ("gemini.exe", "gemini"),
        ("python", None),
        ("claude-something", None),
    ],
)
def test_tools_are_known_by_their_command(command, tool):
    assert tool_of(command) == tool


@pytest.mark.parametrize(
    ("tool", "providers", "present", "chosen"),
    [
        ("claude", {"claude-code", "anthropic"}, {}, {"CLAUDE_CODE_OAUTH_TOKEN"}),
        ("claude", {"anthropic"}, {}, {"ANTHROPIC_API_KEY"}),
        ("claude", {"openai"}, {}, set()),
        ("claude", {"anthropic"}, {"ANTHROPIC_AUTH_TOKEN": "sk-fake"}, set()),
        ("claude", {"anthropic"}, {"ANTHROPIC_API_KEY": ""}, {"ANTHROPIC_API_KEY"}),
        ("codex", {"openai"}, {}, {"OPENAI_API_KEY", "CODEX_API_KEY"}),
        ("codex", {"codex"}, {}, set()),
        ("gemini", {"gemini"}, {}, {"GEMINI_API_KEY"}),
        ("gemini", {"gemini"}, {"GOOGLE_API_KEY": "sk-fake"}, set()),
        (
            "gemini",
            {"gemini", "gemini-cli"},
            {},
            {"GOOGLE_GENAI_USE_GCA", "GOOGLE_CLOUD_ACCESS_TOKEN"},
        ),
        ("copilot", {"copilot"}, {}, {"COPILOT_GITHUB_TOKEN"}),
        ("copilot", {"copilot"}, {"GH_TOKEN": "sk-fake"}, set()),
        (
            "opencode",
            {"openai", "anthropic", "groq"},
            {"OPENAI_API_KEY": "sk-fake"},
            {"ANTHROPIC_API_KEY", "GROQ_API_KEY"},
        ),
    ],
)
def test_a_tool_gets_a_key_only_where_it_has_none(tool, providers, present, chosen):
    assert set(placeholders(tool, providers, present, logged_in=False)) == chosen


@pytest.mark.parametrize(
    ("providers", "present", "logged_in", "chosen", "left"),
    [
        ({"openai"}, {}, (), {"OPENAI_API_KEY"}, []),
        ({"openai", "groq"}, {"OPENAI_API_KEY": "sk-fake"}, (), {"GROQ_API_KEY"}, []),
        ({"openai"}, {"CODEX_API_KEY": "sk-fake"}, (), set(), []),
        ({"gemini"}, {"GOOGLE_API_KEY": "sk-fake"}, (), set(), []),
        ({"together"}, {"TOGETHERAI_API_KEY": "sk-fake"}, (), set(), []),
        # Claude Code would take them instead of its login.
        ({"anthropic", "openai"}, {}, ("claude",), {"OPENAI_API_KEY"}, ["ANTHROPIC_API_KEY"]),
        ({"claude-code"}, {"ANTHROPIC_API_KEY": "sk-fake"}, (), set(), []),
        # GITHUB_TOKEN belongs to gh, git and others too.
        ({"copilot"}, {}, (), {"COPILOT_GITHUB_TOKEN"}, []),
        ({"copilot"}, {"GH_TOKEN": "gho_fake"}, (), set(), []),
        ({"azure", "codex", "my-own"}, {}, (), set(), []),
    ],
)
def test_any_program_gets_a_key_for_each_provider_that_has_none(
    providers, present, logged_in, chosen, left
):
    keys, without = for_any_program(sorted(providers), present, logged_in)
    assert (set(keys), without) == (chosen, left)
    assert not keys.keys() & present.keys()


@pytest.mark.parametrize(
    ("tool", "providers", "why"),
    [
        ("claude", {"openai"}, "no account for claude: it is served by claude-code and anthropic"),
        ("codex", {"codex"}, "codex may have a login in the keychain"),
        # These may serve it.
        ("claude", {"openai", "my-gateway"}, None),
        ("opencode", {"mistral"}, None),
    ],
)
def test_what_a_tool_lacks_is_said(tool, providers, why):
    told = missing(tool, providers)
    assert told is None if why is None else why in told


@pytest.mark.parametrize("tool", TOOLS)
def test_a_tool_that_is_logged_in_keeps_its_login(tool):
    assert placeholders(tool, set(BUILT_IN), {}, logged_in=True) == {}


@pytest.mark.parametrize("tool", TOOLS)
def test_a_placeholder_is_of_the_kind_its_account_has(tool):
    """`claude` tells a subscription from a key by how it begins, and so does the pool."""
    for provider, needed in TOOLS[tool].needs.items():
        for value in needed.values():
            assert BUILT_IN[provider].misplaced(value) is None


def test_a_proxy_is_the_same_by_whatever_user_name():
    own = "http://127.0.0.1:8080"
    url = proxy_url(own, ["openai/work", "anthropic/me"])
    assert url == "http://openai%2Fwork%2Canthropic%2Fme:pool@127.0.0.1:8080"
    assert proxy_url(own, []) == own
    assert is_proxy(url, own)
    assert is_proxy(f"{own}/", own)
    assert not is_proxy("http://127.0.0.1:8081", own)
    assert not is_proxy("http://127.0.0.1:8080@proxy.example.com", own)
    assert without_own_proxy({"HTTPS_PROXY": url, "https_proxy": "http://p:1"}, own) == {
        "https_proxy": "http://p:1"
    }


# -- What a shell evaluates is what was meant, whatever is in it.

#: How each shell runs a script and prints a variable without changing it.
RUN = {
    Shell.BASH: ["bash", "-c"],
    Shell.ZSH: ["zsh", "-fc"],
    Shell.FISH: ["fish", "--no-config", "-c"],
    Shell.POWERSHELL: ["pwsh", "-NoProfile", "-NonInteractive", "-Command"],
}
PRINT = {
    Shell.BASH: "printenv ACCOUNT_POOL_TEST",
    Shell.ZSH: "printenv ACCOUNT_POOL_TEST",
    Shell.FISH: "printenv ACCOUNT_POOL_TEST",
    Shell.POWERSHELL: "[Console]::Out.Write($env:ACCOUNT_POOL_TEST)",
}
HARD = ["", "a b", "it's", '"', "$HOME `id` $(id)", "\\", "\\'", "a\nb", "ü’", "!x", "#", "~", "*"]  # noqa: RUF001


def real(shell: Shell) -> list[str]:
    if shutil.which(RUN[shell][0]) is None:
        pytest.skip(f"{shell} is not installed")
    return RUN[shell]


def shown(shell: Shell, value: str) -> str:
    lines = [*set_lines(shell, {"ACCOUNT_POOL_TEST": value}), PRINT[shell]]
    command = [*real(shell), "\n".join(lines)]
    out = subprocess.run(command, capture_output=True, check=True).stdout.decode()
    return out if shell is Shell.POWERSHELL else out.removesuffix("\n")


@pytest.mark.parametrize("shell", Shell)
def test_values_arrive_in_the_shell_as_they_are(shell):
    for value in filter(None, HARD):
        assert shown(shell, value) == value


@settings(max_examples=tries(40))
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), max_size=20))
def test_anything_can_be_quoted_for_bash(values):
    words = " ".join(quote(Shell.BASH, value) for value in values)
    script = f"for word in {words}; do printf '%s\\0' \"$word\"; done"
    out = subprocess.run([*real(Shell.BASH), script], capture_output=True, check=True).stdout
    assert out.decode().split("\0")[:-1] == values


@given(st.text())
def test_nothing_ends_a_quotation_of_fish_or_powershell(text):
    """Read back by the rules of each: fish knows \\\\ and \\', PowerShell doubles quotes."""
    inside = quote(Shell.FISH, text)[1:-1]
    assert "'" not in inside.replace("\\\\", "").replace("\\'", "")
    assert inside.replace("\\\\", "\0").replace("\\'", "'").replace("\0", "\\") == text.replace(
        "\0", "\\"
    )
    inside = quote(Shell.POWERSHELL, text)[1:-1]
    for mark in "'‘’‚‛":  # noqa: RUF001
        assert mark not in inside.replace(mark * 2, "")


@pytest.mark.parametrize("shell", Shell)
def test_unset_removes_it_and_does_not_mind_what_is_not_there(shell):
    lines = set_lines(shell, {"ACCOUNT_POOL_TEST": "x"})
    lines += unset_lines(shell, ["ACCOUNT_POOL_TEST", "ACCOUNT_POOL_OTHER"])
    command = [*real(shell), "\n".join(lines)]
    subprocess.run(command, check=True)
    command[-1] += "\n" + PRINT[shell]
    assert subprocess.run(command, capture_output=True, check=False).stdout == b""


@pytest.mark.parametrize(
    ("name", "shell"),
    [
        ("/bin/bash", Shell.BASH),
        ("-zsh", Shell.ZSH),
        ("/usr/bin/fish", Shell.FISH),
        ("sh", Shell.BASH),
        (r"C:\Windows\PowerShell.EXE", Shell.POWERSHELL),
        ("pwsh", Shell.POWERSHELL),
        ("tcsh", None),
        ("", None),
    ],
)
def test_shells_are_known_by_name(name, shell):
    assert named(name) is shell


def test_the_usual_shell_serves_where_none_is_seen(monkeypatch):
    import shellingham

    def hidden() -> None:
        raise shellingham.ShellDetectionFailure

    monkeypatch.setattr(shellingham, "detect_shell", hidden)
    assert detect({"SHELL": "/usr/bin/fish"}) is Shell.FISH
    assert detect({}) in (Shell.BASH, Shell.POWERSHELL)
    monkeypatch.setattr(shellingham, "detect_shell", lambda: ("zsh", "/bin/zsh"))
    assert detect({"SHELL": "/usr/bin/fish"}) is Shell.ZSH


@pytest.mark.parametrize("shell", Shell)
def test_the_hint_is_a_comment(shell):
    assert hint(shell, "account-pool env").startswith("# ")

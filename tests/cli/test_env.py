"""What a shell evaluates is what was meant, whatever is in it."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from account_pool.cli.env import Shell, detect, hint, named, quote, set_lines, unset_lines
from tests.patience import tries

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

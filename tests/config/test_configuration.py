"""The accounts there are without a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from account_pool.config.configuration import Config, from_environment


def found(
    environ: Mapping[str, str],
    *directories: Path,
    github_token: str | None = None,
    account_type: str | None = None,
) -> Config:
    return from_environment(
        environ, github_token=github_token, account_type=account_type, directories=directories
    )


def tokens(config: Config) -> dict[str, tuple[str, str]]:
    """Return (where it is from, token) by account."""
    return {
        str(entry.account.key): (entry.source.describe(), reading.secret.reveal())
        for entry in config.accounts
        if (reading := entry.source.read_now())
    }


def test_nothing_at_all_is_no_account() -> None:
    config = found({})
    assert config.accounts == ()
    assert config.path is None
    assert config.options == {}
    assert "copilot" in config.exchanges


def test_one_account_per_provider_from_the_usual_variables() -> None:
    config = found({"OPENAI_API_KEY": "a", "ANTHROPIC_API_KEY": "b", "GEMINI_API_KEY": "c"})
    assert tokens(config) == {
        "openai/default": ("env OPENAI_API_KEY", "a"),
        "anthropic/default": ("env ANTHROPIC_API_KEY", "b"),
        "gemini/default": ("env GEMINI_API_KEY", "c"),
    }
    assert all(entry.line is None for entry in config.accounts)


def test_the_order_of_the_places_of_a_github_token(tmp_path: Path) -> None:
    (tmp_path / "github_token").write_text("ghu_file\n")
    (tmp_path / "github_token").chmod(0o600)
    environ = {"GH_TOKEN": "ghu_gh", "GITHUB_TOKEN": "ghu_github"}
    nowhere = tmp_path / "nowhere"
    key = "copilot/default"
    assert tokens(found(environ, tmp_path, github_token="ghu_$$opt")) == {
        key: ("pool_github_token", "ghu_$$opt")
    }
    assert tokens(found(environ, tmp_path)) == {key: ("env GITHUB_TOKEN", "ghu_github")}
    del environ["GITHUB_TOKEN"]
    assert tokens(found(environ, tmp_path)) == {key: ("env GH_TOKEN", "ghu_gh")}
    unnameable = Path("/" + "x" * 5000)
    assert tokens(found({"GH_TOKEN": ""}, nowhere, unnameable, tmp_path)) == {
        key: (f"file {tmp_path / 'github_token'}", "ghu_file")
    }


def test_the_account_type_is_for_copilot_only() -> None:
    config = found({"OPENAI_API_KEY": "a", "GH_TOKEN": "b"}, account_type="business")
    types = {entry.account.provider: entry.account.account_type for entry in config.accounts}
    assert types == {"openai": None, "copilot": "business"}


def test_unusable_credentials_are_accounts_too(tmp_path: Path) -> None:
    """What is wrong with them is their state: see test_review.py."""
    path = tmp_path / "github_token"
    path.write_text("ghu_file")
    path.chmod(0o644)
    config = found({"OPENAI_API_KEY": "sk-a b"}, tmp_path)
    assert [str(entry.account.key) for entry in config.accounts] == [
        "openai/default",
        "copilot/default",
    ]

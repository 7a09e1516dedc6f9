"""accounts.example.yaml is correct and complete."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from account_pool.config.configuration import Config
from account_pool.config.loader import load
from account_pool.config.options import POOL_OPTIONS
from account_pool.config.shapes import json_schema
from account_pool.core.outcome import OutcomeClass, Scope, UpstreamResponse
from account_pool.credentials.oauth import KEYS as OAUTH_KEYS


def _key(name: str) -> str:
    return f"{name}:"


EXAMPLE = Path(__file__).parent.parent / "accounts.example.yaml"


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Load the example in a home that has what it refers to."""
    files = {
        ".config/account-pool/anthropic.json": {"api_key": "from-a-file"},
        ".codex/auth.json": {"tokens": {"access_token": "of-codex", "account_id": "a"}},
        ".gemini/oauth_creds.json": {"access_token": "of-gemini", "expiry_date": 1796083200000},
    }
    for name, document in files.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True)
        file.touch(mode=0o600)
        file.write_text(json.dumps(document))
    environ = {"HOME": str(tmp_path)}
    names = (
        "OPENAI_API_KEY_WORK", "OPENAI_API_KEY_HOME", "GEMINI_API_KEY", "GATEWAY_KEY",
        "CODEX_REFRESH_TOKEN", "CODEX_ACCESS_TOKEN", "AZURE_KEY_WEST",
    )  # fmt: skip
    return load(EXAMPLE, environ | {name: f"value-of-{name}" for name in names})


def test_it_loads(config: Config) -> None:
    assert [str(entry.account.key) for entry in config.accounts] == [
        "openai/work",
        "openai/home",
        "anthropic/work",
        "claude-code/max",
        "gemini/project-a",
        "copilot/me",
        "codex/plus",
        "codex/pro",
        "gemini-cli/private",
        "azure/west",
        "my-gateway/team",
    ]
    reading = config.accounts[2].source.read_now()
    assert reading is not None and reading.secret.reveal() == "from-a-file"


def test_its_provider_says_everything(config: Config) -> None:
    gateway = config.providers["my-gateway"]
    account = config.accounts[-1].account
    assert account.companions == {"host": "llm.example.com", "workspace": "w-1234"}
    payload = {"error": {"code": "quota_used_up", "message": "All used up.", "model": "m"}}
    headers = {"x-limit-kind": "day", "x-limit-reset": "1796083260"}
    told = gateway.classify(
        UpstreamResponse(status=429, headers=headers, payload=payload, wall_now=1796083200.0)
    )
    assert (told.cls, told.scope, told.cooldown_s, told.model) == (
        OutcomeClass.QUOTA,
        Scope.MODEL,
        60.0,
        "m",
    )


def test_its_options_are_the_defaults(config: Config) -> None:
    assert config.options == {o.name: o.default for o in POOL_OPTIONS if not o.not_in_file}


def test_it_shows_every_key() -> None:
    text = EXAMPLE.read_text()
    schema = json_schema()
    for shape in (schema, *schema["$defs"].values()):
        for key in shape["properties"]:
            assert f"{key}:" in text, key
    for form in ("env:", "file:", "pointer:", "command:", "${", "$$", *map(_key, OAUTH_KEYS)):
        assert form in text, form

"""accounts.example.yaml is correct and complete."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from account_pool.config import POOL_OPTIONS, Config, json_schema, load

EXAMPLE = Path(__file__).parent.parent / "accounts.example.yaml"


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Load the example in a home that has what it refers to."""
    secret = tmp_path / ".config" / "account-pool" / "anthropic.json"
    secret.parent.mkdir(parents=True)
    secret.write_text(json.dumps({"api_key": "from-a-file"}))
    secret.chmod(0o600)
    environ = {"HOME": str(tmp_path)}
    names = ("OPENAI_API_KEY_WORK", "OPENAI_API_KEY_HOME", "GEMINI_API_KEY", "GATEWAY_KEY")
    return load(EXAMPLE, environ | {name: f"value-of-{name}" for name in names})


def test_it_loads(config: Config) -> None:
    assert [str(entry.account.key) for entry in config.accounts] == [
        "openai/work",
        "openai/home",
        "anthropic/work",
        "gemini/project-a",
        "copilot/me",
        "my-gateway/team",
    ]
    secret = config.accounts[2].source.read_now()
    assert secret is not None and secret.reveal() == "from-a-file"


def test_its_options_are_the_defaults(config: Config) -> None:
    assert config.options == {o.name: o.default for o in POOL_OPTIONS if not o.not_in_file}


def test_it_shows_every_key() -> None:
    text = EXAMPLE.read_text()
    schema = json_schema()
    for shape in (schema, *schema["$defs"].values()):
        for key in shape["properties"]:
            assert f"{key}:" in text, key
    for form in ("env:", "file:", "pointer:", "command:", "${", "$$"):
        assert form in text, form

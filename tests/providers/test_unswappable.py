"""APIs that are recognised and left alone, and what the owner of an account is told."""

from pathlib import Path

import pytest

from account_pool.config.loader import load
from account_pool.config.problems import ConfigError
from account_pool.providers import unswappable


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("aiplatform.googleapis.com", "vertex"),
        ("europe-west4-aiplatform.googleapis.com", "vertex"),
        ("aiplatform.eu.rep.googleapis.com", "vertex"),
        ("BEDROCK-RUNTIME.us-east-1.amazonaws.com.", "bedrock"),
        ("bedrock-agent-runtime.eu-central-1.amazonaws.com", "bedrock"),
        ("bedrock-runtime-fips.us-gov-west-1.amazonaws.com", "bedrock"),
        ("bedrock-runtime.cn-north-1.amazonaws.com.cn", "bedrock"),
        ("bedrock-runtime.us-east-1.api.aws", "bedrock"),
        ("generativelanguage.googleapis.com", None),
        ("aiplatform.googleapis.com.example", None),
        ("x.bedrock-runtime.us-east-1.amazonaws.com", None),
        ("amazonaws.com", None),
        ("", None),
    ],
)
def test_hosts(host: str, name: str | None) -> None:
    found = unswappable.find(host)
    assert (found.name if found else None) == name


@pytest.mark.parametrize("name", ["vertex", "bedrock"])
def test_an_account_of_one_is_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    path = tmp_path / "accounts.yaml"
    path.write_text(f"accounts:\n  - {{provider: {name}, label: a, token: sk-fake-0}}\n")
    with pytest.raises(ConfigError) as caught:
        load(path, {})
    api = unswappable.named(name)
    assert api is not None
    assert f'"{name}" cannot be pooled: {api.why}; remove this account' in str(caught.value)

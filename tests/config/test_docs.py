"""docs/providers.md is true: its examples load, and the worked one does what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from account_pool.config.configuration import Config
from account_pool.config.loader import load
from account_pool.core.outcome import UpstreamResponse
from account_pool.providers.base import RequestHead, Route
from account_pool.providers.definition import CLASSES, SPELLINGS

TEXT = (Path(__file__).parents[2] / "docs" / "providers.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```yaml\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def loaded(directory: Path, text: str) -> Config:
    path = directory / "accounts.yaml"
    path.touch(mode=0o600)
    path.write_text(text)
    return load(path, {})


@pytest.mark.parametrize("text", EXAMPLES)
def test_examples_load(tmp_path, text):
    assert loaded(tmp_path, text).accounts


def test_the_worked_example(tmp_path):
    config = loaded(tmp_path, EXAMPLES[1])
    acme = config.providers["acme"]
    assert config.accounts[0].account.companions == {"workspace": "ws-1"}
    head = RequestHead(method="POST", host="api.acme.example", port=443, path="/v2/files")
    assert acme.route(head) is Route.PASS

    def told(status: int, headers: dict[str, str], body: object) -> tuple[object, ...]:
        answer = UpstreamResponse(
            status=status, headers=headers, payload=body, wall_now=1796083000.0
        )
        outcome = acme.classify(answer)
        return outcome.cls, outcome.scope, outcome.cooldown_s, outcome.model, outcome.signal

    limits = {"x-limit-scope": "model", "x-limit-wait": "1m30s"}
    assert told(429, limits, {"error": {"code": "slow_down", "model": "acme-1"}}) == (
        "rate_limit", "account+model", 90.0, "acme-1", "429 code=slow_down: accounts.yaml:13",
    )  # fmt: skip
    ends = {"x-period-ends": "1796083200000"}
    assert told(409, ends, {"error": "Period budget spent"})[:3] == ("quota", "account", 200.0)
    assert told(200, {}, {"code": 1302, "retry": 20})[:3] == ("rate_limit", "account", 20.0)
    assert told(503, {}, {})[0] == "overloaded"


def test_every_class_and_spelling_is_there():
    assert [word for word in (*CLASSES, *SPELLINGS) if f"`{word}`" not in TEXT] == []

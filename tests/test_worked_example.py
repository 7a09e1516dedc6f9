"""The provider that docs/adding-a-provider.md builds is one that works."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType

import pytest

from account_pool.cli import classify
from account_pool.providers.base import Provider, RequestHead, Route
from account_pool.providers.registry import BUILT_IN

TEXT = (Path(__file__).parent.parent / "docs" / "adding-a-provider.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture
def nimbus(monkeypatch: pytest.MonkeyPatch) -> Provider:
    [source] = blocks("python")
    module = ModuleType("nimbus")
    exec(compile(source, "nimbus", "exec"), module.__dict__)
    provider = module.NIMBUS
    monkeypatch.setattr(classify, "BUILT_IN", {**BUILT_IN, "nimbus": provider})
    return provider


def test_its_answers_mean_what_is_expected(nimbus: Provider) -> None:
    lines = blocks("json")[0].splitlines()
    assert len(lines) == 2
    for line in lines:
        expected = json.loads(line)["expected"]
        assert {key: classify.classify_line(line)[key] for key in expected} == expected


def test_it_pools_what_it_says(nimbus: Provider) -> None:
    def route(path: str) -> Route:
        return nimbus.route(RequestHead(method="POST", host="nimbus.example", port=443, path=path))

    assert route("/api/v1/chat/completions") is Route.POOL
    assert route("/api/v1/files") is Route.PASS

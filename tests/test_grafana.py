"""The dashboard for Grafana asks for nothing that `/metrics` does not tell."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from account_pool.admin import metrics
from account_pool.core.account import AccountKey
from account_pool.core.usage import Usage
from tests.proxy.helpers import service_of

DASHBOARD = json.loads((Path(__file__).parents[1] / "docs/grafana.json").read_text("utf-8"))
PANELS = {panel["title"]: panel for panel in DASHBOARD["panels"]}
EXPRESSIONS = [
    (panel["title"], target["expr"], target["legendFormat"])
    for panel in PANELS.values()
    for target in panel["targets"]
]
#: Those that this service has nothing to tell of, or not with these labels.
SELDOM = {
    "account_pool_headroom_ratio": {"account", "window"},
    "account_pool_attempts_total": {"account", "outcome"},
}


@pytest.fixture(scope="module")
def told() -> dict[str, set[str]]:
    """The labels of every metric, by name."""
    service = service_of("one")
    service.usages.count(AccountKey("openai", "one"), "gpt-5", Usage(1, 1, 1, 1), 0.0)
    service.measured.requests["openai", "served"] += 1
    service.measured.attempts["openai/one", "ok"] += 1
    service.measured.failovers["openai"] += 1
    service.measured.timings["openai"].overhead.observe(0.0)
    counter = SimpleNamespace(counts={("openai", "cooldown"): 1})
    text = metrics.written(list(metrics.read(service, counter))).decode()
    labels: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
    return labels | {name: labels.get(name, set()) | more for name, more in SELDOM.items()}


@pytest.mark.parametrize(("title", "expression", "legend"), EXPRESSIONS)
def test_every_expression_asks_for_what_is_told(told, title, expression, legend):
    names = re.findall(r"account_pool_\w+", expression)
    assert names
    assert set(names) <= told.keys()
    grouped = re.findall(r"by \(([^)]*)\)", expression)
    asked = {label.strip() for group in grouped for label in group.split(",")}
    asked |= set(re.findall(r"[{,](\w+)[=!]", expression))
    asked |= set(re.findall(r"\{\{(\w+)\}\}", legend))
    for name in names:
        assert asked <= told[name]


def test_every_metric_is_shown_but_those_for_other_uses(told):
    shown = " ".join(expression for _, expression, _ in EXPRESSIONS)
    others = {"account_pool_up", "account_pool_build_info", "account_pool_sessions"}
    others |= {"account_pool_cooling"}  # for alerts
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in told} - others
    assert {name for name in families if name not in shown} == set()


def test_parentheses_are_closed():
    for _, expression, _ in EXPRESSIONS:
        for opening, closing in ("()", "[]", "{}"):
            assert expression.count(opening) == expression.count(closing)


def test_panels_lie_side_by_side():
    assert len({panel["id"] for panel in PANELS.values()}) == len(DASHBOARD["panels"])
    for one, other in itertools.combinations([p["gridPos"] for p in PANELS.values()], 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below


def test_it_names_no_data_source_of_anybody():
    [source] = DASHBOARD["templating"]["list"]
    for panel in PANELS.values():
        assert panel["datasource"]["uid"] == f"${{{source['name']}}}"

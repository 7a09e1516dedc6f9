"""The dashboard for Grafana and the alert rules ask for nothing that `/metrics` does not tell."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from account_pool.admin import metrics
from account_pool.core.account import AccountKey
from account_pool.core.usage import Usage
from tests.proxy.helpers import service_of

ROOT = Path(__file__).parents[1]
DASHBOARD = json.loads((ROOT / "docs/grafana.json").read_text("utf-8"))
PANELS = {panel["title"]: panel for panel in DASHBOARD["panels"]}
EXPRESSIONS = [
    (panel["title"], target["expr"], target["legendFormat"])
    for panel in PANELS.values()
    for target in panel["targets"]
]
#: Those that this service has nothing to tell of, or not with these labels.
SELDOM = {
    "account_pool_headroom_ratio": {"account", "window", "model"},
    "account_pool_attempts_total": {"account", "outcome"},
}
#: Only Linux has them.
OF_PROCESS = ("cpu_seconds_total", "resident_memory_bytes", "open_fds", "max_fds",
    "start_time_seconds", "virtual_memory_bytes")  # fmt: skip
#: What Prometheus adds to everything that it reads.
SCRAPED = {"instance"}
RULES = ROOT / "docs/alerts.yaml"
ALERTS = {rule["alert"]: rule for rule in yaml.safe_load(RULES.read_text())["groups"][0]["rules"]}
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="no promtool (Debian: prometheus)")
NAME = re.compile(r"\b(?:account_pool|process)_\w+")


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
    cost = {"cost_usd": 1.0, "saved_usd": 1.0, "premium_requests": 1.0}
    families = metrics.costs({("2026-11-29", "openai/one", "gpt-5"): cost})
    text = metrics.written([*metrics.read(service, counter), *families]).decode()
    labels: dict[str, set[str]] = {f"process_{name}": set() for name in OF_PROCESS}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
    return labels | {name: labels.get(name, set()) | more for name, more in SELDOM.items()}


@pytest.mark.parametrize(("title", "expression", "legend"), EXPRESSIONS)
def test_every_expression_asks_for_what_is_told(told, title, expression, legend):
    names = NAME.findall(expression)
    assert names
    assert set(names) <= told.keys()
    grouped = re.findall(r"by \(([^)]*)\)", expression)
    asked = {label.strip() for group in grouped for label in group.split(",")}
    asked |= set(re.findall(r"[{,](\w+)[=!]", expression))
    asked |= set(re.findall(r"\{\{(\w+)\}\}", legend))
    for name in names:
        assert asked <= told[name] | SCRAPED


def test_every_metric_is_shown_but_those_for_other_uses(told):
    shown = " ".join(expression for _, expression, _ in EXPRESSIONS)
    others = {"account_pool_up", "account_pool_build_info", "account_pool_sessions"}
    others |= {"account_pool_cooling"}  # for alerts
    others |= {"account_pool_state_in_memory", "process_start_time_seconds"}  # annotations
    others |= {"process_virtual_memory_bytes"}
    others |= {"account_pool_state_lag_seconds"}  # of several proxies
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
    source, *variables = DASHBOARD["templating"]["list"]
    for item in (*PANELS.values(), *variables, *DASHBOARD["annotations"]["list"]):
        assert item["datasource"]["uid"] == f"${{{source['name']}}}"


def test_panels_and_annotations_follow_the_variables():
    assert [v["name"] for v in DASHBOARD["templating"]["list"][1:]] == ["instance", "provider"]
    notes = [note["expr"] for note in DASHBOARD["annotations"]["list"]]
    for expression in [*(e for _, e, _ in EXPRESSIONS), *notes]:
        count = len(NAME.findall(expression))
        assert expression.count('instance=~"$instance"') == count
        of_proxy = ("process_", "account_pool_waiting", "account_pool_prox")
        if not any(name in expression for name in of_proxy):
            assert expression.count('=~"$provider') == count or "in_memory" in expression


@pytest.mark.parametrize("name", ALERTS)
def test_every_rule_asks_for_what_is_told(told, name):
    names = NAME.findall(ALERTS[name]["expr"])
    assert names
    assert set(names) <= told.keys()


@needs_promtool
def test_promtool_accepts_the_rules():
    done = subprocess.run(
        [PROMTOOL, "check", "rules", RULES], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_rules_fire_when_they_should(tmp_path):
    def series(name, values):
        return {"series": name, "values": values}

    def fires(alert, at, **labels):
        severity = ALERTS[alert]["labels"]["severity"]
        summary = ALERTS[alert]["annotations"]["summary"]
        for label, value in labels.items():
            summary = summary.replace(f"{{{{ $labels.{label} }}}}", value)
        labels = {**labels, "instance": "a", "severity": severity}
        fired = [{"exp_labels": labels, "exp_annotations": {"summary": summary}}]
        return {"eval_time": at, "alertname": alert, "exp_alerts": fired if at != "1m" else []}

    state = 'account_pool_account_state{instance="a",account="openai/%s",state="%s"}'
    left = 'account_pool_headroom_ratio{instance="a",account="openai/one",window="%s",model="%s"}'
    proxies = 'account_pool_proxies{instance="a",state="%s"}'
    version = 'account_pool_proxy_info{instance="a",version="%s",proxy="%s",mitmproxy="12.3.1"}'
    document = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [
                    series('account_pool_up{instance="a"}', "1x20"),
                    series(state % ("one", "available"), "1 1 0x20"),
                    series(state % ("one", "disabled"), "0 0 1x20"),
                    series(state % ("two", "available"), "1 1 0x20"),
                    series(state % ("two", "full"), "0x20"),
                    series(left % ("5h", ""), "0.5 0.5 0.04x20"),
                    series(left % ("tokens", "gpt-5"), "0x20"),
                    series('account_pool_state_in_memory{instance="a"}', "0 0 1x20"),
                    series('account_pool_requests_total{instance="a",provider="openai",'
                           'result="refused"}', "0 0 0+5x20"),
                    series(proxies % "running", "3 3 1x20"),
                    series(proxies % "gone", "0 0 2x9 0x10"),
                    series(version % ("1.0", "a"), "1x40"),
                    series(version % ("1.0", "b"), "1x40"),
                    series(version % ("1.1", "c"), "_ _ 1x40"),
                ],
                "alert_rule_test": [
                    fires("AccountDisabled", at, account="openai/one", state="disabled")
                    for at in ("1m", "5m")
                ] + [
                    fires("ProviderCannotServe", at, provider="openai") for at in ("1m", "5m")
                ] + [
                    fires("HeadroomLow", at, account="openai/one", window="5h")
                    for at in ("1m", "9m")
                ] + [
                    fires("StateInMemory", at) for at in ("1m", "9m")
                ] + [
                    fires("RequestsRefused", at, provider="openai") for at in ("1m", "12m")
                ] + [
                    fires("ProxyGone", at, state="gone") for at in ("1m", "5m")
                ] + [
                    fires("ProxyAlone", at, state="running") for at in ("1m", "9m")
                ] + [
                    fires("ProxiesOfDifferentVersions", at) for at in ("1m", "40m")
                ],
            }
        ],
    }  # fmt: skip
    path = tmp_path / "test.yaml"
    path.write_text(json.dumps(document))
    done = subprocess.run(
        [PROMTOOL, "test", "rules", path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr

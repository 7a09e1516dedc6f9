"""Workflows, issue forms and hooks: GitHub reports a mistake only after it was pushed."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
GITHUB = ROOT / ".github"
FORMS = sorted((GITHUB / "ISSUE_TEMPLATE").glob("[!c]*.yml"))
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
YAMLS = [*GITHUB.rglob("*.yml"), *ROOT.glob("*.yaml"), *ROOT.glob(".*.yaml")]


def read(path: Path) -> Any:
    return YAML(typ="safe").load(path)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", YAMLS, ids=name_of)
def test_it_is_yaml(path):
    """Duplicate keys are errors to this parser; to GitHub's, too."""
    assert isinstance(read(path), dict)


# -- workflows


def jobs() -> list[Any]:
    return [
        pytest.param(path, name, job, id=f"{path.stem}-{name}")
        for path in WORKFLOWS
        for name, job in read(path)["jobs"].items()
    ]


@pytest.mark.parametrize("path", WORKFLOWS, ids=name_of)
def test_a_workflow_has_no_permission_by_default(path):
    workflow = read(path)
    assert workflow["permissions"] in ({}, {"contents": "read"})
    for job in workflow["jobs"].values():
        needs = job.get("needs", [])
        needs = [needs] if isinstance(needs, str) else needs
        assert set(needs) <= workflow["jobs"].keys()


def test_only_the_publishing_job_can_identify_itself():
    """With `id-token` a job acts as the project: only the one that publishes has it."""
    with_it = [
        (path.stem, name)
        for path, name, job in (param.values for param in jobs())
        if "id-token" in job.get("permissions", {})
    ]
    assert with_it == [("release", "publish")]
    publish = read(GITHUB / "workflows" / "release.yml")["jobs"]["publish"]
    assert publish["environment"]["name"] == "pypi"
    # Nothing of the repository runs there, only published actions on what was built before.
    assert all("run" not in step for step in publish["steps"])
    assert set(publish["needs"]) == {"checks", "build"}


@pytest.mark.parametrize(("path", "name", "job"), jobs())
def test_a_job(path, name, job):
    if "uses" in job:
        assert (ROOT / job["uses"]).exists()
        assert "workflow_call" in read(ROOT / job["uses"])["on"]
        return
    assert job["timeout-minutes"] <= 60
    for step in job["steps"]:
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False
        # Text that others control (a branch's name, a title) must not become code.
        assert "${{" not in step.get("run", "")
        for script in re.findall(r"^\.\S+", step.get("run", ""), re.MULTILINE):
            assert os.access(ROOT / script, os.X_OK), script


@pytest.mark.parametrize("path", WORKFLOWS, ids=name_of)
def test_actions_are_pinned(path):
    """A tag can be moved; a comment says which one the hash was."""
    used = re.findall(r"uses: (\S+)(.*)", path.read_text(encoding="utf-8"))
    assert used
    for action, comment in used:
        if not action.startswith("./"):
            assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", action), action
            assert re.fullmatch(r" # v\d+\.\d+\.\d+", comment), action


def test_ci_runs_what_contributors_run():
    steps = read(GITHUB / "workflows" / "ci.yml")["jobs"]["checks"]["steps"]
    assert {"run": ".ci/run"} in steps
    each_week = read(GITHUB / "workflows" / "newest.yml")["jobs"]
    for part in ("fast-off", "coverage"):
        assert {"run": f".ci/run {part}"} in each_week[part]["steps"]
    assert set(each_week["report"]["needs"]) == each_week.keys() - {"report"}


# -- what people fill in


@pytest.mark.parametrize("path", FORMS, ids=name_of)
def test_a_form(path):
    form = read(path)
    assert form.keys() >= {"name", "description", "labels", "body"}
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    ids = [field["id"] for field in fields]
    assert len(set(ids)) == len(ids)
    assert all(field["attributes"]["label"] for field in fields)
    # A rendered text is shown as it is; an unrendered one may hide what somebody pasted.
    pasted = [f for f in fields if f["id"] in ("check", "status", "log", "response", "classify")]
    assert all("render" in field["attributes"] for field in pasted)


@pytest.mark.parametrize("name", ["bug", "response"])
def test_pasted_output_is_confirmed_to_hold_no_secret(name):
    last = read(GITHUB / "ISSUE_TEMPLATE" / f"{name}.yml")["body"][-1]
    assert last["type"] == "checkboxes"
    assert last["attributes"]["options"][0]["required"] is True


def test_dependabot_covers_every_ecosystem():
    updates = read(GITHUB / "dependabot.yml")["updates"]
    assert {update["package-ecosystem"] for update in updates} == {
        "pip",
        "github-actions",
        "docker",
    }


def test_hooks_run_the_installed_checkers():
    """Versions of their own would disagree with the tests about the same line."""
    [local] = [
        repo for repo in read(ROOT / ".pre-commit-config.yaml")["repos"] if repo["repo"] == "local"
    ]
    assert [hook["id"] for hook in local["hooks"]] == ["ruff-check", "ruff-format", "mypy"]
    assert all(hook["language"] == "system" for hook in local["hooks"])

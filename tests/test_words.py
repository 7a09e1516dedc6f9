"""What people read is plain English, in one vocabulary (docs/glossary.md).

Phrases that were wrong once, over the pages, the example, the strings of the package, the
help of its commands, and the dashboard.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "addon" / "account_pool"
#: Their docstrings are the help of commands.
HELP = {
    "cli/commands.py",
    "cli/account_commands.py",
    "proxy/commands.py",
}
#: The phrase, and what to write instead.
WRONG = {
    r"\bcools\b": "is on cooldown",
    r"\b(?:account|model|it|one) rests\b|\brests (?:for|until|one|the)\b": "is on cooldown",
    r"\bpass(?:es)? over the\b": "skips",
    r"\b(?:is|are|was|were) told\b|\btold to wait\b|\bas told by\b": "reported, reads",
    r"\btells (?:of|which|what|whose)\b": "reports",
    r"\ball there is\b": "everything",
    r"\b(?:is|are) there none\b": "if there is none",
    r"\b(?:is|are) warned of\b": "a warning about",
    r"\bstopped to be\b": "is no longer",
    r"\bin peace\b": "normally",
    r"\bin the dark\b": "with a dark theme",
    r"\bto be had\b": "available",
    r"\b(?:token|login) serves once\b": "works only once",
    r"\bunder way\b": "in flight",
    r"\bthe (?:newest|latest) first\b": "newest first",
}  # fmt: skip
PAGES = [
    *ROOT.glob("*.md"),
    *ROOT.glob("docs/*.md"),
    ROOT / "accounts.example.yaml",
    *PACKAGE.glob("admin/dashboard/*.html"),
    *PACKAGE.glob("admin/dashboard/*.js"),
]


def strings(path: Path) -> Iterator[tuple[int, str]]:
    """Return the strings of a module with their lines, without docstrings that nobody is shown."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    silent = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            shown = isinstance(node, ast.FunctionDef) and str(path.relative_to(PACKAGE)) in HELP
            if isinstance(first, ast.Expr) and not shown:
                silent.add(first.value)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in silent:
            yield node.lineno, node.value


def wrong(text: str) -> list[str]:
    return [
        f"{found[0]!r}: {instead}"
        for phrase, instead in WRONG.items()
        if (found := re.search(phrase, " ".join(text.split()), re.IGNORECASE))
    ]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_pages(path):
    text = path.read_text(encoding="utf-8")
    if path.name == "CHANGELOG.md":
        # What has been released is as it was.
        text = text.split("## [0.1.0]")[0]
    assert wrong(text) == []


def test_the_package():
    found = {
        f"{path.relative_to(ROOT)}:{line}": words
        for path in sorted(PACKAGE.rglob("*.py"))
        for line, text in strings(path)
        if (words := wrong(text))
    }
    assert found == {}


def test_it_finds_them():
    assert wrong("a 429, cools 38 s") == ["'cools': is on cooldown"]
    assert wrong("its requests end\nin peace")
    assert not wrong("told_s: 3, cooling, cooling_down")

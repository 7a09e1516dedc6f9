"""The documentation as a site: each page has a place, each link a target; and the recording."""

from __future__ import annotations

import re
import subprocess
import sys
from html import unescape
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from docs.recording import PICTURE, drawn, record_demo

ROOT = Path(__file__).parent.parent


def pages_of(entries: list) -> list[str]:
    found = []
    for entry in entries:
        value = next(iter(entry.values())) if isinstance(entry, dict) else entry
        found += pages_of(value) if isinstance(value, list) else [value]
    return found


def test_each_page_has_a_place_in_it():
    listed = pages_of(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    assert {path.name for path in ROOT.glob("docs/*.md")} <= set(listed)
    assert len(listed) == len(set(listed))


@pytest.mark.skipif(find_spec("mkdocs") is None, reason="mkdocs is not installed")
def test_it_is_built_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = {
        str(path.relative_to(tmp_path)): path.read_text(encoding="utf-8")
        for path in tmp_path.rglob("*.html")
    }
    assert "requests/index.html" in pages and "benchmarks/index.html" in pages
    for name, page in pages.items():
        loaded = re.findall(r"<(?:script|img|iframe|source)[^>]*\ssrc=\"?([^\s\">]+)", page)
        loaded += re.findall(
            r"<link[^>]*rel=\"?(?:stylesheet|preload)[^>]*href=\"?([^\s\">]+)", page
        )
        assert loaded, name
        assert not [url for url in loaded if re.match(r"(https?:)?//", url)], name
    # Read from one page: what was written for GitHub leads to pages of the site.
    assert 'href="install/"' in pages["index.html"]
    assert "/blob/main/accounts.example.yaml" in pages["accounts/index.html"]


def shown(svg: str) -> str:
    """Return the words of a picture; what differs from run to run is #."""
    rows = re.findall(r"<text class=\"[^\"]*line\"[^>]*>(.*?)</text>", svg)
    return re.sub(r"[\d]+", "#", " ".join(" ".join(map(unescape, rows)).split()))


@pytest.mark.skipif(
    not Path(sys.executable).with_name("account-pool").exists(),
    reason="the package is not installed",
)
def test_the_picture_shows_the_demo_as_it_is():
    """`python docs/recording.py` makes it anew."""
    now = shown(drawn(record_demo(), "account-pool demo"))
    assert "on cooldown for" in now
    kept = PICTURE.read_text(encoding="utf-8")
    # Two lines of two processes may come in either order, and waiting takes seconds or minutes.
    assert sorted(shown(kept).split()) == sorted(now.split())
    assert str(ROOT) not in kept
    assert "animation-delay" in kept

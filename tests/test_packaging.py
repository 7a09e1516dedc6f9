"""What is published: the sdist, the wheel built from it, the page PyPI makes of README.md."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import pytest
import readme_renderer.markdown
from packaging.metadata import Metadata

from account_pool import __version__

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REPOSITORY = PROJECT["urls"]["Homepage"]
RAW = REPOSITORY.replace("https://github.com", "https://raw.githubusercontent.com")
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def build(source: Path, target: str, into: Path) -> Path:
    """Build as `[build-system]` says, with the packages that are installed here."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(into)]
    # A hook's warnings are ours to see; PYTHONPATH would shadow what hatchling imports.
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=source, env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    [built] = into.iterdir()
    return built


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """Return where the sdist was unpacked."""
    archive = build(ROOT, "sdist", tmp_path_factory.mktemp("sdist"))
    unpacked = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(archive) as tar:
        # Older patch versions of Python 3.11 know no filter.
        safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        tar.extractall(unpacked, **safely)
    return unpacked / archive.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    """Return the wheel, made as pip makes it: from the sdist, not from the checkout."""
    return zipfile.ZipFile(build(sdist, "wheel", tmp_path_factory.mktemp("wheel")))


def test_the_functions_of_the_state_engine_are_in_the_wheel(wheel):
    folder = "addon/account_pool/store/fleet"
    files = [path.relative_to(ROOT / "addon") for path in (ROOT / folder).rglob("*.lua")]
    assert len(files) > 1
    assert {str(path) for path in files} <= set(wheel.namelist())


def text_of(wheel: zipfile.ZipFile, name: str) -> str:
    return wheel.read(f"mitmproxy_account_pool-{__version__}.dist-info/{name}").decode()


@pytest.fixture(scope="module")
def metadata(wheel):
    """Return what an index reads, which packaging checks as an index would."""
    return Metadata.from_email(text_of(wheel, "METADATA"), validate=True)


def files_of(folder: Path) -> set[str]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)) for p in found if "__pycache__" not in p.parts}


def test_the_wheel_holds_the_package_and_its_script(wheel):
    info = f"mitmproxy_account_pool-{__version__}.dist-info/"
    held = {name for name in wheel.namelist() if not name.startswith(info)}
    package = {f"account_pool/{name}" for name in files_of(ROOT / "addon" / "account_pool")}
    assert held == package | {"account_pool/script/pool.py"}
    # A package that loses its data builds all the same.
    assert {"account_pool/py.typed", "account_pool/admin/dashboard/page.html"} <= held
    assert wheel.read("account_pool/script/pool.py") == (ROOT / "addon" / "pool.py").read_bytes()
    assert text_of(wheel, "licenses/LICENSE") == (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "account-pool = account_pool.cli:main" in text_of(wheel, "entry_points.txt")


def test_the_sdist_is_the_repository(sdist):
    """Its tests run, hence all that they read is there."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is no checkout")
    command = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z"]
    tracked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    there = {name for name in tracked.stdout.split("\0") if name and (ROOT / name).exists()}
    assert there - files_of(sdist) == set()


def test_the_metadata(metadata):
    assert (metadata.name, str(metadata.version)) == ("mitmproxy-account-pool", __version__)
    assert metadata.license_expression == "MIT"
    assert metadata.author == "the mitmproxy-account-pool authors"
    assert metadata.project_urls.keys() == {"Homepage", "Documentation", "Changelog", "Issues"}
    assert all(url.startswith(REPOSITORY) for url in metadata.project_urls.values())
    pythons = [c.rpartition(" ")[2] for c in metadata.classifiers if ":: Python :: 3." in c]
    assert pythons == ["3.11", "3.12", "3.13", "3.14"]
    assert [version in metadata.requires_python for version in pythons] == [True] * 4
    assert "3.10" not in metadata.requires_python


class Links(HTMLParser):
    """Collects what a page refers to, and what can be referred to within it."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.pictures: list[str] = []
        self.within: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.pictures += [value for name, value in attrs if name in ("src", "srcset")]
        self.targets += [value for name, value in attrs if name in ("href", "src", "srcset")]
        self.within += [f"#{value}" for name, value in attrs if name == "id"]


def test_the_page_on_pypi_needs_no_repository(metadata):
    assert metadata.description_content_type == "text/markdown"
    page = readme_renderer.markdown.render(metadata.description)
    assert page is not None
    assert "pip install mitmproxy-account-pool" in page
    links = Links()
    links.feed(page)
    assert len(links.targets) > 10
    outside = [target for target in links.targets if target not in links.within]
    assert [target for target in outside if not target.startswith("https://")] == []
    ours = [target for target in links.targets if target.startswith((REPOSITORY, RAW))]
    for target in ours:
        # Of this version's tag, and there.
        path = re.sub(rf"({RAW}|{REPOSITORY}/blob)/v{re.escape(__version__)}/", "", target)
        assert (ROOT / path.partition("#")[0]).exists(), target
    assert links.pictures
    assert [picture for picture in links.pictures if not picture.startswith(RAW)] == []


def test_the_repository_has_one_address():
    owner_and_name = re.compile(r"github(?:usercontent)?\.com/([\w.-]+/mitmproxy-account-pool)\b")
    pages = [*ROOT.glob("*.*"), *ROOT.glob("docs/*.md"), *(ROOT / ".github").rglob("*.*")]
    texts = [path.read_text(encoding="utf-8") for path in pages if path.is_file()]
    named = {name for text in texts for name in owner_and_name.findall(text)}
    assert named == {REPOSITORY.removeprefix("https://github.com/")}


def test_the_changelog_dates_this_version():
    """Keep a Changelog: the newest first, each heading a link that compares it."""
    headings = re.findall(r"^## \[(.+?)\](?: - (\S+))?$", CHANGELOG, re.MULTILINE)
    assert len(headings) == CHANGELOG.count("\n## ")
    assert headings[0] == ("Unreleased", "")
    assert headings[1][0] == __version__
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d", date) for _, date in headings[1:])
    versions = [f"v{version}" for version, _ in headings[1:]]
    links = dict(re.findall(r"^\[(.+?)\]: (\S+)$", CHANGELOG, re.MULTILINE))
    newer_and_older = list(zip(["HEAD", *versions], versions, strict=False))
    assert list(links.values()) == [
        *(f"{REPOSITORY}/compare/{older}...{newer}" for newer, older in newer_and_older),
        f"{REPOSITORY}/releases/tag/{versions[-1]}",
    ]
    assert list(links) == [name for name, _ in headings]

"""Hooks of mkdocs: the pages that are not in docs/, and links that are written for GitHub."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
#: By the name that each has in the site.
BESIDE = {
    "index.md": "README.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "SECURITY.md": "SECURITY.md",
    "benchmarks/README.md": "benchmarks/README.md",
}
_LINK = re.compile(r"(\]\()(?!https?:|#|mailto:)([^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for name, source in BESIDE.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point each link to where its target is in the site, or in the repository."""
    own = page.file.src_uri
    source = BESIDE.get(own, f"docs/{own}")
    in_site = {target: name for name, target in BESIDE.items()}
    up = "../" * own.count("/")

    def moved(match: re.Match[str]) -> str:
        target = (ROOT / source).parent.joinpath(match[2]).resolve()
        if not target.exists():
            return match[0]  # mkdocs complains
        path = target.relative_to(ROOT).as_posix()
        if path in in_site:
            return f"{match[1]}{up}{in_site[path]}"
        if path.startswith("docs/") and target.is_file():
            return f"{match[1]}{up}{path.removeprefix('docs/')}"
        return f"{match[1]}{config.repo_url}/blob/main/{path}"

    # What is written as if indented by four is code there and here; a fence is, too.
    return _LINK.sub(moved, markdown)

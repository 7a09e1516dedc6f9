"""README.md and docs/ say what is there, and nothing else.

Pages with a test of their own: providers.md (tests/config/test_docs.py), why.md
(tests/core/test_decisions.py), adding-a-provider.md (tests/test_worked_example.py), the
examples (tests/cli/test_examples.py); keys of accounts.yaml stand in accounts.example.yaml
(tests/test_example.py).
"""

from __future__ import annotations

import json
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest
import typer
from mitmproxy.test import taddons

from account_pool.admin import metrics
from account_pool.admin.auth import TOKEN_FILE
from account_pool.admin.routes import ENDPOINTS
from account_pool.cli.add import INTERRUPTED
from account_pool.cli.check import check_accounts
from account_pool.cli.child import NOT_EXECUTABLE, NOT_FOUND
from account_pool.cli.environment import ALL_VARIABLES, TOOLS
from account_pool.cli.main import app
from account_pool.cli.processes import DEFAULT_PORT, Places
from account_pool.config.accounts_file import TRUST_FILE
from account_pool.config.loader import load
from account_pool.config.options import POOL_OPTIONS
from account_pool.config.shapes import json_schema
from account_pool.core.instruments import DecisionCounter
from account_pool.demo.mitmdump import mitmdump_command
from account_pool.providers.registry import BUILT_IN
from account_pool.proxy.addon import AccountPool
from account_pool.store.pool_state import STATE_FILE
from tests.proxy.helpers import service_of

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "addon" / "account_pool"
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        ROOT / "benchmarks" / "README.md",
        *(ROOT / ".github").glob("**/*.md"),
        *(ROOT / ".github").glob("ISSUE_TEMPLATE/*.yml"),
    ]
}
README = PAGES["README.md"]
CLI_PAGE = PAGES["docs/cli.md"]
MITMPROXY_PAGE = PAGES["docs/mitmproxy.md"]
OPTIONS_PAGE = PAGES["docs/options.md"]
PROVIDERS_PAGE = PAGES["docs/providers.md"]
REST_PAGE = PAGES["docs/rest.md"]
METRICS_PAGE = PAGES["docs/metrics.md"]
EVERYWHERE = "\n".join(PAGES.values())
#: With texts that go over several lines in one piece.
CODE = re.sub(
    r"\"\s*\n\s*f?\"",
    "",
    "\n".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")),
)
#: Of the command line.
CLI = typer.main.get_command(app).commands
#: Answered by the proxy too, but no rows of the table of endpoints.
STREAMED = {("GET", "/metrics"), ("GET", "/events")}
BESIDE = {*STREAMED, ("GET", "/openapi.json"), ("GET", "/")}


def table(text: str, head: str) -> list[list[str]]:
    """Return the cells of the one table of *text* whose first column is called *head*."""
    [rows] = re.findall(rf"^\| {head} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", text, re.MULTILINE)
    return [[cell.strip() for cell in row.strip("|").split(" |")] for row in rows.splitlines()]


def quoted(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", text)


def section(text: str, title: str) -> str:
    return re.split(r"^#+ ", text.split(f"# {title}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


# -- options


def test_the_table_of_options():
    rows = {
        quoted(name)[0]: (default, about) for name, default, about in table(OPTIONS_PAGE, "option")
    }
    assert list(rows) == [option.option for option in POOL_OPTIONS]
    for option in POOL_OPTIONS:
        default, about = rows[option.option]
        if option.default != "":
            assert default == str(option.option_default).replace("F", "f").replace("T", "t")
        assert set(filter(None, option.choices or ())) <= {default, *quoted(about)}


def test_no_option_that_is_not_there():
    named = {n.split("=")[0] for n in re.findall(r"(?<![/_])\bpool_[a-z_]+", EVERYWHERE)}
    assert named <= {option.option for option in POOL_OPTIONS}


# -- commands of mitmproxy


@pytest.fixture(scope="module")
def commands():
    """Return what each takes, by name."""
    with taddons.context() as tctx:
        known = tctx.master.commands
        known.collect_commands(AccountPool().commands)
        return {
            name: [p.name.upper() for p in command.parameters]
            for name, command in known.commands.items()
            if name.startswith("pool.")
        }


def test_the_table_of_commands(commands):
    usages = [
        u.split() for row in table(MITMPROXY_PAGE, "command of mitmproxy") for u in quoted(row[0])
    ]
    rows = {name: takes for name, *takes in usages}
    assert rows == {**commands, "pool.status": ["[PROVIDER", "or", "KEY]"]}


def test_no_command_that_is_not_there(commands):
    named = set(re.findall(r"`(pool\.[a-z.]+)", EVERYWHERE)) - {"pool.mitm.it", "pool.py"}
    assert named <= commands.keys()
    for key in re.findall(r"~meta '?(pool\.[a-z]+)", EVERYWHERE):
        assert f'"{key}"' in CODE


# -- the command line


def long_options(command) -> set[str]:
    """Return those that its help shows."""
    shown = [p for p in command.params if not getattr(p, "hidden", False)]
    return {name for p in shown for name in p.opts if name.startswith("--")} - {"--help"}


def test_the_tables_of_the_command_line():
    rows = {quoted(name)[0].split()[1]: options for name, options, _ in table(CLI_PAGE, "command")}
    assert {name: set(quoted(options)) for name, options in rows.items()} == {
        name: long_options(command) for name, command in CLI.items()
    }


def test_exit_codes():
    codes = {int(n) for row in table(CLI_PAGE, "exit code") for n in re.findall(r"\d+", row[0])}
    assert codes == {0, 1, 2, NOT_EXECUTABLE, NOT_FOUND, INTERRUPTED}


def test_the_variables_and_placeholders_a_tool_gets():
    said = quoted(section(CLI_PAGE, "run"))
    assert {name.upper() for name in ALL_VARIABLES} <= set(said)
    assert set(TOOLS) <= set(said)


@cache
def options_of_mitmdump() -> set[str]:
    """Return what `serve` passes on."""
    shown = subprocess.run(
        [*mitmdump_command(), "--help"], capture_output=True, text=True, check=False
    )
    return set(re.findall(r"--[a-z-]+", shown.stdout))


@pytest.mark.parametrize("page", PAGES)
def test_every_command_line_is_one_that_works(page):
    """Of `account-pool NAME --option`, wherever a page says it."""
    command = r"(?<!-)account-pool ((?:[a-z]+|--).*?)(?:`|\)\"|#|$)"
    for line in re.findall(command, PAGES[page], re.MULTILINE):
        words = line.split(" -- ")[0].split()
        options = {word.split("=")[0] for word in words if word.startswith("--")}
        if words[0].startswith("--"):
            continue
        assert words[0] in CLI, line
        passed_on = options_of_mitmdump() if words[0] == "serve" else set()
        assert options <= long_options(CLI[words[0]]) | passed_on | {"--help"}, line


# -- the admin API


def test_the_table_of_endpoints():
    rows = {tuple(e.replace("`", "").split()): quoted(asked) for e, asked, _ in endpoints()}
    assert rows.keys() == {(e.method, e.path) for e in ENDPOINTS} | STREAMED
    for endpoint in ENDPOINTS:
        asked = endpoint.query or endpoint.body
        fields = asked.model_fields if asked else {}
        names = {field.alias or name for name, field in fields.items()}
        assert set(rows[endpoint.method, endpoint.path]) == names, endpoint.path


def endpoints() -> list[list[str]]:
    return table(REST_PAGE, "endpoint")


def test_no_endpoint_that_is_not_there():
    named = set(re.findall(r"\b(GET|POST) `(/[^`]*)`", EVERYWHERE))
    ours = {(method, path) for method, path in named if not path.startswith("/v1/")}
    assert ours <= {(e.method, e.path) for e in ENDPOINTS} | BESIDE


# -- metrics


def test_the_table_of_metrics():
    rows = {quoted(n)[0]: quoted(labels) for n, labels, _ in table(METRICS_PAGE, "metric")}
    told = {}
    for family in [*metrics.read(service_of("one"), DecisionCounter()), *metrics.costs({})]:
        if family.name.startswith("process_"):
            continue  # as of every program; only Linux has them
        name = family.name + ("_total" if family.type == "counter" else "")
        # A family that nothing was counted of has its labels here only.
        told[name] = list(family._labelnames)
    assert rows == told


def test_no_metric_that_is_not_there():
    known = {quoted(row[0])[0] for row in table(METRICS_PAGE, "metric")}
    assert set(re.findall(r"\baccount_pool_[a-z_]+", EVERYWHERE)) <= known


# -- accounts.yaml


@pytest.mark.parametrize(
    "text",
    [t for page in PAGES.values() for t in re.findall(r"```yaml\n(accounts:.*?)```", page, re.S)],
)
def test_examples_of_accounts_load(tmp_path, text):
    for name, document in {
        ".secrets/anthropic.json": {"key": "sk-ant-fake"},
        ".claude/.credentials.json": {"claudeAiOauth": {"accessToken": "sk-ant-oat01-fake"}},
    }.items():
        file = tmp_path / name
        file.parent.mkdir()
        file.touch(mode=0o600)
        file.write_text(json.dumps(document))
    names = re.findall(r"\b[A-Z_]{8,}\b", text)
    path = tmp_path / "accounts.yaml"
    path.touch(mode=0o600)
    path.write_text(text)
    assert load(path, {"HOME": str(tmp_path)} | {n: f"sk-fake-{n}" for n in names}).accounts


def test_the_example_of_the_readme_passes_as_it_stands(tmp_path, capsys):
    """Without its variables, files and programs: that is the state of accounts, no mistake."""
    [text] = re.findall(r"```yaml\n(accounts:.*?)```", README, re.S)
    path = tmp_path / "accounts.yaml"
    path.touch(mode=0o600)
    path.write_text(text)
    nobody = {"HOME": str(tmp_path), "PATH": str(tmp_path)}
    assert check_accounts(path, nobody) == 0
    assert f"6 accounts, file OK: {path}" in capsys.readouterr().out


def test_every_provider_has_a_row():
    assert {quoted(row[0])[0] for row in table(PROVIDERS_PAGE, "provider")} == set(BUILT_IN)


def test_keys_that_are_named_are_there():
    """`{key: ...}` in the text of a page is a key of accounts.yaml."""
    schema = json_schema()
    keys = {key for s in (schema, *schema["$defs"].values()) for key in s["properties"]}
    sources = {"env", "file", "pointer", "command", "oauth"}
    named = re.findall(r"`\{([a-z_]+): ", README + PAGES["docs/providers.md"])
    assert set(named) <= keys | sources | {"error"}


# -- what is left behind


def test_every_file_is_named_that_uninstalling_removes():
    """`rm -rf ~/.mitmproxy/account-pool*` says the page, so nothing may have another name."""
    places = Places(Path(), DEFAULT_PORT)
    kept = [places.record, places.lock, places.log, places.bundle, places.extra]
    names = [STATE_FILE, TOKEN_FILE, *(path.name for path in kept)]
    assert [name for name in names if not name.startswith("account-pool")] == []
    said = quoted(PAGES["docs/install.md"])
    assert {"accounts.yaml", TRUST_FILE} <= set(said)
    suffixes = [name for name in said if name.startswith(".")]
    assert [n for n in names if n not in said and Path(n).suffix not in suffixes] == []


# -- the rest


def slugs(text: str) -> set[str]:
    """Return the anchors of the headings of a page, as GitHub makes them."""
    outside = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", outside, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_rows_of_tables_fit_a_screen(page):
    assert [row for row in PAGES[page].splitlines() if row[:1] == "|" and len(row) > 160] == []


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), target
        if anchor:
            assert anchor in slugs(file.read_text(encoding="utf-8")), target


#: A page that is named without a folder is one of ours, whose headings have no numbers.
_PAGE = re.compile(r"(?<![\w/-])(\w+\.md)(,? (?:sections? )?\d)?")


_SPEAKING = [
    p for folder in ("addon", "tests", "benchmarks") for p in (ROOT / folder).rglob("*.py")
]


@pytest.mark.parametrize("path", _SPEAKING, ids=lambda path: str(path.relative_to(ROOT)))
def test_pages_that_code_names_are_there(path):
    for page, section in _PAGE.findall(path.read_text(encoding="utf-8")):
        assert not section and any((at / page).exists() for at in (ROOT, ROOT / "docs")), (
            page + section
        )


def test_every_page_is_linked_from_the_readme():
    assert [page for page in PAGES if page.startswith("docs/") and f"({page}" not in README] == []


#: What others say, in tables of the page.
FOREIGN = {
    "address already in use", "No such script", "self-signed certificate in certificate chain",
    "UNABLE_TO_GET_ISSUER_CERT_LOCALLY", "Retry-After", "previous_response_id",
}  # fmt: skip


def test_symptoms_are_what_is_really_said():
    rows = re.findall(r"^\| (.+?) \|", PAGES["docs/troubleshooting.md"], re.MULTILINE)
    said = {text for cell in rows for text in quoted(cell)}
    assert len(said) > 12
    ours = said - FOREIGN - {"accounts.yaml:2: accounts[0].provider: ..."}
    assert [text for text in ours if text not in CODE] == []


MAP = PAGES["docs/code.md"].split("## Every file")[1]
FOLDERS = re.findall(r"^      (\w+)/ .*\n((?:        .*\n)*)", MAP, re.MULTILINE)


def test_the_way_of_a_request_names_files_that_are_there():
    way = PAGES["docs/code.md"].partition("## The way of a request")[2].partition("\n## ")[0]
    named = re.findall(r"`((?:core|providers|proxy)/\w+)`", way)
    assert len(named) > 25
    assert [name for name in named if not (PACKAGE / f"{name}.py").exists()] == []


@pytest.mark.parametrize(("folder", "lines"), FOLDERS, ids=[name for name, _ in FOLDERS])
def test_the_map_names_the_files(folder, lines):
    named = {
        name.rstrip("/")
        for line in re.findall(r"^ {8}((?:[\w/]+, )*[\w/]+) ", lines, re.MULTILINE)
        for name in line.split(", ")
    }
    there = {path.stem for path in (PACKAGE / folder).iterdir() if path.stem[:2] != "__"}
    assert named <= there
    if folder in ("core", "store", "proxy", "admin"):
        assert there <= named

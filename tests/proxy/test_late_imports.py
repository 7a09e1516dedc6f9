"""What a proxy that starts does not import: each module costs about a millisecond."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

ADDON = Path(__file__).parents[2] / "addon"
#: By what needs them. Packages stand for all that is in them.
LATE = {
    "a visitor": [
        *("starlette", "prometheus_client", "pydantic"),
        *("account_pool.admin.app", "account_pool.admin.routes", "account_pool.admin.models"),
        *("account_pool.admin.metrics", "account_pool.admin.openapi", "account_pool.admin.actions"),
        *("account_pool.admin.events", "account_pool.admin.workers"),
    ],
    "a person at the command line": [
        *("account_pool.cli", "account_pool.demo", "typer", "rich", "textual", "keyring"),
        *("account_pool.config.edit", "account_pool.credentials.new_logins", "websockets"),
    ],
    "an account in a keychain, or of a command": [
        *("account_pool.credentials.keychain", "account_pool.credentials.command"),
    ],
    "other workers": ["account_pool.workers.launcher", "account_pool.workers.__main__"],
    "a WebSocket": [
        *("account_pool.proxy.websocket_exchange", "account_pool.proxy.websocket"),
        "account_pool.core.websocket_moves",
    ],
    "a request of our own": ["httpx", "httpcore", "account_pool.admin.requests"],
    "an option that is off": [
        *("opentelemetry", "account_pool.proxy.tracing", "account_pool.proxy.notifier"),
        *("account_pool.core.notifications", "account_pool.config.notify"),
        *("account_pool.proxy.look_ups", "account_pool.providers.look_ups"),
    ],
    "the end of a request": ["account_pool.core.prices", "account_pool.proxy.pricing"],
    "a response that names a time zone": ["zoneinfo"],
    "a person who names no file": ["platformdirs"],
    "a replay": ["account_pool.proxy.replay_handler"],
}
_CODE = """
import sys
from pathlib import Path
import account_pool.proxy.addon
from account_pool.config.loader import load
from account_pool.config.options import POOL_OPTIONS
from account_pool.proxy.options import Concealed
from mitmproxy.options import Options
options = Options()
for option in POOL_OPTIONS:
    options.add_option(option.option, option.typespec, option.option_default, option.help)
    option.read(option.option_default)
Concealed().take(options)
account_pool.proxy.addon.AccountPool()
assert len(load(Path(sys.argv[1]), {}).accounts) == 2
print(*sys.modules)
"""
_ACCOUNTS = """
accounts:
  - {provider: openai, label: one, token: sk-fake-one}
  - {provider: anthropic, label: two, token: sk-ant-fake-two, priority: 1}
"""


def test_a_proxy_that_starts_imports_nothing_that_it_does_not_need(tmp_path: Path) -> None:
    accounts = tmp_path / "accounts.yaml"
    accounts.touch(0o600)
    accounts.write_text(_ACCOUNTS)
    done = subprocess.run(
        [sys.executable, "-c", _CODE, str(accounts)],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(ADDON)},
    )
    imported = set(done.stdout.split())
    assert "account_pool.proxy.pooled_exchange" in imported
    found = {
        why: sorted(m for m in imported if any(m == n or m.startswith(n + ".") for n in names))
        for why, names in LATE.items()
    }
    assert {why: names for why, names in found.items() if names} == {}


def test_those_of_ours_are_there() -> None:
    named = [name for names in LATE.values() for name in names if name.startswith("account_pool")]
    assert [name for name in named if find_spec(name) is None] == []

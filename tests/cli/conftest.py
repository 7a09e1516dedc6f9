"""A stand-in for the proxy, and a home of its own for each test."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from account_pool.cli import processes, shared
from account_pool.cli.environment import ALL_VARIABLES
from account_pool.cli.processes import Launch, Places, read_record
from tests.cli import stub_proxy
from tests.e2e import harness
from tests.store.servers import shared_servers
from tests.upstream.certificates import make_certificate

__all__ = ["shared_servers"]


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder whose files change what the stand-in does; see `stub_proxy`."""

    def command(places: Places, launch: Launch) -> list[str]:
        arguments = [str(places.port), str(tmp_path), *launch.arguments]
        return [sys.executable, stub_proxy.__file__, *arguments]

    monkeypatch.setattr(shared, "command", command)
    (tmp_path / "accounts.json").write_text(json.dumps({"accounts": [], "summary": {}}))
    return tmp_path


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, authority: Path) -> Iterator[Places]:
    """Yield the files of a port nobody uses, in a home of their own."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ALL_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    places = Places.usual(harness.free_port())
    places.confdir.mkdir()
    # One that is there already: making one takes a second.
    places.authority.write_bytes(authority.read_bytes())
    yield places
    if record := read_record(places):
        processes.end(record.pid, record.proof)


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a certificate that can stand for mitmproxy's."""
    return make_certificate(tmp_path_factory.mktemp("authority")).authority

"""Kills at each step of a refresh lose no login; `python -m tests.store.kills` kills 1,000."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.patience import tries
from tests.store.servers import KINDS, StartServer

pytest.importorskip("redis")

from tests.store.kills.campaign import DURABLE, OURS, Campaign

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals are of POSIX")


@pytest.mark.parametrize("kind", KINDS)
def test_no_kill_loses_a_login(kind: str, start_server: StartServer, tmp_path: Path) -> None:
    result = Campaign(start_server(kind, *DURABLE), tmp_path, seed=1).run(tries(16))
    assert not result.failures
    assert not result.lost[OURS]

"""What tells the credential that was written down from another under the same label."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.credentials.fakes import entry

from account_pool.core.credential import Secret
from account_pool.credentials.files import FileSource
from account_pool.credentials.oauth import OAuthSource
from account_pool.credentials.source_fingerprint import fingerprint
from account_pool.credentials.sources import CommandSource, EnvSource, ValueSource

KEY = "sk-fake-000"


def oauth(refresh: str, access: str = "fake-access") -> OAuthSource:
    written = {"refresh_token": refresh, "access_token": access}
    return OAuthSource.from_written("codex", "me", written, {})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (ValueSource(Secret(KEY), {}), ValueSource(Secret("sk-fake-111"), {})),
        (EnvSource("KEY", {"KEY": KEY}), EnvSource("KEY", {"KEY": "sk-fake-111"})),
        (ValueSource(Secret("${KEY}"), {"KEY": KEY}), ValueSource(Secret("${KEY}"), {"KEY": "x"})),
        (oauth("rt-1"), oauth("rt-2")),
        (FileSource(Path("a")), FileSource(Path("b"))),
        (CommandSource("one", {}), CommandSource("other", {})),
        (EnvSource("KEY", {}), EnvSource("OTHER", {})),
    ],
    ids=["value", "env", "reference", "login", "file", "command", "unset"],
)
def test_another_credential_has_another_mark(one, other) -> None:
    assert fingerprint(entry(source=one)) == fingerprint(entry(source=one))
    assert fingerprint(entry(source=one)) != fingerprint(entry(source=other))


def test_the_same_credential_has_the_same_mark_wherever_it_stands() -> None:
    value = ValueSource(Secret(KEY), {})
    assert fingerprint(entry(source=value)) == fingerprint(
        entry(source=EnvSource("KEY", {"KEY": KEY}))
    )
    assert fingerprint(entry(source=oauth("rt"))) == fingerprint(
        entry(source=oauth("rt", "newer-access"))
    )


def test_what_moves_with_it_is_a_part_of_it() -> None:
    value = ValueSource(Secret(KEY), {})
    fingerprints = {
        fingerprint(entry(source=value)),
        fingerprint(entry(source=value, account_type="business")),
        fingerprint(entry(source=value, companions={"account_id": "1"})),
    }
    assert len(fingerprints) == 3
    assert fingerprint(entry(source=value)) == fingerprint(
        entry(source=value, weight=3, priority=2)
    )


def test_it_does_not_tell_the_secret() -> None:
    assert KEY not in fingerprint(entry(source=ValueSource(Secret(KEY), {})))

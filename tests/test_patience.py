"""No test has a ceiling, or a measure of time, of its own: its verdict would be the machine's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
#: Seconds as a number where `PATIENCE_S` belongs, and clocks that measure.
OWN = re.compile(
    r"asyncio\.timeout\([\d.]+\)|wait_for\(.*, *[\d.]+\)|\.(wait|join)\([1-9][\d.]*\)"
    r"|perf_counter|process_time|deadline=(?!None)"
)


@pytest.mark.parametrize(
    "line",
    [
        "async with asyncio.timeout(15):",
        "await asyncio.wait_for(keeper.first_try(name), 5)",
        "assert process.wait(10) == 0",
        "began = time.perf_counter()",
        "@settings(deadline=200)",
    ],
)
def test_one_is_found(line: str) -> None:
    assert OWN.search(line)


def test_no_test_has_one() -> None:
    found = [
        f"{path.relative_to(TESTS)}:{number}: {line.strip()}"
        for path in sorted(TESTS.rglob("*.py"))
        if path != Path(__file__)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if OWN.search(line)
    ]
    assert not found, found

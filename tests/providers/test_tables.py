"""What holds for every row of every table."""

import re

import pytest

from account_pool.core.signals import STATUS_RULES, Rule
from account_pool.providers.copilot import _EXCHANGE
from account_pool.providers.registry import BUILT_IN
from account_pool.providers.unswappable import BEDROCK_RULES

TABLES = {
    **{name: BUILT_IN[name].signals.rules for name in BUILT_IN if BUILT_IN[name].signals},
    "statuses": STATUS_RULES,
    "copilot exchange": _EXCHANGE.rules,
    "bedrock": BEDROCK_RULES,
}


@pytest.mark.parametrize("rows", TABLES.values(), ids=TABLES.keys())
def test_every_row_names_its_source_and_can_be_read(rows: tuple[Rule, ...]) -> None:
    """Phrases are compiled at the first refusal: one that cannot be would end it."""
    for row in rows:
        assert row.source, row.why
        re.compile(row.phrase)
        assert all(word == word.lower() for word in row.words), row.why

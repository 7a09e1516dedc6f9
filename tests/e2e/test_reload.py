"""accounts.yaml is edited while the proxy serves."""

from __future__ import annotations

import json

from account_pool.demo.scripts import by_credential, openai
from tests.e2e.harness import ACCOUNTS_FILE, FIRST, SECOND, account, chat

GOOD = openai.chat_complete("Good morning")


async def test_an_edit_is_taken_over_and_a_broken_one_is_not(provider, pool_proxy):
    upstream = await provider(by_credential({FIRST: GOOD, SECOND: GOOD}))
    proxy = await pool_proxy([account("first")], provider=upstream)
    file = proxy.folder / ACCOUNTS_FILE
    async with proxy.client() as http:
        assert (await http.request(**chat(stream=False))).status_code == 200

        file.write_text("accounts: [{provider: opnai, label: first, token: sk-fake-typo-000}]")
        await proxy.until_printed("the accounts stay as they were")
        assert (await http.request(**chat(stream=False))).status_code == 200

        file.write_text(json.dumps({"accounts": [account("second")]}))
        await proxy.until_printed("added openai/second; removed openai/first")
        assert (await http.request(**chat(stream=False))).status_code == 200
    assert upstream.journal.credentials == [FIRST, FIRST, SECOND]
    assert "did you mean openai?" in proxy.output
    assert "sk-fake" not in proxy.output

"""A mitmproxy script that does what must never happen: it shows a credential.

With it, the search of test_secrets.py has to find what it does not find without it.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

from mitmproxy import http


def responseheaders(flow: http.HTTPFlow) -> None:
    found = re.search(r"sk-fake-\w+-000", Path("accounts.yaml").read_text())
    assert found is not None and flow.response is not None
    secret = found[0]
    flow.request.headers["authorization"] = f"Bearer {secret}"
    flow.response.headers["x-leak"] = secret
    logging.getLogger(__name__).debug("leaking %s", secret)

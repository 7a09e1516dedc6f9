"""A mitmproxy script that does what must never happen: it shows a credential.

With it, the search of test_secrets.py has to find what it does not find without it.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path


def responseheaders(flow):
    secret = re.search(r"sk-fake-\w+-000", Path("accounts.yaml").read_text())[0]
    flow.request.headers["authorization"] = f"Bearer {secret}"
    flow.response.headers["x-leak"] = secret
    logging.getLogger(__name__).debug("leaking %s", secret)

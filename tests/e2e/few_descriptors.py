"""A mitmproxy script: few file descriptors, as where `ulimit -n` says so."""

from __future__ import annotations

import resource

LIMIT = 64


def load(_loader: object) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (LIMIT, LIMIT))

"""Which options of mitmproxy the start has something to say about."""

from __future__ import annotations

import pytest
from mitmproxy.options import Options

from account_pool.providers.base import HostRule
from account_pool.proxy.other_options import notes

HOSTS = [HostRule("api.example.com"), HostRule("api.example.com", 8443)]


def options_with(**values) -> Options:
    options = Options()
    for name, value in values.items():
        if name not in options:
            options.add_option(name, object, value, "")
        else:
            options.update(**{name: value})
    return options


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, []),
        ({"map_remote": []}, []),
        ({"map_remote": ["|a|b"]}, ["map_remote"]),
        ({"websocket": True}, []),
        ({"websocket": False}, ["websocket"]),
        ({"ssl_insecure": True}, ["ssl_insecure"]),
        ({"proxyauth": "a:b"}, []),
        ({"proxyauth": "a:b", "mode": ["reverse:https://api.example.com"]}, ["proxyauth"]),
        ({"ignore_hosts": [r"example\.com:443"]}, ["ignore_hosts"]),
        ({"ignore_hosts": ["API.EXAMPLE"]}, ["ignore_hosts", "ignore_hosts"]),
        ({"allow_hosts": [r"example\.com:443"]}, ["allow_hosts"]),
        ({"allow_hosts": ["example"]}, []),
        ({"tcp_hosts": ["example"]}, ["tcp_hosts", "tcp_hosts"]),
        ({"tcp_hosts": ["localhost"]}, []),
    ],
)
def test_notes(values, said):
    assert [note.partition(":")[0] for note in notes(options_with(**values), HOSTS)] == said

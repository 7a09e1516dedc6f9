"""`account-pool dashboard`: opens the dashboard, logged in by a link that is valid once."""

from __future__ import annotations

import os
import sys
import webbrowser
from collections.abc import Mapping

from account_pool.cli import api
from account_pool.cli.output import fail, note, show_json
from account_pool.cli.places import HOST

#: One of these is set where a window can be shown; elsewhere Python finds browsers that take
#: over the terminal.
_DISPLAYS = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")


def open_dashboard(
    port: int, environ: Mapping[str, str], *, only_print: bool, as_json: bool
) -> int:
    """Open the dashboard in a browser, or print the link to it. Returns 0, or 1."""
    try:
        link = api.change(port, "/link", {})
    except api.NoAnswer as error:
        if error.code == "not_found":
            return fail(f"the proxy is of an older version: start it again, or {_by_hand(port)}")
        return fail(error)
    url = str(link["url"])
    if as_json:
        show_json({"url": url, "expires_in_s": link["expires_in_s"]})
        return 0
    valid = f"valid once, for {float(link['expires_in_s']):.0f} s"
    if not only_print and _has_display(environ) and webbrowser.open(url):
        note(f"opened in your browser; the link is {valid}")
        return 0
    print(url, flush=True)
    elsewhere = f", where `ssh -L {port}:{HOST}:{port}` leads here" if _is_remote(environ) else ""
    note(f"open this link in a browser{elsewhere}; it is {valid}")
    return 0


def _is_remote(environ: Mapping[str, str]) -> bool:
    return bool(environ.get("SSH_CONNECTION"))


def _has_display(environ: Mapping[str, str]) -> bool:
    if os.name == "nt" or sys.platform == "darwin":
        return True
    return any(environ.get(name) for name in _DISPLAYS)


def _by_hand(port: int) -> str:
    return f"open http://{HOST}:{port}/ and give it the token that `account-pool status` shows"

"""Where the state is kept: what `pool_state` and `state` in accounts.yaml say, checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from account_pool.core.wrong import Wrong, shown, unknown
from account_pool.filesystem import expanded, named_path
from account_pool.store.fleet.url import REFERENCE_KINDS, REFERENCES, is_url, parse

#: The file of `pool_state` when none is named, in mitmproxy's own directory.
STATE_FILE = "account-pool.sqlite"
#: The value of `pool_state` for none.
IN_MEMORY = "memory:"
_FORM = (
    "write {url: 'rediss://USER@HOST:6379/0?pool=NAME', password: {env: NAME}, sealing_key: "
    "{file: PATH}}, the path of a file, or memory:"
)


def read_state(text: str) -> str:
    """Return *text*: a path, `memory:` or the URL of an engine. Raises Wrong."""
    if is_url(text):
        parse(text)
        return text
    try:
        named_path(text)
    except OSError as error:
        raise Wrong(f"{shown(text)}: {error.strerror}", _FORM) from None
    return text


def database_path(state: str, confdir: str) -> Path | None:
    """Return the file that `pool_state` (*state*) names, None for none.

    Where it names an engine, what only this proxy has is beside the usual file, in *confdir*.
    """
    if state == IN_MEMORY:
        return None
    if state and not is_url(state):
        return expanded(state)
    return expanded(confdir) / STATE_FILE


def write_state(value: list[Any] | dict[str, Any]) -> str:
    """Return the URL for a mapping of accounts.yaml. Raises Wrong."""
    if not isinstance(value, dict):
        raise Wrong("it is a list", _FORM)
    keys = ("url", *REFERENCES)
    for key in value:
        if key not in keys:
            raise Wrong("it has an unknown key", unknown(str(key), keys))
    url = value.get("url")
    if not isinstance(url, str) or not is_url(url):
        raise Wrong("it has no url of an engine", _FORM)
    references = {name: _reference(name, value[name]) for name in REFERENCES if name in value}
    if not references:
        return read_state(url)
    query = urlencode(references, quote_via=quote)
    return read_state(f"{url}{'&' if '?' in url else '?'}{query}")


def _reference(name: str, value: Any) -> str:
    # What stands there may be the secret itself.
    match value:
        case dict() if len(value) == 1:
            [(kind, what)] = value.items()
            if kind in REFERENCE_KINDS and isinstance(what, str) and what:
                return f"{kind}:{what}"
    raise Wrong(
        f"{name} is not a reference",
        "write {env: NAME}, {file: PATH} or {command: LINE}, never the secret itself",
    )

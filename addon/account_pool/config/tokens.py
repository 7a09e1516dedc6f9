"""Turns `token:` into the source of a credential. No value of it is ever repeated."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from account_pool.config.explain import REMEDIES
from account_pool.config.models import TOKEN_KEYS
from account_pool.config.problems import Wrong, unknown
from account_pool.core.credential import Secret
from account_pool.credentials.files import FileSource
from account_pool.credentials.keychain import KeychainSource
from account_pool.credentials.oauth import OAuthSource
from account_pool.credentials.sources import (
    CommandSource,
    EnvSource,
    Source,
    ValueSource,
    is_variable,
)
from account_pool.providers.pasted import remedy

_HOW = REMEDIES["token"]
_HOW_OAUTH = "write {oauth: {refresh_token: ..., access_token: ..., expires_at: ...}}"


def source_of(
    token: Any, environ: Mapping[str, str], directory: Path, account: tuple[str, str]
) -> Source:
    """Return the source *token* describes; paths are relative to *directory*.

    *account* is provider and label: the tokens of a login are kept by them. Raises Wrong,
    and CredentialError for a login that lacks something. Whether the source has a
    credential is not looked at.
    """
    if token == "":
        raise Wrong("is empty", _HOW)
    if isinstance(token, str):
        return ValueSource(Secret(token), environ)
    if token is None:
        raise Wrong("has no value", _HOW)
    if isinstance(token, bool | int | float):
        raise Wrong("is not text", "put it in quotes")
    if not isinstance(token, dict):
        raise Wrong("is a list, not one token", _HOW)
    if "oauth" in token:
        return _login(token, environ, account)
    return _from_mapping(token, environ, directory)


def _login(
    token: dict[str, Any], environ: Mapping[str, str], account: tuple[str, str]
) -> OAuthSource:
    others = [key for key in token if key != "oauth"]
    if others:
        raise Wrong("oauth cannot be combined with another key", "keep oauth only")
    written = token["oauth"]
    if not isinstance(written, dict) or not written:
        raise Wrong("the value of oauth is not a mapping", _HOW_OAUTH)
    provider, label = account
    return OAuthSource.from_written(provider, label, written, environ)


def _from_mapping(token: dict[str, Any], environ: Mapping[str, str], directory: Path) -> Source:
    for key in token:
        if key not in TOKEN_KEYS:
            # The key itself may be a token: {sk-...} is a mapping in YAML.
            raise Wrong("has an unknown key", unknown(key, TOKEN_KEYS))
    for key, value in token.items():
        if not isinstance(value, str) or not (value.strip() or key == "pointer"):
            raise Wrong(f"the value of {key} is not text", f'write {{{key}: "..."}}')
    kinds = [key for key in token if key != "pointer"]
    if len(kinds) > 1:
        raise Wrong(f"names two sources, {kinds[0]} and {kinds[1]}", "keep one of them")
    if not kinds:
        raise Wrong("names no source", _HOW)
    pointer = token.get("pointer")
    if pointer is not None and kinds[0] not in ("file", "keychain"):
        raise Wrong(
            "pointer needs a file or a keychain", "write {file: PATH, pointer: /json/pointer}"
        )
    if pointer and not pointer.startswith("/"):
        raise Wrong("the pointer does not start with /", "write one such as /tokens/access")
    match kinds[0]:
        case "env":
            return _variable(token["env"].strip(), environ)
        case "file":
            written = token["file"].strip()
            return FileSource(directory / expand_home(written, environ), pointer, written)
        case "keychain":
            return KeychainSource(token["keychain"].strip(), pointer)
        case _:
            return _command(token["command"].strip(), environ)


def _variable(written: str, environ: Mapping[str, str]) -> EnvSource:
    if not is_variable(written) and written not in environ:
        # A token that was put here would look like this.
        raise Wrong(
            "the value of env is not the name of a variable",
            remedy(written, "write {env: OPENAI_API_KEY}"),
        )
    return EnvSource(written, environ)


def expand_home(written: str, environ: Mapping[str, str]) -> Path:
    """Return the path with a leading ~ replaced by the home of *environ*."""
    rest = written.removeprefix("~")
    home = environ.get("HOME") or environ.get("USERPROFILE")
    if rest == written or rest[:1] not in ("", "/", "\\") or not home:
        return Path(written)
    return Path(home) / rest.lstrip("/\\")


def _command(written: str, environ: Mapping[str, str]) -> CommandSource:
    try:
        shlex.split(written)
    except ValueError:
        raise Wrong("the command has an unclosed quote", "close it") from None
    return CommandSource(written, environ)

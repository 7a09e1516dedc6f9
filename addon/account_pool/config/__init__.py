"""accounts.yaml and the options: what the owner of the accounts wrote, checked as a whole.

Reading order: `values` (what comes out), `document` (YAML with line numbers, from
`yaml_nodes`), `models` (the shape), `accounts` and `providers` (the two sections), `loader`
(all of it), `environment` (no file), `options` (the table of options), `accounts_file` (which
file it is), `edit` (changing it), `review` (credentials that cannot be read now).

The modules that read files are imported when they are used: without accounts.yaml the
proxy starts without pydantic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from account_pool.config.options import (
    BY_NAME,
    POOL_OPTIONS,
    OptionValue,
    PoolOption,
    settings,
)
from account_pool.config.problems import ConfigError, Problem, Wrong
from account_pool.config.values import Config
from account_pool.providers.base import Provider

__all__ = [
    "BY_NAME",
    "POOL_OPTIONS",
    "Config",
    "ConfigError",
    "OptionValue",
    "PoolOption",
    "Problem",
    "Wrong",
    "from_environment",
    "json_schema",
    "load",
    "load_providers",
    "settings",
    "with_added",
]


def load(
    path: Path, environ: Mapping[str, str], known: Mapping[str, Provider] | None = None
) -> Config:
    """Read accounts.yaml. Raises ConfigError that lists all problems at once.

    Credentials in variables, files and the like are not read: that one cannot be had
    now is the state of its account. The sources keep *environ* and look into it later.
    *known* are the providers there are without it; default: the built-in ones.
    """
    from account_pool.config.loader import load_file  # noqa: PLC0415 - see the module
    from account_pool.providers.registry import BUILT_IN  # noqa: PLC0415 - see the module

    return load_file(path, environ, known or BUILT_IN)


def load_providers(path: Path) -> Mapping[str, Provider]:
    """Return the providers *path* knows, the built-in ones included; reads no credential.

    Raises ConfigError that lists what is wrong with its `providers:`.
    """
    from account_pool.config.loader import load_providers as read  # noqa: PLC0415 - as above
    from account_pool.providers.registry import BUILT_IN  # noqa: PLC0415 - see the module

    return read(path, BUILT_IN)


def from_environment(
    environ: Mapping[str, str],
    *,
    github_token: str | None,
    account_type: str | None,
    directories: Sequence[Path],
) -> Config:
    """Return the accounts there are without a file, one per provider at most.

    Copilot takes *github_token*, else GITHUB_TOKEN, GH_TOKEN or a file `github_token`
    in one of *directories*; the others the variables their provider names
    (`Provider.env`). None at all is no error.
    """
    from account_pool.config.environment import accounts_of_environment  # noqa: PLC0415
    from account_pool.providers.registry import BUILT_IN  # noqa: PLC0415 - see the module

    return accounts_of_environment(environ, github_token, account_type, directories, BUILT_IN)


def with_added(config: Config, path: Path, environ: Mapping[str, str]) -> Config:
    """Return *config* with the accounts in *path*, which were added by hand, if it is there.

    Raises ConfigError.
    """
    if not path.exists():
        return config
    from account_pool.config.loader import with_added as read  # noqa: PLC0415 - see the module

    return read(config, path, environ)


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of accounts.yaml, for editors that complete and check it."""
    from account_pool.config.models import json_schema as schema  # noqa: PLC0415 - as above

    return schema()

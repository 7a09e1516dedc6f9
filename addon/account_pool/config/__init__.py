"""accounts.yaml and the options: what the owner of the accounts wrote, checked as a whole.

Reading order: `values` (what comes out), `document` (YAML with line numbers), `models`
(the shape), `accounts`, `user_providers`, `definitions` and `tokens` (what the values
refer to), `loader` (all of it), `environment` (no file), `pool_options` (the table of
options), `edit` (adding an account).

The modules that read files are imported when they are used: without accounts.yaml the
proxy starts without pydantic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from account_pool.config.pool_options import (
    BY_NAME,
    POOL_OPTIONS,
    OptionValue,
    PoolOption,
    settings,
)
from account_pool.config.problems import ConfigError, Problem, Wrong
from account_pool.config.values import AccountEntry, Config

__all__ = [
    "BY_NAME",
    "POOL_OPTIONS",
    "AccountEntry",
    "Config",
    "ConfigError",
    "OptionValue",
    "PoolOption",
    "Problem",
    "Wrong",
    "from_environment",
    "json_schema",
    "load",
    "settings",
]


def load(path: Path, environ: Mapping[str, str]) -> Config:
    """Read accounts.yaml. Raises ConfigError that lists all problems at once.

    Credentials in variables and files are read once to see that they are there;
    commands are not run. The sources keep *environ* and look into it again later.
    """
    from account_pool.config.loader import load_file  # noqa: PLC0415 - see the module
    from account_pool.providers.registry import BUILT_IN  # noqa: PLC0415 - see the module

    return load_file(path, environ, BUILT_IN)


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
    (`Provider.env`). None at all is no error. Raises ConfigError when a credential is
    there but cannot be used.
    """
    from account_pool.config.environment import accounts_of_environment  # noqa: PLC0415
    from account_pool.providers.registry import BUILT_IN  # noqa: PLC0415 - see the module

    return accounts_of_environment(environ, github_token, account_type, directories, BUILT_IN)


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of accounts.yaml, for editors that complete and check it."""
    from account_pool.config.models import json_schema as schema  # noqa: PLC0415 - as above

    return schema()

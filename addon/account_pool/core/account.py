"""What the owner of an account wrote down, and how it is named.

Decides nothing about time or traffic: see `pool.py` for the state an account
has at run time. Labels and keys are the only names of an account that appear in
logs, comments and placeholders.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import force_setattr

from account_pool.core.meaning import LazyPattern

#: Control characters, and those that turn the direction of what follows.
_STEERS = LazyPattern("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class AccountKey(NamedTuple):
    """The unique name of an account; prints as `provider/label`."""

    provider: str
    label: str

    @lru_cache(maxsize=16_384)  # noqa: B019 - a request asks several times; names are few and small
    def __str__(self) -> str:
        return f"{self.provider}/{self.label}"

    @classmethod
    def parse(cls, text: str) -> AccountKey:
        """Read `provider/label`. Raises ValueError that says what is expected."""
        provider, slash, label = text.partition("/")
        if not (slash and provider.strip() and label.strip()):
            raise ValueError(f"{text!r} is not an account: write provider/label, e.g. openai/work")
        return cls(provider.strip().lower(), normalise_label(label))


def normalise_label(label: str) -> str:
    """Return *label* trimmed, in lower case, runs of white space turned into "-".

    Raises ValueError when nothing is left, for an account needs a name, and for one that would
    steer the terminals on which it is shown.
    """
    normalised = "-".join(label.split()).lower()
    if not normalised:
        raise ValueError("a label needs at least one character other than a space")
    if _STEERS.search(normalised):
        raise ValueError("a label cannot have a control character in it")
    return normalised


class ModelFilter(Struct, frozen=True):
    """Globs an account may serve; `!glob` excludes, the last match wins.

    No globs allow everything. A list of only exclusions allows the rest.
    """

    globs: tuple[str, ...] = ()

    @lru_cache(maxsize=4_096)  # noqa: B019 - as above; names of models are cut at 200 characters
    def allows(self, model: str | None) -> bool:
        """Say whether *model* may be served. An unknown model (None) always may."""
        if not self.globs or model is None:
            return True
        allowed = all(glob.startswith("!") for glob in self.globs)
        for glob in self.globs:
            if fnmatchcase(model, glob.removeprefix("!")):
                allowed = not glob.startswith("!")
        return allowed


_ANY_MODEL = ModelFilter()
_NO_KEY = AccountKey("", "")


class Account(Struct, frozen=True, kw_only=True):
    """One member of the pool, as its owner wrote it.

    Attributes:
        provider: name of a built-in or user-defined provider, lower case.
        label: normalised, unique per provider.
        priority: lower is preferred; tiers come before every selection policy.
        weight: share of the traffic relative to others of its tier, 1 or more.
        models: globs of the models this account may serve; default all.
        max_concurrent: most requests in flight at once; None for no limit.
        min_interval_s: seconds between the starts of two requests on it.
        enabled: False keeps it in the file but out of use.
        account_type: Copilot plan: individual, business or enterprise.
        reserve: share of a window that is left to its owner, 0 to 1, by the window's name.
        companions: what moves together with the credential: account_id, project,
            organization, openai_project, host, deployments...
        key: its unique name, made of the first two.

    Raises ValueError for a label without a character, and for a weight or
    max_concurrent below 1, which could never serve.
    """

    provider: str
    label: str
    priority: int = 0
    weight: int = 1
    models: ModelFilter = _ANY_MODEL
    max_concurrent: int | None = None
    min_interval_s: float = 0.0
    enabled: bool = True
    account_type: str | None = None
    reserve: Mapping[str, float] = {}
    companions: Mapping[str, str] = {}
    key: AccountKey = _NO_KEY

    def __post_init__(self) -> None:
        # Here and not in the callers: two spellings of a label are never two accounts.
        force_setattr(self, "label", normalise_label(self.label))
        force_setattr(self, "key", AccountKey(self.provider, self.label))
        if self.weight < 1:
            raise ValueError(f"{self.key}: weight is {self.weight}; it must be 1 or more")
        if self.max_concurrent is not None and self.max_concurrent < 1:
            raise ValueError(
                f"{self.key}: max_concurrent is {self.max_concurrent}; it must be 1 or more, "
                "or absent for no limit"
            )

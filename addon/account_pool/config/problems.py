"""What is wrong with a configuration: all of it at once, with file, line and key."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from msgspec import Struct

from account_pool.core.meaning import LazyPattern
from account_pool.filesystem import printable

#: The texts of two problems that may be one mistake: see `_one_each`.
UNKNOWN_KEY, MISSING = "unknown key", "is missing"
_DID_YOU_MEAN = LazyPattern(r"did you mean (\w+)\?\Z")


class Problem(Struct, frozen=True):
    """One thing to correct, and how.

    Attributes:
        line: counted from 1; None when it is about the whole file.
        key: where in the file, e.g. accounts[1].priority; "" for the whole file.
    """

    path: Path
    line: int | None
    key: str
    wrong: str
    remedy: str

    def __str__(self) -> str:
        path = printable(self.path)
        place = path if self.line is None else f"{path}:{self.line}"
        return ": ".join(part for part in (place, self.key, f"{self.wrong}; {self.remedy}") if part)


class ConfigError(Exception):
    """The configuration cannot be used. The text lists all problems, one a line."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(_one_each(problems), key=lambda problem: problem.line or 0))
        super().__init__("\n".join(map(str, self.problems)))


def _one_each(problems: Iterable[Problem]) -> list[Problem]:
    """Return *problems* without those that another one explains.

    A misspelt key is unknown, and the right one is missing: that is one mistake.
    """
    problems = list(problems)
    meant = {
        (problem.path, _beside(problem.key, found[1]))
        for problem in problems
        if problem.wrong == UNKNOWN_KEY and (found := _DID_YOU_MEAN.match(problem.remedy))
    }
    return [p for p in problems if p.wrong != MISSING or (p.path, p.key) not in meant]


def _beside(name: str, key: str) -> str:
    """Return the name of *key* in the mapping that *name* stands in."""
    return f"{name.rpartition('.')[0]}.{key}".removeprefix(".")


class CannotEdit(Exception):
    """The file cannot be changed; the text says why and what to do."""


#: What is accepted, by key.
REMEDIES: Mapping[str, str] = {
    "provider": "write the name of a provider, such as openai",
    "label": "write a name for the account, such as work",
    "token": "write token: ${NAME_OF_A_VARIABLE}, or one of {env: ...}, {file: ...}, "
    "{command: ...}, {keychain: ...}, {oauth: ...}",
    "account_type": "write one of individual, business, enterprise",
    "priority": "write a number such as 0 or 1",
    "weight": "write a number such as 1 or 2",
    "models": 'write a list such as ["gpt-*", "!gpt-5-pro*"]',
    "max_concurrent": "write a number such as 8, or leave it out for no limit",
    "min_interval": "write seconds, such as 0.5",
    "enabled": "write true or false",
    "deployments": "write a mapping such as {gpt-4o: my-deployment}",
    "like": "write the name of a built-in provider, such as openai",
    "hosts": 'write a list such as ["llm.example.com", "localhost:9443"]',
    "token_url": "write an address such as https://api.github.com/copilot_internal/v2/token",
    "paths": 'write a list such as ["/v1/chat/completions", "GET /v1/models*"]',
    "credential": 'write {header: authorization, prefix: "Bearer "} or {query: key}',
    "drop": 'write a list of headers such as ["x-team"]',
    "companions": "write a mapping such as {organization: x-organization}",
    "limits": "list rules such as {status: [429], class: rate_limit}",
    "status": "write a list of statuses such as [429]",
    "header": 'write {x-some-header: "pattern"} in a rule, the name of a header elsewhere',
}

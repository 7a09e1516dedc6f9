"""Keys for tools that refuse to start without one. Pure.

What a tool sends is replaced by an account's credential, so any text in the right shape
will do. A tool that has a key or a login keeps it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import PurePath

from account_pool.providers.registry import BUILT_IN

_TEXT = "account-pool-placeholder"
_GITHUB = f"gho_{_TEXT.replace('-', '0')}"


@dataclass(frozen=True, slots=True)
class Needed:
    """What a tool may start with.

    Attributes:
        provider: whose accounts can serve it then.
        variables: what to set.
    """

    provider: str
    variables: Mapping[str, str]


_OPENAI = Needed("openai", {"OPENAI_API_KEY": f"sk-{_TEXT}"})
_ANTHROPIC = Needed("anthropic", {"ANTHROPIC_API_KEY": f"sk-ant-api03-{_TEXT}"})
_GEMINI = Needed("gemini", {"GEMINI_API_KEY": f"AIza-{_TEXT}"})
#: With a login in a file it asks Google whether that is good before it starts.
_GEMINI_CLI = Needed(
    "gemini-cli",
    {"GOOGLE_GENAI_USE_GCA": "true", "GOOGLE_CLOUD_ACCESS_TOKEN": f"ya29.{_TEXT}"},
)


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool by the name of its command.

    Attributes:
        served_by: the providers it can use; () for any.
        keys: any of these, when it is set, is a key of the user's own.
        needs: in order of preference; the first whose provider the pool has is set, of
            a tool *for_each* provider all of them.
    """

    served_by: tuple[str, ...]
    keys: tuple[str, ...]
    needs: tuple[Needed, ...]
    for_each: bool = False


#: The tools that ask for a key or a login before they send anything (clients measured in
#: November 2026: claude-code 2.1, codex 0.169, gemini-cli 0.61, copilot 1.0, opencode 1.18).
TOOLS: Mapping[str, Tool] = {
    "claude": Tool(
        ("claude-code", "anthropic"),
        ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN"),
        (
            Needed("claude-code", {"CLAUDE_CODE_OAUTH_TOKEN": f"sk-ant-oat01-{_TEXT}"}),
            _ANTHROPIC,
        ),
    ),
    "codex": Tool(
        ("codex", "openai"),
        ("OPENAI_API_KEY", "CODEX_API_KEY"),
        # `codex exec` reads the second, everything else the first.
        (Needed("openai", {**_OPENAI.variables, "CODEX_API_KEY": f"sk-{_TEXT}"}),),
    ),
    "gemini": Tool(
        ("gemini-cli", "gemini"),
        ("GEMINI_API_KEY", "GOOGLE_API_KEY", "GOOGLE_GENAI_USE_GCA"),
        (_GEMINI_CLI, _GEMINI),
    ),
    "copilot": Tool(
        ("copilot",),
        ("COPILOT_GITHUB_TOKEN", "GH_TOKEN", "GITHUB_TOKEN"),
        (Needed("copilot", {"COPILOT_GITHUB_TOKEN": _GITHUB}),),
    ),
    "opencode": Tool((), (), (_ANTHROPIC, _OPENAI, _GEMINI), for_each=True),
}


def tool_of(command: str) -> str | None:
    """Return which of TOOLS the program *command*, a name or a path, is."""
    name = PurePath(command.replace("\\", "/")).name.lower()
    for suffix in (".exe", ".cmd", ".ps1", ".bat"):
        name = name.removesuffix(suffix)
    return name if name in TOOLS else None


def placeholders(
    tool: str, providers: Collection[str], present: Mapping[str, str], *, logged_in: bool
) -> dict[str, str]:
    """Return the keys *tool* gets, none if it has one or the pool cannot serve it.

    Args:
        tool: a key of TOOLS.
        providers: names of those the pool has accounts of.
        present: the environment as it is.
        logged_in: the tool keeps a login of its own on this machine.
    """
    rules = TOOLS[tool]
    if has_key(tool, present) or logged_in:
        return {}
    chosen: dict[str, str] = {}
    for needed in rules.needs:
        if needed.provider in providers and not any(present.get(n) for n in needed.variables):
            chosen |= needed.variables
            if not rules.for_each:
                break
    return chosen


def has_key(tool: str, present: Mapping[str, str]) -> bool:
    """Say whether the environment *present* holds a key of the user's own for *tool*."""
    return any(present.get(name) for name in TOOLS[tool].keys)


def missing(tool: str, providers: Collection[str]) -> str | None:
    """Return why *tool*, which has no key, no login and no placeholder, cannot be served.

    None where it may be: it can use any provider, or one of the user's own.
    """
    served_by = TOOLS[tool].served_by
    if not served_by or not all(name in BUILT_IN for name in providers):
        return None
    if not set(served_by) & set(providers):
        return f"the pool has no account for {tool}: it is served by {' and '.join(served_by)}"
    return f"{tool} is not logged in and does not accept a placeholder; log in with it once"

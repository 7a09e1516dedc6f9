"""What a key looks like, and whose it is then: for warnings, never for a decision.

Vendors put a prefix before their keys so that scanners find them. A key of one vendor
under another's name is a slip of its owner: it would be refused, and it would go to a host
that has no business with it. Forms change, and a gateway may hand out what it likes, so
nothing is refused for its form; what cannot be used is for `Provider.misplaced` to say.

Most of these are also in https://docs.github.com/en/code-security/secret-scanning/introduction/supported-secret-scanning-patterns
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyForm:
    """A form of keys.

    Attributes:
        pattern: matched at the beginning of the key.
        what: whose key it is, for people.
        providers: of accounts that take it; none: of no provider that is pooled.
        source: where the form is documented.
    """

    pattern: re.Pattern[str]
    what: str
    providers: tuple[str, ...]
    source: str


def _form(prefix: str, what: str, *providers: str, source: str) -> KeyForm:
    return KeyForm(pattern=re.compile(prefix), what=what, providers=providers, source=source)


_GITHUB = (
    "https://github.blog/engineering/platform-security/"
    "behind-githubs-new-authentication-token-formats/"
)

#: The first that matches counts: special forms stand before general ones.
FORMS: tuple[KeyForm, ...] = (
    _form(r"sk-ant-oat", "a token of a Claude subscription", "claude-code",
        source="https://docs.claude.com/en/docs/claude-code/iam (claude setup-token)"),
    _form(r"sk-ant-ort", "the refresh token of a Claude subscription",
        source="claudeAiOauth.refreshToken of ~/.claude/.credentials.json"),
    _form(r"sk-ant-admin", "an Admin API key of Anthropic, which serves no messages",
        source="https://docs.claude.com/en/api/administration-api"),
    _form(r"sk-ant-", "an API key of Anthropic", "anthropic",
        source="https://docs.claude.com/en/api/overview"),
    _form(r"sk-or-", "a key of OpenRouter", "openrouter",
        source="https://openrouter.ai/docs/api-reference/authentication"),
    _form(r"sk-admin-", "an admin key of OpenAI, which serves no completions",
        source="https://platform.openai.com/docs/api-reference/admin-api-keys"),
    _form(r"sk-(?:proj|svcacct|None)-", "an API key of OpenAI", "openai",
        source="https://platform.openai.com/docs/api-reference/authentication"),
    _form(r"AIza", "an API key of Google", "gemini",
        source="https://cloud.google.com/docs/authentication/api-keys"),
    _form(r"ya29\.", "an OAuth token of Google", "gemini-cli",
        source="https://cloud.google.com/docs/authentication/token-types#access"),
    _form(r"1//", "a refresh token of Google",
        source="https://developers.google.com/identity/protocols/oauth2#size"),
    _form(r"gh[opusr]_", "a token of GitHub", "copilot", "github-models", source=_GITHUB),
    _form(r"github_pat_", "a token of GitHub", "copilot", "github-models", source=_GITHUB),
    _form(r"gsk_", "a key of Groq", "groq", source="https://console.groq.com/docs/quickstart"),
    _form(r"xai-", "a key of xAI", "xai", source="https://docs.x.ai/docs/tutorial"),
    _form(r"pplx-", "a key of Perplexity", "perplexity",
        source="https://docs.perplexity.ai/getting-started/quickstart"),
    _form(r"csk-", "a key of Cerebras", "cerebras",
        source="https://inference-docs.cerebras.ai/quickstart"),
    _form(r"fw_", "a key of Fireworks", "fireworks",
        source="https://docs.fireworks.ai/getting-started/quickstart"),
    _form(r"tgp_v1_", "a key of Together", "together",
        source="https://docs.together.ai/docs/quickstart"),
    _form(r"hf_", "a token of Hugging Face",
        source="https://huggingface.co/docs/hub/security-tokens"),
    _form(r"(?:AKIA|ASIA)[A-Z0-9]{16}\Z", "an access key of AWS",
        source="https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_identifiers.html"),
)  # fmt: skip


def form_of(token: str) -> KeyForm | None:
    """Return the form of *token*, None if it has none that is known."""
    return next((form for form in FORMS if form.pattern.match(token)), None)


def foreign(token: str, provider: str, known: Collection[str]) -> tuple[str, str] | None:
    """Return what *token* looks like and what to do, if it is none of *provider*.

    *known* are the providers there are. None also where nothing can be said: *provider* is
    no vendor whose keys have a form here and may take any.
    """
    form = form_of(token)
    if form is None or provider in form.providers:
        return None
    belongs = [name for name in form.providers if name in known]
    remedy = f"write provider: {' or '.join(belongs)}" if belongs else "write a key of its own"
    return f"its token looks like {form.what}", remedy

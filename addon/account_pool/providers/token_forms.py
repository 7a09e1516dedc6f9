"""What the text of a token says: whose it is by its form, whether text is one, a JWT's claims.

Vendors put a prefix before their keys so that scanners find them. A key of one vendor under
another's name is a slip of its owner: it would be refused, and it would go to a host that has
no business with it. Forms change, and a gateway may hand out what it likes, so nothing is
refused for its form; what cannot be used is for `Provider.misplaced` to say. Most forms are
also in https://docs.github.com/en/code-security/secret-scanning/introduction/supported-secret-scanning-patterns

A token may be pasted where a name belongs: `{file: sk-...}`, `label: sk-...`. Names stand in
messages, in the log and on the admin pages; tokens must not. So every name somebody wrote is
shown through `hidden`, which leaves what reads as a path, a command or words as it is. A
mistake costs a name in a message, never an account; only a label is refused for it
(`is_token`, which is stricter), because a label is shown everywhere.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Collection, Mapping
from typing import Any

from msgspec import Struct

from account_pool.core.json_values import decoded, finite_number, members
from account_pool.core.meaning import LazyPattern
from account_pool.core.wrong import NOT_SHOWN


class KeyForm(Struct, frozen=True, kw_only=True):
    """A form of keys.

    Attributes:
        pattern: matched at the beginning of the key.
        what: whose key it is, for people.
        providers: of accounts that take it; none: of no provider that is pooled.
        source: where the form is documented.
    """

    pattern: LazyPattern[str]
    what: str
    providers: tuple[str, ...]
    source: str


def _form(prefix: str, what: str, *providers: str, source: str) -> KeyForm:
    return KeyForm(pattern=LazyPattern(prefix), what=what, providers=providers, source=source)


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
    # Older ones. Others have keys that begin with sk- only, and none of these letters in them.
    _form(r"sk-[A-Za-z0-9_-]{20}T3BlbkFJ", "an API key of OpenAI", "openai",
        source="https://github.com/gitleaks/gitleaks/blob/master/config/gitleaks.toml"),
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

#: Most labels and many keys have none: one pattern says so.
_ANY_FORM = LazyPattern("|".join(f"(?:{form.pattern.pattern})" for form in FORMS))


def form_of(token: str) -> KeyForm | None:
    """Return the form of *token*, None if it has none that is known."""
    if not _ANY_FORM.match(token):
        return None
    return next(form for form in FORMS if form.pattern.match(token))


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


# -- JSON Web Tokens (RFC 7519). Nothing is verified: the token is the owner's own, and the
# vendor will judge it.


def jwt_claims(token: str) -> Mapping[str, Any]:
    """Return the claims of *token*, {} if it is no JWT."""
    parts = token.strip().split(".")
    if len(parts) != 3:
        return {}
    padded = parts[1] + "=" * (-len(parts[1]) % 4)
    try:
        return members(decoded(base64.b64decode(padded, altchars="-_", validate=True)))
    except ValueError:
        return {}


def jwt_expires_at(token: str) -> float | None:
    """Return `exp`, seconds since the epoch (RFC 7519 4.1.4); None if it names none."""
    at = finite_number(jwt_claims(token).get("exp"))
    return at if at is not None and 0 < at < 1e11 else None


# -- a token where a name belongs

PASTED = "a token seems to be pasted there"
#: What there is to do about a name that is none.
UNPASTE = f"{PASTED}: write it as the value of token itself"

#: Beginnings that several vendors use, and those of tokens that no account takes.
_GENERAL = LazyPattern(r"sk[-_]|pk[-_]|tid=|eyJ|github_pat_|gh[a-z]_|glpat-|xox[a-z]-|rk_|r8_")
#: Behind such a beginning, the name of a file that holds one: `xai-key`, `hf_token`.
_HOLDER = LazyPattern(
    r"[a-z]+[-_](?:(?:api|key|keys|apikey|tokens?|secrets?|credentials?|auth|login)[-_.]?)+\Z"
)
#: A file, whatever its name: `my-project-1a2b3c4d5e6f.json`.
_SUFFIX = LazyPattern(
    r"\.(?:json|ya?ml|toml|txt|env|ini|conf|cfg|key|pem|token|secret|sh|py|exe|cmd|bat|ps1)\Z", re.I
)
#: Somewhere in the file system, not a bare name.
_PLACE = LazyPattern(r"[~/\\]|\.{1,2}[/\\]|[A-Za-z]:[/\\]")
_UUID = LazyPattern(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z", re.I)
#: What a token is made of; what is between two such runs ends one.
_RUN = LazyPattern(r"[A-Za-z0-9_+.~-]+=*")
_PIECES = LazyPattern(r"[^A-Za-z0-9]+")
#: One word, or several that are written as one, perhaps numbered; a number such as a date.
_WORD = LazyPattern(r"(?:(?:[A-Z]?[a-z]{2,15}|[A-Z]{2,15}){1,4}|[A-Za-z]{1,3})?[0-9]{0,8}\Z")
_VOWEL = LazyPattern(r"[aeiouy]", re.I)
#: Shorter ones are recognised by their beginning only.
_LONG = 20
#: A label this long without a word in it is no label.
_LONG_LABEL = 32
#: Behind such a beginning, what may still be somebody's word: `sk-work`.
_REST = 6


def hidden(text: str) -> str:
    """Return the name *text* without what is likely a token in it."""
    if _is_whole(text):
        return NOT_SHOWN
    return _RUN.sub(lambda found: NOT_SHOWN if _is_likely(found[0]) else found[0], text)


def remedy(name: str, otherwise: str) -> str:
    """Return what to do about *name*, which names nothing: *otherwise* if it can be a name."""
    return otherwise if hidden(name) == name else UNPASTE


def is_token(text: str) -> bool:
    """Say whether *text* is a token rather than anybody's name for an account."""
    text = text.strip()
    if _begins_as_one(text):
        return True
    return (
        len(text) >= _LONG_LABEL
        and _RUN.fullmatch(text) is not None
        and not _UUID.match(text)
        and any(len(piece) >= _LONG and not _is_word(piece) for piece in _PIECES.split(text))
    )


def _is_whole(text: str) -> bool:
    """Say whether all of *text* is one token: base64 has slashes, which divide paths."""
    text = text.strip()
    if text.startswith("1//") and _is_likely(text.replace("/", "")):
        return True
    is_one = not re.search(r"\s", text) and text.isascii() and not _PLACE.match(text)
    return is_one and "://" not in text and "$" not in text and _is_likely(text)


def _is_likely(word: str) -> bool:
    if _begins_as_one(word):
        return True
    if len(word) < _LONG or _SUFFIX.search(word):
        return False
    pieces = [piece for piece in _PIECES.split(word) if piece]
    spoken = sum(len(piece) for piece in pieces if _VOWEL.search(piece))
    return not all(map(_is_word, pieces)) or spoken < len(word) / 2


def _begins_as_one(word: str) -> bool:
    """Say whether *word* begins as tokens do, and goes on as they do."""
    form, general = form_of(word), _GENERAL.match(word)
    if form is None and general is None:
        return False
    begins = max(found.end() for found in (form and form.pattern.match(word), general) if found)
    if begins >= _LONG:
        return True  # the form says all of it
    stem = _SUFFIX.sub("", word)
    if _HOLDER.match(stem):
        return False
    rest = len(stem) - begins
    # A suffix makes it a file, unless it is far too long for one.
    return rest >= (_LONG if stem != word else _REST)


def _is_word(piece: str) -> bool:
    return bool(_WORD.match(piece)) and (
        piece.isdigit() or len(piece) <= 5 or bool(_VOWEL.search(piece))
    )

"""A token where a name belongs: `{file: sk-...}`, `label: sk-...`.

Names stand in messages, in the log and on the admin pages; tokens must not. So every name
somebody wrote is shown through `hidden`, which leaves what reads as a path, a command or
words as it is. A mistake costs a name in a message, never an account; only a label is
refused for it (`is_token`, which is stricter), because a label is shown everywhere.
"""

from __future__ import annotations

import re

from account_pool.core.wrong import NOT_SHOWN
from account_pool.providers.forms import form_of

PASTED = "a token seems to be pasted there"
#: What there is to do about a name that is none.
UNPASTE = f"{PASTED}: write it as the value of token itself"

#: Beginnings that several vendors use, and those of tokens that no account takes.
_GENERAL = re.compile(r"sk[-_]|pk[-_]|tid=|eyJ|github_pat_|gh[a-z]_|glpat-|xox[a-z]-|rk_|r8_")
#: Behind such a beginning, the name of a file that holds one: `xai-key`, `hf_token`.
_HOLDER = re.compile(
    r"[a-z]+[-_](?:(?:api|key|keys|apikey|tokens?|secrets?|credentials?|auth|login)[-_.]?)+\Z"
)
#: A file, whatever its name: `my-project-1a2b3c4d5e6f.json`.
_SUFFIX = re.compile(
    r"\.(?:json|ya?ml|toml|txt|env|ini|conf|cfg|key|pem|token|secret|sh|py|exe|cmd|bat|ps1)\Z", re.I
)
#: Somewhere in the file system, not a bare name.
_PLACE = re.compile(r"[~/\\]|\.{1,2}[/\\]|[A-Za-z]:[/\\]")
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z", re.I)
#: What a token is made of; what is between two such runs ends one.
_RUN = re.compile(r"[A-Za-z0-9_+.~-]+=*")
_PIECES = re.compile(r"[^A-Za-z0-9]+")
#: One word, or several that are written as one, perhaps numbered; a number such as a date.
_WORD = re.compile(r"(?:(?:[A-Z]?[a-z]{2,15}|[A-Z]{2,15}){1,4}|[A-Za-z]{1,3})?[0-9]{0,8}\Z")
_VOWEL = re.compile(r"[aeiouy]", re.I)
#: Shorter ones are told by their beginning only.
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
    pieces = _PIECES.split(text)
    return (
        len(text) >= _LONG_LABEL
        and _RUN.fullmatch(text) is not None
        and not _UUID.match(text)
        and any(len(piece) >= _LONG and not _is_word(piece) for piece in pieces)
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

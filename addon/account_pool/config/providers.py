"""The `providers:` section: more hosts for built-in providers, and providers of the user's own.

Also how hosts and names of providers are read wherever accounts.yaml has one.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Any

from msgspec import Struct, field

from account_pool.config.document import Document, Loc
from account_pool.config.problems import MISSING, REMEDIES
from account_pool.config.shapes import PARTS, AccountShape, ProviderShape, read_shape
from account_pool.core.meaning import LazyPattern
from account_pool.core.wrong import NOT_SHOWN, Wrong, shown, shown_key, unknown
from account_pool.credentials.copilot import DEFAULT_TOKEN_URL, ExchangeSettings
from account_pool.credentials.http import check_token_url
from account_pool.providers.base import HostRule, Provider
from account_pool.providers.definition import add_hosts, build, with_limits
from account_pool.providers.definition_reader import KEYS, WIRE_KEYS, read_definition
from account_pool.providers.registry import BASES
from account_pool.providers.token_forms import PASTED, is_token


def host_rule(text: str) -> HostRule:
    """Return the rule *text* stands for. Raises Wrong."""
    if "://" in text:
        # Otherwise the colon of the scheme reads as that of a port.
        raise Wrong(f"{shown(text)} is an address", "write its host or host:port only")
    if "." not in text and is_token(text):
        raise Wrong(f"{NOT_SHOWN} is not a host; {PASTED}", "write host or host:port")
    try:
        return HostRule.parse(text)
    except ValueError as error:
        # Its text is "'<what was written>': <what is accepted>".
        why = str(error).removeprefix(f"{text!r}: ")
        raise Wrong(f"{shown(text)} is not a host", why) from None


#: Names of vendors, products and models, and the providers they may mean, likeliest first;
#: only those that there are get named.
_MEANT: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("github", "gh"), ("copilot", "github-models")),
    **dict.fromkeys(("github-copilot", "copilot-chat"), ("copilot",)),
    **dict.fromkeys(
        ("google", "google-ai", "googleai", "google-genai", "ai-studio", "aistudio"),
        ("gemini",),
    ),
    **dict.fromkeys(("code-assist", "gemini-code-assist"), ("gemini-cli",)),
    "claude": ("claude-code", "anthropic"),
    **dict.fromkeys(("claude-max", "claude-pro"), ("claude-code",)),
    "claude-api": ("anthropic",),
    "chatgpt": ("codex", "openai"),
    **dict.fromkeys(("chatgpt-plus", "openai-codex", "codex-cli"), ("codex",)),
    "gpt": ("openai", "codex"),
    **dict.fromkeys(("grok", "x-ai", "x.ai"), ("xai",)),
    **dict.fromkeys(("azure-openai", "azureopenai", "microsoft"), ("azure",)),
    **dict.fromkeys(("pplx", "sonar"), ("perplexity",)),
    "open-router": ("openrouter",),
    **dict.fromkeys(("together-ai", "togetherai"), ("together",)),
    "fireworks-ai": ("fireworks",),
    "mistralai": ("mistral",),
    **dict.fromkeys(("glm", "zhipu", "bigmodel", "z.ai", "z-ai"), ("zai",)),
    "kimi": ("kimi-code", "moonshot"),
    "kimi-for-coding": ("kimi-code",),
    **dict.fromkeys(("qwen", "alibaba", "bailian"), ("dashscope",)),
    **dict.fromkeys(("doubao", "volcengine", "byteplus"), ("ark",)),
    **dict.fromkeys(("zen", "opencode"), ("opencode-zen",)),
    "ollama": ("ollama-cloud",),
    "weights-and-biases": ("wandb",),
    **dict.fromkeys(("one-api", "newapi"), ("new-api",)),
}
#: Spellings of an API that cannot be pooled, by the name it is known by here.
UNSWAPPABLE_NAMES: Mapping[str, str] = {
    **dict.fromkeys(("vertexai", "vertex-ai", "google-vertex"), "vertex"),
    **dict.fromkeys(("aws", "amazon", "aws-bedrock", "amazon-bedrock"), "bedrock"),
}


def unknown_provider(name: str, known: Collection[str]) -> str:
    """Return the remedy for *name*, which is none of *known*: who was meant, or all of them."""
    meant = [provider for provider in _MEANT.get(name.strip().lower(), ()) if provider in known]
    return f"did you mean {' or '.join(meant)}?" if meant else unknown(name, sorted(known))


#: The built-in provider that exchanges the tokens of its accounts.
EXCHANGING = "copilot"
#: What a provider without `like` is like, unless its name looks like a misspelt one.
DEFAULT_BASE = "openai"

#: Their credential is more than a key in one place.
_NOT_MOVED = frozenset({EXCHANGING, "codex", "claude-code", "gemini-cli", "azure"})

_NAME = LazyPattern(r"[a-z0-9][a-z0-9._-]*\Z")
#: Keys an account has anyway.
_TAKEN = frozenset(AccountShape.__struct_fields__) - {
    "account_id",
    "organization",
    "openai_project",
    "project",
}


class _Notes(Struct):
    """Tells a document what is wrong with a definition in it."""

    document: Document

    def problem(self, loc: Loc, wrong: str, remedy: str) -> None:
        self.document.problem(loc, wrong, remedy)

    def place(self, loc: Loc) -> str:
        return f"{self.document.path.name}:{self.document.line(loc)}"

    def has_shape(self, loc: Loc, kind: str, value: Any) -> bool:
        return read_shape(self.document, loc, PARTS[kind], value) is not None


class Providers(Struct):
    """The providers of a configuration by name, and how some exchange the tokens of their accounts.

    *unclear* are names that had problems; their accounts cannot be judged.
    """

    known: ChainMap[str, Provider]
    exchanges: dict[str, ExchangeSettings]
    unclear: set[str] = field(default_factory=set)


def read_providers(document: Document, built_in: Mapping[str, Provider]) -> Providers:
    """Return all providers; what is wrong is noted in *document*."""
    exchanges = {EXCHANGING: ExchangeSettings()} if EXCHANGING in built_in else {}
    # Not copied: a built-in provider is made when it is asked for.
    providers = Providers(ChainMap({}, built_in), exchanges)  # type: ignore[arg-type] # only the first is written to
    section = document.data.get("providers")
    if section is None:
        return providers
    if not isinstance(section, dict):
        document.problem(
            ("providers",), "is not a mapping", "write `name: {hosts: [...]}` below it"
        )
        return providers
    reader = _Reader(document, built_in, providers)
    for name, value in section.items():
        reader.take(name, value)
    return providers


class _Reader(Struct):
    """Reads one provider after the other into *result*."""

    document: Document
    built_in: Mapping[str, Provider]
    result: Providers

    def take(self, name: str, value: Any) -> None:
        document, loc = self.document, ("providers", name)
        before = len(document.problems)
        if not _NAME.match(name):
            document.problem(
                loc, "is not a name for a provider", "use lower-case letters, digits, - and . only"
            )
        elif is_token(name):
            document.problem(loc, f"is not a name; {PASTED}", "write one such as my-gateway")
        read_shape(document, loc, ProviderShape, value)
        if not isinstance(value, dict):
            self.result.unclear.add(name)
            return
        written: dict[str, Any] = value
        base = self._base(loc, name, written)
        hosts = self._hosts((*loc, "hosts"), written.get("hosts"))
        if name not in self.built_in and not written.get("hosts", True):
            document.problem((*loc, "hosts"), "the list is empty", REMEDIES["hosts"])
        if name not in self.built_in and "hosts" not in written:
            document.problem((*loc, "hosts"), MISSING, REMEDIES["hosts"])
        token_url = self._token_url((*loc, "token_url"), written.get("token_url"), base)
        self._own_keys(loc, name, written, base)
        definition = read_definition(_Notes(document), loc, written, _TAKEN)
        if base is None or len(document.problems) > before:
            self.result.unclear.add(name)
            return
        original = BASES.get(base) or self.built_in[base]
        is_built_in = name in self.built_in
        self.result.known[name] = (
            with_limits(add_hosts(original, hosts), definition)
            if is_built_in
            else build(original, name, hosts, definition)
        )
        if base == EXCHANGING:
            self.result.exchanges[name] = ExchangeSettings(token_url=token_url, hosts=hosts)

    def _own_keys(self, loc: Loc, name: str, written: dict[str, Any], base: str | None) -> None:
        """Note keys that cannot be said of this provider."""
        for key in (key for key in KEYS if key in written):
            if name in self.built_in:
                if key != "limits":
                    self.document.problem(
                        (*loc, key),
                        f"{name} is built in, and takes hosts and limits only",
                        f"define a provider of another name with like: {name}",
                    )
            elif key in WIRE_KEYS and base in _NOT_MOVED:
                self.document.problem(
                    (*loc, key), f"the credential of {base} has its own place", "remove this key"
                )

    def _base(self, loc: Loc, name: str, written: dict[str, Any]) -> str | None:
        """Return the built-in provider that *name* is or is like."""
        base = written.get("like")
        accepted = sorted({*self.built_in, *BASES})
        if name in self.built_in:
            if base is not None:
                self.document.problem((*loc, "like"), f"{name} is built in", "remove this line")
            return name
        if "like" not in written:
            # A name of one's own may hold that of a vendor: my-groq is no misspelling.
            likely = get_close_matches(name, accepted, n=1)
            if not likely or likely[0] in name:
                return DEFAULT_BASE
            self.document.problem(
                (*loc, "like"),
                f"is missing, and {shown_key(name)} is not built in",
                f"did you mean {likely[0]}? If not, add like: {DEFAULT_BASE}",
            )
        if not isinstance(base, str) or not base:
            return None
        if base not in accepted:
            self.document.problem(
                (*loc, "like"), "is not a built-in provider", unknown_provider(base, accepted)
            )
            return None
        return base

    def _hosts(self, loc: Loc, written: Any) -> tuple[HostRule, ...]:
        rules = []
        for i, text in enumerate(written if isinstance(written, list) else ()):
            if not isinstance(text, str) or not text:
                continue
            try:
                rules.append(host_rule(text))
            except Wrong as error:
                self.document.problem((*loc, i), error.wrong, error.remedy)
        return tuple(rules)

    def _token_url(self, loc: Loc, written: Any, base: str | None) -> str:
        if not isinstance(written, str) or not written:
            return DEFAULT_TOKEN_URL
        if base is not None and base != EXCHANGING:
            self.document.problem(loc, f"only {EXCHANGING} exchanges tokens", "remove this line")
            return DEFAULT_TOKEN_URL
        try:
            check_token_url(written)
        except ValueError as error:
            self.document.problem(
                loc, str(error), "write an https address; http is accepted to this machine only"
            )
            return DEFAULT_TOKEN_URL
        return written

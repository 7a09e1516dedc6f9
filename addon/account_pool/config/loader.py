"""Reads accounts.yaml: each account, and all of the file, or all that is wrong with it."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from msgspec import Struct, field
from msgspec.structs import replace

from account_pool.config.configuration import AtTheirHosts, Config
from account_pool.config.document import Document, Loc, name_of, read
from account_pool.config.options import BY_NAME, OptionValue
from account_pool.config.problems import MISSING, REMEDIES, UNKNOWN_KEY
from account_pool.config.providers import (
    UNSWAPPABLE_NAMES,
    Providers,
    host_rule,
    read_providers,
    unknown_provider,
)
from account_pool.config.shapes import COMPANIONS, TOKEN_KEYS, AccountShape, read_shape
from account_pool.core.account import Account, ModelFilter, normalise_label
from account_pool.core.credential import Secret
from account_pool.core.headroom import is_window
from account_pool.core.meaning import LazyPattern
from account_pool.core.wrong import NOT_SHOWN, Wrong, shown, unknown
from account_pool.credentials.files import FileSource
from account_pool.credentials.oauth import OAuthSource
from account_pool.credentials.sources import (
    AccountEntry,
    CredentialError,
    EnvSource,
    Source,
    ValueSource,
    is_variable,
)
from account_pool.providers import unswappable
from account_pool.providers.base import HTTPS_PORT, Provider
from account_pool.providers.registry import BUILT_IN
from account_pool.providers.token_forms import PASTED, is_token, remedy

SECTIONS = ("accounts", "providers", "pool")


def load(
    path: Path, environ: Mapping[str, str], known: Mapping[str, Provider] = BUILT_IN
) -> Config:
    """Read accounts.yaml. Raises ConfigError that lists all problems at once.

    Credentials in variables, files and the like are not read: that one cannot be had now is
    the state of its account. The sources keep *environ* and look into it later. *known* are the
    providers there are without the file.
    """
    document = _read_mapping(path)
    for key in document.data:
        if key not in SECTIONS:
            document.problem((key,), UNKNOWN_KEY, unknown(key, SECTIONS))
    providers = read_providers(document, known)
    accounts = read_accounts(document, providers, environ, path.parent)
    options = _read_options(document)
    document.require_right()
    return Config(
        accounts=accounts,
        providers=AtTheirHosts(providers.known, accounts),
        exchanges=providers.exchanges,
        options=options,
        path=path,
        described=providers.known,
        warnings=(*_warnings(path, accounts), *_without_port(path, document.data.get("providers"))),
    )


def load_providers(path: Path) -> Mapping[str, Provider]:
    """Return the providers *path* knows, the built-in ones included; reads no credential.

    Raises ConfigError that lists what is wrong with its `providers:`.
    """
    document = _read_mapping(path)
    known = read_providers(document, BUILT_IN).known
    document.require_right()
    return known


def _read_mapping(path: Path) -> Document:
    document = read(path)
    if not isinstance(document.data, dict):
        document.problem((), "the file is not a mapping", "start it with `accounts:`")
        document.require_right()
    return document


def with_added(config: Config, path: Path, environ: Mapping[str, str]) -> Config:
    """Return *config* with the accounts in *path*. Raises ConfigError.

    They were added while the proxy ran, where accounts.yaml cannot hold them: a file of the
    same form beside the state database. Of two with the same name, the one of *config* counts.
    """
    added = load(path, environ, config.described or BUILT_IN)
    known = {entry.account.key for entry in config.accounts}
    new = tuple(entry for entry in added.accounts if entry.account.key not in known)
    accounts = (*config.accounts, *new)
    return replace(
        config,
        accounts=accounts,
        providers=AtTheirHosts(config.described, accounts),
        exchanges={**added.exchanges, **config.exchanges},
        warnings=(*config.warnings, *added.warnings),
    )


def _read_options(document: Document) -> dict[str, OptionValue]:
    options: dict[str, OptionValue] = {}
    section = document.data.get("pool")
    if section is None:
        return options
    if not isinstance(section, dict):
        document.problem(("pool",), "is not a mapping", "write `option: value` below it")
        return options
    for name, value in section.items():
        try:
            options[name] = _read_option(name, value)
        except Wrong as error:
            document.problem(("pool", name), error.wrong, error.remedy)
    return options


def _read_option(name: str, value: object) -> OptionValue:
    option = BY_NAME.get(name) or BY_NAME.get(name.removeprefix("pool_"))
    if option is None:
        accepted = [o.name for o in BY_NAME.values() if not o.not_in_file]
        raise Wrong("unknown option", unknown(name, accepted))
    if option.name != name:
        raise Wrong("the prefix pool_ is for the command line", f"write {option.name}")
    if option.not_in_file:
        raise Wrong(f"cannot be set here: {option.not_in_file}", "remove this line")
    return option.check(value)


def _without_port(path: Path, section: Any) -> Iterator[str]:
    """Warn of this machine's name without a port: a service of one's own is rarely at 443."""
    for name, provider in (section or {}).items():
        for host in (provider or {}).get("hosts", ()):
            if host.strip().lower() in ("localhost", "127.0.0.1", "[::1]"):
                yield (
                    f"{path}: providers.{name}.hosts: {host} is port {HTTPS_PORT} of this machine; "
                    f"write the port that the service uses, such as {host}:8000"
                )


def _warnings(path: Path, accounts: Sequence[AccountEntry]) -> Iterator[str]:
    """Warn when tokens stand in a file that others may read; `cp` makes such files.

    Not an error as for credential files: most of these files hold only references.
    """
    sources = [entry.source for entry in accounts]
    tokens = [
        s
        for s in sources
        if isinstance(s, OAuthSource) or (isinstance(s, ValueSource) and not s.refers)
    ]
    mode = 0
    with suppress(OSError):  # it may be gone by now
        mode = path.stat().st_mode
    if tokens and os.name == "posix" and mode & 0o044:
        yield (
            f"{path} holds tokens and can be read by other users; "
            f"run: chmod 600 {shlex.quote(str(path))}"
        )


# -- the `accounts:` section: each account, its provider, its label and its credential

_KEYS = frozenset(AccountShape.__struct_fields__)
_TOKEN_HOW = REMEDIES["token"]
_OAUTH_HOW = "write {oauth: {refresh_token: ..., access_token: ..., expires_at: ...}}"
#: RFC 9110, section 5.5.
_HEADER_VALUE = LazyPattern(r"[\x20-\x7e]*\Z")
_PERCENT = LazyPattern(r"([0-9]{1,2}(?:\.[0-9]+)?)\s*%")
_ALL_MODELS = ModelFilter()
_ACCOUNTS_HOW = "list accounts below it, each beginning with `- provider: ...`"


def read_accounts(
    document: Document, providers: Providers, environ: Mapping[str, str], directory: Path
) -> tuple[AccountEntry, ...]:
    """Return all accounts; what is wrong is noted in *document*.

    Relative paths of credential files are relative to *directory*.
    """
    loc: Loc = ("accounts",)
    written = document.data.get("accounts")
    if "accounts" not in document.data:
        document.problem(loc, MISSING, "add it and " + _ACCOUNTS_HOW)
    elif written is None:
        document.problem(loc, "has no value", _ACCOUNTS_HOW)
    elif not isinstance(written, list):
        document.problem(loc, f"{shown_kind(written)} is not a list", _ACCOUNTS_HOW)
    elif not written:
        document.problem(loc, "the list is empty", _ACCOUNTS_HOW)
    reader = _Reader(document, providers, environ, directory)
    values = written if isinstance(written, list) else []
    entries = [reader.entry((*loc, i), value) for i, value in enumerate(values)]
    return tuple(entry for entry in entries if entry is not None)


def shown_kind(value: Any) -> str:
    """Return what kind of value *value* is; nothing of a text, which may be a secret."""
    return "text" if isinstance(value, str) else shown(value)


class _Reader(Struct):
    """Reads one account after the other and remembers their labels.

    Every check looks at what was written, not at the result of the one before, so that
    all problems of an account come at once.
    """

    document: Document
    providers: Providers
    environ: Mapping[str, str]
    directory: Path
    first: dict[tuple[str, str], Loc] = field(default_factory=dict)

    def entry(self, loc: Loc, value: Any) -> AccountEntry | None:
        document = self.document
        if not isinstance(value, dict):
            document.problem(
                loc, f"{shown_kind(value)} is not an account", "write its keys as a mapping"
            )
            return None
        before = len(document.problems)
        provider = self._provider((*loc, "provider"), value.get("provider"))
        known = self.providers.known.get(provider)
        own = self._own_companions(loc, value, known)
        shaped = {key: part for key, part in value.items() if key not in own} if own else value
        shape = read_shape(document, loc, AccountShape, shaped)
        label = self._label((*loc, "label"), provider, value.get("label"))
        # Most of ten thousand have none of these.
        if models := value.get("models"):
            self._models((*loc, "models"), models)
        if host := value.get("host"):
            self._host((*loc, "host"), host, known)
        written = value.get("reserve")
        reserve = self._reserve((*loc, "reserve"), written, known) if written else {}
        self._companions(loc, value, known)
        source = self._source((*loc, "token"), value, known, label)
        if len(document.problems) > before or shape is None or source is None or known is None:
            return None
        account = _account(shape, provider, label, own, reserve)
        return AccountEntry(account, source, known, document.line(loc))

    def _provider(self, loc: Loc, written: Any) -> str:
        """Return the name of the provider, "" when it is not known."""
        if not isinstance(written, str) or not written:
            return ""
        name = written.strip().lower()
        if name in self.providers.known:
            return name
        api = unswappable.named(UNSWAPPABLE_NAMES.get(name, name))
        if api is not None:
            self.document.problem(
                loc, f"{shown(written)} cannot be pooled: {api.why}", "remove this account"
            )
        # What is wrong with an unclear one was said where it is defined.
        elif name not in self.providers.unclear:
            remedy = unknown_provider(name, self.providers.known)
            self.document.problem(
                loc,
                f"{shown(written)} is not a provider",
                remedy if remedy.endswith("?") else f"{remedy}, or define it under providers",
            )
        return ""

    def _label(self, loc: Loc, provider: str, written: Any) -> str:
        if not isinstance(written, str) or not written:
            return ""
        try:
            label = normalise_label(written)
        except ValueError as error:
            if written.strip():
                self.document.problem(loc, str(error), REMEDIES["label"])
            else:
                self.document.problem(loc, "is empty", str(error))
            return ""
        if is_token(written):
            # A label is shown wherever its account is named, and goes into the state.
            self.document.problem(loc, f"{NOT_SHOWN} is not a name; {PASTED}", REMEDIES["label"])
            return ""
        other = self.first.setdefault((provider, label), loc)
        if provider and other != loc:
            self.document.problem(
                loc,
                f"{shown(written)} is the label of {name_of(other[:-1])} on line "
                f"{self.document.line(other)} as well (both read as {shown(label)})",
                "give each account of a provider a label of its own",
            )
        return label

    def _models(self, loc: Loc, written: Any) -> None:
        for i, glob in enumerate(written if isinstance(written, list) else ()):
            if glob == "!":
                self.document.problem((*loc, i), '"!" excludes nothing', 'write "!name*"')
            elif isinstance(glob, str) and is_token(glob):
                self.document.problem(
                    (*loc, i), f"{NOT_SHOWN} is not a model; {PASTED}", REMEDIES["models"]
                )

    def _reserve(self, loc: Loc, written: Any, known: Provider | None) -> dict[str, float]:
        """Return the share of each window that is left to the owner, 0 to 1."""
        shares: dict[str, float] = {}
        if not isinstance(written, dict) or known is None:
            return shares
        for name, share in written.items():
            if not is_window(str(name), known.windows):
                remedy = "remove it: its answers report no windows"
                if known.windows:
                    remedy = "write one of " + ", ".join(known.windows)
                self.document.problem((*loc, name), f"{known.name} has no such window", remedy)
            found = _PERCENT.fullmatch(share) if isinstance(share, str) else None
            if found is None:
                self.document.problem(
                    (*loc, name),
                    f"{shown(share)} is not a share of the window",
                    "write a percentage below 100, such as 15%",
                )
            else:
                shares[str(name)] = float(found[1]) / 100.0
        return shares

    def _host(self, loc: Loc, written: Any, known: Provider | None) -> None:
        """Check the host of an account: its credential follows it there."""
        if not isinstance(written, str) or not written:
            return
        try:
            rule = host_rule(written)
        except Wrong as error:
            self.document.problem(loc, error.wrong, error.remedy)
            return
        if rule.subdomains:
            self.document.problem(loc, "is not a single host", "write it without *")
            return
        # Its port is written here, so it may be any.
        if known and not any(one.matches(rule.host, one.port) for one in known.hosts):
            self.document.problem(
                loc,
                f"{shown(written)} is not a host of {known.name}",
                f"add it to providers.{known.name}.hosts",
            )

    def _own_companions(
        self, loc: Loc, value: dict[str, Any], known: Provider | None
    ) -> dict[str, str]:
        """Return the companions that only this provider of the user's own has."""
        names = (known.companions & value.keys()) - _KEYS if known else frozenset()
        own = {name: value[name] for name in sorted(names)}
        for name, written in own.items():
            if not isinstance(written, str) or not written:
                self.document.problem(
                    (*loc, name), f"{shown(written)} is not text", "write text, in quotes"
                )
        return own

    def _companions(self, loc: Loc, value: dict[str, Any], known: Provider | None) -> None:
        """Note companions that an account of this provider has no use for."""
        if known is None:
            return
        for name in sorted(known.companions & value.keys()):
            written = value[name]
            # A line break would let it write headers of its own.
            if isinstance(written, str) and not _HEADER_VALUE.match(written):
                self.document.problem(
                    (*loc, name),
                    "has a line break or a character outside ASCII in it",
                    "write it as the provider shows it",
                )
        for name in COMPANIONS:
            if name in value and name not in known.companions:
                accepted = [one for one in COMPANIONS if one in known.companions]
                self.document.problem(
                    (*loc, name),
                    f"does not belong to an account of {known.name}",
                    "its accounts may set " + ", ".join(accepted) if accepted else "remove it",
                )
        if known.host_per_account and "host" not in value:
            self.document.problem(
                (*loc, "host"),
                MISSING,
                f"write the name of the resource, such as {_host_like(known)}",
            )

    def _source(
        self, loc: Loc, value: dict[str, Any], known: Provider | None, label: str
    ) -> Source | None:
        if "token" not in value:
            return None
        name = known.name if known else ""
        is_login = isinstance(value["token"], dict) and "oauth" in value["token"]
        if is_login and not (name and label):
            return None  # what it lacks depends on them
        try:
            source = source_of(value["token"], self.environ, self.directory, (name, label))
            # Only what stands in this file: whether a variable, a file or a command has a
            # credential now is the state of one account, and changes while the proxy runs.
            if value.get("enabled") is not False and isinstance(source, ValueSource | OAuthSource):
                source.check_written()
        except (Wrong, CredentialError) as error:
            self.document.problem(loc, error.wrong, error.remedy)
            return None
        return source


def _host_like(provider: Provider) -> str:
    """Return a host an account of *provider* could have, for messages."""
    rule = provider.hosts[0]
    return f"my-resource.{rule.host}" if rule.subdomains else rule.host


def _account(
    shape: AccountShape,
    provider: str,
    label: str,
    own: Mapping[str, str],
    reserve: Mapping[str, float],
) -> Account:
    companions = {name: value for name in COMPANIONS if (value := getattr(shape, name)) is not None}
    if shape.deployments is not None:
        companions["deployments"] = json.dumps(shape.deployments, sort_keys=True)
    companions |= own
    return Account(
        provider=provider,
        label=label,
        priority=shape.priority,
        weight=shape.weight,
        models=ModelFilter(tuple(shape.models)) if shape.models else _ALL_MODELS,
        max_concurrent=shape.max_concurrent,
        min_interval_s=shape.min_interval,
        enabled=shape.enabled,
        account_type=shape.account_type,
        reserve=reserve,
        companions=companions,
    )


# -- the credential; no value of `token:` is ever repeated


def source_of(
    token: Any, environ: Mapping[str, str], directory: Path, account: tuple[str, str]
) -> Source:
    """Return the source *token* describes; paths are relative to *directory*.

    *account* is provider and label: the tokens of a login are kept by them. Raises Wrong,
    and CredentialError for a login that lacks something. Whether the source has a
    credential is not looked at.
    """
    if token == "":
        raise Wrong("is empty", _TOKEN_HOW)
    if isinstance(token, str):
        return ValueSource(Secret(token), environ)
    if token is None:
        raise Wrong("has no value", _TOKEN_HOW)
    if isinstance(token, bool | int | float):
        raise Wrong("is not text", "put it in quotes")
    if not isinstance(token, dict):
        raise Wrong("is a list, not one token", _TOKEN_HOW)
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
        raise Wrong("the value of oauth is not a mapping", _OAUTH_HOW)
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
        raise Wrong("names no source", _TOKEN_HOW)
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
            # Imported where one is named, as what runs commands.
            from account_pool.credentials.keychain import KeychainSource  # noqa: PLC0415

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


def _command(written: str, environ: Mapping[str, str]) -> Source:
    try:
        shlex.split(written)
    except ValueError:
        raise Wrong("the command has an unclosed quote", "close it") from None
    from account_pool.credentials.command import CommandSource  # noqa: PLC0415 - as above

    return CommandSource(written, environ)

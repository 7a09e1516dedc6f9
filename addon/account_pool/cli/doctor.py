"""`account-pool doctor`: what on this machine may keep the pool from working, and the remedy.

Each check is a function that yields findings; none of them changes anything. To another machine
only the state engine is asked how it is. `check --try` is what asks the providers.
"""

from __future__ import annotations

import os
import platform
import socket
import sys
import textwrap
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from shutil import get_terminal_size, which
from typing import Any, Literal, NamedTuple

from packaging.requirements import Requirement
from packaging.version import Version

from account_pool.cli import api
from account_pool.cli.accounts import (
    added_file,
    find,
    how_to_add,
    mitmproxy_config,
    read_accounts,
    read_main,
    state_of,
)
from account_pool.cli.certificates import BUNDLE_VARIABLES, EXTRA_VARIABLES, REMAKE, trusting
from account_pool.cli.check import is_open, look_at, look_at_file
from account_pool.cli.environment import (
    NO_PROXY_VARIABLES,
    PROXY_VARIABLES,
    is_proxy,
    without_hosts,
)
from account_pool.cli.output import Failed, note, show_json
from account_pool.cli.processes import HOST, Places, listeners, running_ports
from account_pool.cli.serve import plan_of, service_of
from account_pool.config.accounts_file import command, counted, shown
from account_pool.config.configuration import Config
from account_pool.config.notify import NOTIFY_SEND, FromVariable, program_of, read_targets
from account_pool.config.problems import ConfigError
from account_pool.config.review import review
from account_pool.core.account import AccountKey
from account_pool.core.browser import is_loopback
from account_pool.core.outcome import BY_HAND
from account_pool.core.wrong import Wrong
from account_pool.credentials.oauth import OAuthSource
from account_pool.credentials.sources import CredentialError, ValueSource
from account_pool.filesystem import expanded
from account_pool.providers.registry import BUILT_IN
from account_pool.store.pool_state import STATE_FILE, Fact, database_path, is_url
from account_pool.version import __version__

_PACKAGE = "mitmproxy-account-pool"
#: Days before the end of mitmproxy's certificate that are worth a word.
_SOON_S = 30 * 86400
#: Clocks and files may disagree by as much, seconds.
_CLOCK_S = 120
#: Longest wait for another proxy, seconds.
_CONNECT_S = 3.0
#: Credentials that are listed one by one.
_MAX_LISTED = 30
#: States of accounts that say nothing of a credential, or that there is none.
_WITHOUT = frozenset({"no_credential", "disabled", "off"})
#: Columns of a terminal below which each finding begins with a line of its own.
_NARROW = 60


class Finding(NamedTuple):
    """One line: what was looked at, and a `Fact` of it."""

    level: Literal["ok", "note", "bad"]
    about: str
    text: str
    remedy: str = ""


_ok, _note, _bad = (partial(Finding, level) for level in ("ok", "note", "bad"))


@dataclass(frozen=True, slots=True)
class Setup:
    """What is looked at: the user's files, environment, and the proxy of a port, as it answers."""

    places: Places
    accounts_file: Path | None
    environ: Mapping[str, str]
    wall_now: float
    proxy: api.Health | api.Missing


def diagnose(named: Path | None, port: int, environ: Mapping[str, str], *, as_json: bool) -> int:
    """Print what was found. Returns 1 where something does not work, else 0."""
    setup = Setup(Places.usual(port), named, environ, time.time(), api.probe_patiently(port))
    # Whoever reads a pipe wants a line a finding.
    width = get_terminal_size().columns if sys.stdout.isatty() else None
    findings: list[Finding] = []
    for check in CHECKS:
        try:
            new = list(check(setup))
        except Exception as error:  # one thing that cannot be looked at hides no other
            name = check.__name__.strip("_")
            why = str(error) if isinstance(error, Failed) else type(error).__name__
            new = [_note(name, f"could not be checked ({why})")]
        new = [one for one in new if not _is_known(one, findings)]
        findings += new
        if not as_json:
            for finding in new:
                print(as_text(finding, width), flush=True)
    if as_json:
        show_json({"findings": [finding._asdict() for finding in findings]})
    else:
        note(_summary(findings))
    return int(any(finding.level == "bad" for finding in findings))


def _is_known(finding: Finding, findings: Sequence[Finding]) -> bool:
    """Say whether one of *findings* is the same, as this machine and not the proxy sees it."""
    key, has_none, why = finding.text.partition(" has no credential: ")
    return bool(has_none) and any(f"{key}: {why}" in one.text for one in findings)


def as_text(finding: Finding, width: int | None) -> str:
    """Return *finding* as a line, or as what fits into *width* columns, its remedy apart."""
    head = f"{finding.level:<4}  {finding.about:<12}  "
    if width is None:
        return head + "; ".join(filter(None, (finding.text, finding.remedy)))
    # Where there is little room, the text stands below what it is about.
    indent = " " * (len(head) if width >= _NARROW else 6)
    lines = [_wrapped(finding.text, indent, width)]
    if finding.remedy:
        lines.append(_wrapped(f"-> {finding.remedy}", indent, width))
    whole = "\n".join(lines)
    return head + whole.removeprefix(indent) if width >= _NARROW else f"{head.rstrip()}\n{whole}"


def _wrapped(text: str, indent: str, width: int) -> str:
    return textwrap.fill(
        text,
        max(width - 1, len(indent) + 20),
        initial_indent=indent,
        subsequent_indent=indent,
        # Paths and commands are copied: only spaces divide.
        break_long_words=False,
        break_on_hyphens=False,
    )


def _summary(findings: Sequence[Finding]) -> str:
    bad, notes = (sum(f.level == level for f in findings) for level in ("bad", "note"))
    said = {0: "nothing is wrong", 1: "1 thing is wrong"}.get(bad, f"{bad} things are wrong")
    return said + {0: "", 1: "; 1 note"}.get(notes, f"; {notes} notes")


def _versions(_setup: Setup) -> Iterator[Finding]:
    here = f"{platform.python_implementation()} {platform.python_version()}, {platform.platform()}"
    yield _ok("python", f"{here}: {sys.executable}")
    yield _ok("account-pool", f"{__version__}: {Path(__file__).parents[1]}")
    try:
        requirements = metadata.requires(_PACKAGE) or ()
    except metadata.PackageNotFoundError:
        return  # a checkout that was never installed says nothing of what it needs
    for wanted in map(Requirement, requirements):
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        remedy = f"install this package again: pip install --upgrade {_PACKAGE}"
        try:
            version = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            yield _bad(wanted.name, "is not installed", remedy)
            continue
        if not wanted.specifier.contains(Version(version), prereleases=True):
            yield _bad(wanted.name, f"{version} is installed, {wanted.specifier} is needed", remedy)
        elif wanted.name == "mitmproxy":
            yield _ok("mitmproxy", version)


def _accounts(setup: Setup) -> Iterator[Finding]:
    try:
        found = find(setup.accounts_file, setup.environ)
        loaded = read_accounts(found, setup.environ)
    except ConfigError as error:
        for line in str(error).splitlines():
            yield _bad("accounts", line)
        return
    added = added_file(loaded)
    also = "" if added is None else f", and {shown(added)}"
    if not loaded.accounts:
        nowhere = "there is no accounts file, and no key in the environment"
        none = f"{shown(loaded.path)}{also} has none" if loaded.path else nowhere
        if loaded.path is None and isinstance(setup.proxy, api.Health) and setup.proxy.size:
            yield _ok("accounts", f"{none}; commands here use those of the proxy")
            return
        yield _bad("accounts", none, how_to_add())
        return
    yield _ok("accounts", counted(len(loaded.accounts), loaded.path) + also)
    for warning in loaded.warnings:
        yield _note("accounts", str(warning))
    reviewed = review(loaded, wall_now=setup.wall_now)
    file = shown(loaded.path) if loaded.path else "the environment"
    files = {entry.account.key: file for entry in loaded.accounts}
    if added is not None:
        main = (entry.account.key for entry in read_main(found, setup.environ).accounts)
        files = {**dict.fromkeys(files, shown(added)), **dict.fromkeys(main, file)}
    yield from _credentials(loaded, {problem.key for problem in reviewed.unreadable}, files)
    held = _held_by_proxy(setup) if reviewed.unreadable else frozenset()
    for problem in reviewed.unreadable:
        if problem.key in held:
            text = f"{problem.key}: {problem.wrong} here; the proxy that runs has it"
            yield _ok("credential", text)
        else:
            yield _bad("credential", str(problem))
    for problem in reviewed.notices:
        yield _note("credential", str(problem))
    yield from _notifications(setup, loaded)
    yield from _bypasses(setup, loaded)


def _notifications(setup: Setup, loaded: Config) -> Iterator[Finding]:
    """Say where notifications go, and what cannot be reached from here; none is sent."""
    for written in read_targets(str(loaded.options.get("notify", ""))):
        try:
            target = written.read(setup.environ) if isinstance(written, FromVariable) else written
        except Wrong as error:
            yield _note("notify", error.wrong, error.remedy)
            continue
        name = target.shown if target == written else f"{written.shown}: {target.shown}"
        program = program_of(target, sys.platform)
        if program is None or which(program, path=setup.environ.get("PATH")):
            yield _ok("notify", name)
            continue
        package = "libnotify-bin, or its like" if program == NOTIFY_SEND else "it"
        text = f"{name}: the program is not on the PATH"
        yield _note("notify", text, f"install {package}, or write its full path")


def _credentials(
    loaded: Config, unreadable: Collection[str], files: Mapping[AccountKey, str]
) -> Iterator[Finding]:
    """Say of each account that has a credential where that is, and how long it is good.

    *files*: where each account is written.
    """
    good = [entry for entry in loaded.accounts if str(entry.account.key) not in unreadable]
    for entry in good[:_MAX_LISTED]:
        is_written = isinstance(entry.source, ValueSource | OAuthSource)
        place = files[entry.account.key] if is_written else entry.source.describe()
        text = f"{entry.account.key}: {place}"
        if not entry.account.enabled:
            text += ", off (enabled: false)"
        else:
            with suppress(CredentialError):
                reading = entry.source.read_now()
                if reading is None:
                    text += ", read when the proxy starts"
                elif reading.expires_at is not None:
                    until = datetime.fromtimestamp(reading.expires_at, UTC)
                    text += f", until {until:%Y-%m-%d %H:%M} UTC"
        yield _ok("credential", text)
    if len(good) > _MAX_LISTED:
        more = f"{len(good) - _MAX_LISTED} more, which `{command()} list` shows"
        yield _ok("credential", more)


def _bypasses(setup: Setup, loaded: Config) -> Iterator[Finding]:
    """Variables of this shell that lead a tool past the pool, or the proxy in a circle."""
    own = setup.places.url
    names = {entry.account.key.provider for entry in loaded.accounts}
    providers = {**BUILT_IN, **loaded.providers}
    hosts = [rule for name in names if name in providers for rule in providers[name].hosts]
    for name in NO_PROXY_VARIABLES:
        value = setup.environ.get(name, "")
        if value and without_hosts(value, hosts) != value:
            text = f"{name} leads past the pool to hosts of your accounts"
            remedy = f"`{command()} run` takes that out for its tool; elsewhere correct it"
            yield _note("environment", text, remedy)
    for name in PROXY_VARIABLES:
        value = setup.environ.get(name, "")
        if value and not is_proxy(value, own):
            text = f"{name} names another proxy: tools of this shell do not use the pool"
            remedy = (
                f"`{command()} run` replaces it for its tool; if the proxy itself must use it, "
                'write mode: ["upstream:http://HOST:PORT"] into ~/.mitmproxy/config.yaml'
            )
            yield _note("environment", text, remedy)
    for name in (*BUNDLE_VARIABLES, *EXTRA_VARIABLES):
        value = setup.environ.get(name, "")
        if value and not expanded(value).is_file():
            text = f"{name} names {value}, which is not a file"
            yield _note("environment", text, "correct it or unset it")


def _proxy(setup: Setup) -> Iterator[Finding]:
    port, found = setup.places.port, setup.proxy
    if found is api.Missing.NOBODY:
        text = f"none at {HOST}:{port}"
        if others := running_ports(setup.places.confdir):
            text += f"; `{command()} run` has one at port {' and '.join(map(str, others))}"
        run, serve = f"`{command()} run`", f"`{command()} serve`"
        yield _ok("proxy", text, f"{run} starts one when it is needed, {serve} one that stays")
        return
    if isinstance(found, api.Missing) and found is not api.Missing.REFUSES:
        by = " and ".join(map(str, listeners(port)))
        said = f"{HOST}:{port} {found}" + (f": {by}" if by else "")
        shows = f" ({_who_listens(port)} shows which program it is)" if not by else ""
        yield _bad("proxy", said, f"end it{shows}, or use another --port")
        return
    try:
        value = api.ask(port, "/health")
    except api.NoAnswer as error:
        yield _bad("proxy", str(error))
        return
    if not isinstance(found, api.Health):
        return  # it takes requests by now
    version = value.get("version")
    source = shown(found.accounts_file) if found.accounts_file else "the environment"
    text = f"{HOST}:{port} serves accounts of {source}, version {version}"
    if version != __version__:
        yield _note("proxy", text, f"start it again: this is {__version__}")
    else:
        yield _ok("proxy", text)
    if (other := _other_file(setup, found.accounts_file)) is not None:
        text = f"it does not serve those of {shown(other)}, which commands here would use"
        remedy = f"end it and start it here, or use it as it is with `{command()} run --join`"
        yield _note("proxy", text, remedy)
    yield from _reachable(port)
    for target in value.get("notify", ()):
        if target.get("problem"):
            text = f"{target['target']}: the last notification did not arrive: {target['problem']}"
            yield _bad("notify", text, "the next one tries again")
    yield from _states(port)


def _reachable(port: int) -> Iterator[Finding]:
    """Say whether other machines may reach the proxy, and which other proxies of ours run."""
    open_to = [one.address for one in listeners(port) if not is_loopback(one.address)]
    if open_to:
        text = f"it listens at {' and '.join(open_to)}: other machines can reach it"
        remedy = (
            "without need, start it without --listen-host; with need, set proxyauth: "
            "pool_allow_remote lets everybody in"
        )
        yield _note("proxy", text, remedy)
    others = [one for one in running_ports(Places.usual(port).confdir) if one != port]
    if others:
        yield _ok("proxy", f"`{command()} run` has others at port {' and '.join(map(str, others))}")


def _upstream(setup: Setup) -> Iterator[Finding]:
    """Another proxy by which requests leave this machine: is it there?"""
    modes: Any = mitmproxy_config(str(setup.places.confdir)).get("mode") or ()
    if not modes:
        return
    from mitmproxy.proxy.mode_specs import ProxyMode, UpstreamMode  # noqa: PLC0415 - few have it

    for written in [modes] if isinstance(modes, str) else modes:
        mode = ProxyMode.parse(str(written))
        if not isinstance(mode, UpstreamMode):
            continue
        host, number = mode.address
        name = f"{host}:{number}"
        try:
            # Only whether it is there: nothing is sent.
            socket.create_connection((host, number), timeout=_CONNECT_S).close()
        except (OSError, UnicodeError) as error:
            why = getattr(error, "strerror", None) or str(error) or type(error).__name__
            text = f"requests leave by {name}, which cannot be reached ({why})"
            remedy = f"correct mode in {shown(setup.places.confdir / 'config.yaml')}"
            yield _bad("upstream", text, remedy)
        else:
            yield _ok("upstream", f"requests leave by {name}, which is there")


def _service(setup: Setup) -> Iterator[Finding]:
    """A proxy that is to run always."""
    plan = plan_of(setup.places.port, None, (), setup.environ)
    service = service_of(plan, setup.environ)
    if not service.file.exists():
        return
    text = f"{service.what}: {shown(service.file)}"
    if isinstance(setup.proxy, api.Health):
        yield _ok("service", text)
    else:
        remedy = f"see {service.log}; `{command()} service install` starts it anew"
        yield _bad("service", f"{text}, and no proxy answers", remedy)


def _who_listens(port: int) -> str:
    """Return the command that names the program which has *port*."""
    of_system = {"Linux": f"`ss -ltnp sport = :{port}`", "Windows": "`netstat -abno`"}
    return of_system.get(platform.system(), f"`lsof -nP -iTCP:{port} -sTCP:LISTEN`")


def _other_file(setup: Setup, served: Path | None) -> Path | None:
    """Return the accounts file that is found here, if the proxy's is another one."""
    try:
        here = find(setup.accounts_file, setup.environ).path
    except ConfigError:
        return None  # which is a finding of its own
    if here is None or served is None or not here.exists():
        return None
    return None if served.exists() and here.samefile(served) else here


def _held_by_proxy(setup: Setup) -> Collection[str]:
    """Return the accounts that have a credential in the proxy, where it serves from this file.

    Variables of the shell that started it need not be set in this one.
    """
    found = setup.proxy
    if not isinstance(found, api.Health) or found.accounts_file is None:
        return frozenset()
    if _other_file(setup, found.accounts_file) is not None:
        return frozenset()
    try:
        accounts = api.accounts(setup.places.port)["accounts"]
    except api.NoAnswer:
        return frozenset()
    return {one["key"] for one in accounts if one["state"] not in _WITHOUT}


def _states(port: int) -> Iterator[Finding]:
    try:
        value = api.accounts(port)
    except api.NoAnswer as error:
        yield _note("proxy", str(error))
        return
    for account in value["accounts"]:
        key, reason = account["key"], account["reason"]
        if account["state"] == "disabled" and reason == BY_HAND:
            remedy = f"`{command()} enable {key}` puts it back in use"
            yield _note("account", f"{key} was disabled {reason}", remedy)
        elif account["state"] == "disabled":
            remedy = f"`{command()} enable {key}` once that is mended"
            yield _bad("account", f"{key} is disabled: {reason}", remedy)
        elif account["state"] == "no_credential":
            yield _bad("account", f"{key} has no credential: {reason}")
    for warning in value.get("warnings", ()):
        yield _note("proxy", str(warning))


def _certificate(setup: Setup) -> Iterator[Finding]:
    path = setup.places.authority
    if not path.is_file():
        yield _ok("certificate", f"{shown(path)} does not exist yet; the first start makes it")
        return
    from cryptography import x509  # noqa: PLC0415 - takes a while

    remedy = REMAKE.format(shown(path.parent))
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except ValueError:
        yield _bad("certificate", f"{shown(path)} holds no certificate", remedy)
        return
    left_s = certificate.not_valid_after_utc.timestamp() - setup.wall_now
    until = f"{certificate.not_valid_after_utc:%Y-%m-%d}"
    if left_s < 0:
        text = f"{shown(path)} ended on {until}, unless this machine's clock is wrong"
        yield _bad("certificate", text, remedy)
    elif left_s < _SOON_S:
        yield _note("certificate", f"{shown(path)} ends on {until}", remedy)
    else:
        yield _ok("certificate", f"{shown(path)}, until {until}")
    key = path.with_name("mitmproxy-ca.pem")
    if key.is_file() and is_open(key):
        text = f"others can read {shown(key)}, and with it what your tools send"
        yield _bad("certificate", text, f"chmod 600 {key}")
    stores = trusting(path, setup.environ)
    text = (
        f"programs that use {' or '.join(stores)} trust it"
        if stores
        else f"no program trusts it by itself; `{command()} run` and `{command()} env` let their "
        "tools do so"
    )
    yield _ok("certificate", text)


def _clock(setup: Setup) -> Iterator[Finding]:
    """A clock that was never set is behind files that were written before."""
    places = setup.places
    files = (places.authority, places.confdir / STATE_FILE, Path(__file__))
    written_at, newest = max((path.stat().st_mtime, path) for path in files if path.exists())
    if written_at > setup.wall_now + _CLOCK_S:
        written = datetime.fromtimestamp(written_at, UTC)
        now = datetime.fromtimestamp(setup.wall_now, UTC)
        text = (
            f"this machine's clock says {now:%Y-%m-%d %H:%M} UTC, but {shown(newest)} was written "
            f"{written:%Y-%m-%d %H:%M} UTC"
        )
        remedy = "set it: certificates are refused, and resets and logins end at the wrong time"
        yield _bad("clock", text, remedy)


_KEPT_IN = {"engine": "an engine", "memory": "memory", "file": "a file"}


def _used_store(setup: Setup) -> Mapping[str, Any]:
    """Return what the proxy that runs says of what keeps its state; nothing without one."""
    if isinstance(setup.proxy, api.Health):
        with suppress(api.NoAnswer):  # of an older version
            store = api.ask(setup.places.port, "/proxies").get("store")
            return store if isinstance(store, dict) and isinstance(store.get("kind"), str) else {}
    return {}


def _of_state(fact: Fact) -> Finding:
    return Finding(fact.level, "state", fact.text, fact.remedy)


def _state(setup: Setup) -> Iterator[Finding]:
    confdir, loaded = setup.places.confdir, None
    with suppress(ConfigError):  # which is a finding of its own
        loaded = read_accounts(find(setup.accounts_file, setup.environ), setup.environ)
    option, used = state_of(loaded, str(confdir)), _used_store(setup)
    path = database_path(option, str(confdir))
    kind = "engine" if is_url(option) else "memory" if path is None else "file"
    if problem := used.get("problem"):
        yield _bad("state", f"the proxy that runs: {problem}")
    if (its := used.get("kind", kind)) != kind:
        # Named on its command line, perhaps: what is found here says nothing of it.
        at = f" at {used['server']}" if used.get("server") else ""
        where = f"{_KEPT_IN.get(its, its)}{at}"
        text = f"the proxy that runs keeps it in {where}; here {_KEPT_IN[kind]} is configured"
        remedy = "start it again if that was changed, or name it in accounts.yaml and not by --set"
        yield _note("state", text, remedy)
        return
    for fact in look_at(option, str(confdir)):
        yield _of_state(fact)
    if is_url(option):
        return
    if confdir.exists() and not confdir.is_dir():
        text = f"{shown(confdir)} is not a directory, and no proxy can start"
        yield _bad("state", text, "move it away, or name another directory as confdir")
        return
    if not confdir.exists():
        above = next(path for path in confdir.absolute().parents if path.exists())
        if not (above.is_dir() and os.access(above, os.W_OK)):
            text = f"{shown(confdir)} does not exist, and cannot be made in {shown(above)}"
            yield _bad("state", text, "make it, or name another directory as confdir")
            return
        yield _ok("state", f"{shown(confdir)} does not exist yet")
        return
    if not os.access(confdir, os.W_OK):
        text = f"{shown(confdir)} cannot be written, and nothing is kept over a restart"
        yield _bad("state", text, f"correct its owner and mode (700): {confdir}")
    if path is None:
        yield _note("state", "pool_state is memory: nothing is kept over a restart")
    else:
        yield from map(_of_state, look_at_file(path))


CHECKS: tuple[Callable[[Setup], Iterator[Finding]], ...] = (
    _versions,
    _accounts,
    _proxy,
    _service,
    _upstream,
    _certificate,
    _clock,
    _state,
)

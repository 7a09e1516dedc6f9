"""`account-pool doctor`: what on this machine may keep the pool from working, and the remedy.

Each check is a function that yields findings; none of them changes anything or asks another
machine. `check --try` is what asks the providers.
"""

from __future__ import annotations

import json
import os
import platform
import sqlite3
import ssl
import stat
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.version import Version

from account_pool.cli import api
from account_pool.cli.check import added_file, read_accounts
from account_pool.cli.environment import (
    NO_PROXY_VARIABLES,
    PROXY_VARIABLES,
    without_hosts,
)
from account_pool.cli.places import HOST, STATE_FILE, Places
from account_pool.cli.which_file import find, how_to_add, mitmproxy_config
from account_pool.config import Config, ConfigError
from account_pool.config.accounts_file import command, shown
from account_pool.config.review import review
from account_pool.providers.registry import BUILT_IN
from account_pool.version import __version__

_PACKAGE = "mitmproxy-account-pool"
#: Days before the end of mitmproxy's certificate that are worth a word.
_SOON_S = 30 * 86400


class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    #: works, and may surprise
    NOTE = "note"
    #: something does not work
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was looked at, how it is, and what to do where it is not well."""

    level: Level
    about: str
    text: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Patient:
    """What is looked at: the user's files, environment, and the proxy of a port."""

    places: Places
    accounts_file: Path | None
    environ: Mapping[str, str]
    wall_now: float


def diagnose(named: Path | None, port: int, environ: Mapping[str, str], *, as_json: bool) -> int:
    """Print what was found. Returns 1 where something does not work, else 0."""
    patient = Patient(Places.usual(port), named, environ, time.time())
    findings: list[Finding] = []
    for check in CHECKS:
        try:
            new = list(check(patient))
        except Exception as error:  # one thing that cannot be looked at hides no other
            name = check.__name__.strip("_")
            new = [Finding(Level.NOTE, name, f"could not be looked at ({type(error).__name__})")]
        findings += new
        if not as_json:
            for finding in new:
                print(_line(finding), flush=True)
    if as_json:
        print(json.dumps({"findings": [asdict(finding) for finding in findings]}, indent=2))
    return int(any(finding.level is Level.BAD for finding in findings))


def _line(finding: Finding) -> str:
    remedy = f"; {finding.remedy}" if finding.remedy else ""
    return f"{finding.level:<4}  {finding.about:<12}  {finding.text}{remedy}"


def _versions(_patient: Patient) -> Iterator[Finding]:
    here = f"{platform.python_implementation()} {platform.python_version()}, {platform.platform()}"
    yield Finding(Level.OK, "python", f"{here}: {sys.executable}")
    yield Finding(Level.OK, "account-pool", f"{__version__}: {Path(__file__).parents[1]}")
    for wanted in map(Requirement, metadata.requires(_PACKAGE) or ()):
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        remedy = f"install this package again: pip install --upgrade {_PACKAGE}"
        try:
            version = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            yield Finding(Level.BAD, wanted.name, "is not installed", remedy)
            continue
        if not wanted.specifier.contains(Version(version), prereleases=True):
            text = f"{version} is installed, {wanted.specifier} is needed"
            yield Finding(Level.BAD, wanted.name, text, remedy)
        elif wanted.name == "mitmproxy":
            yield Finding(Level.OK, "mitmproxy", version)


def _accounts(patient: Patient) -> Iterator[Finding]:
    try:
        found = find(patient.accounts_file, patient.environ)
        loaded = read_accounts(found, patient.environ)
    except ConfigError as error:
        for line in str(error).splitlines():
            yield Finding(Level.BAD, "accounts", line)
        return
    where = shown(loaded.path) if loaded.path else "the environment; there is no file"
    if (added := added_file(loaded)) is not None:
        where += f", and {shown(added)}"
    number = len(loaded.accounts)
    if not number:
        yield Finding(Level.BAD, "accounts", f"none, of {where}", how_to_add())
        return
    noun = "account" if number == 1 else "accounts"
    yield Finding(Level.OK, "accounts", f"{number} {noun} of {where}")
    for warning in loaded.warnings:
        yield Finding(Level.NOTE, "accounts", str(warning))
    reviewed = review(loaded, wall_now=patient.wall_now)
    for problem in reviewed.unreadable:
        yield Finding(Level.BAD, "credential", str(problem))
    for problem in reviewed.notices:
        yield Finding(Level.NOTE, "credential", str(problem))
    yield from _ways_round(patient, loaded)


def _ways_round(patient: Patient, loaded: Config) -> Iterator[Finding]:
    """Variables of this shell that lead a tool past the pool, or the proxy in a circle."""
    own = patient.places.url
    names = {entry.account.key.provider for entry in loaded.accounts}
    providers = {**BUILT_IN, **loaded.providers}
    hosts = [rule for name in names if name in providers for rule in providers[name].hosts]
    for name in NO_PROXY_VARIABLES:
        value = patient.environ.get(name, "")
        if value and without_hosts(value, hosts) != value:
            text = f"{name} leads past the pool to hosts of your accounts"
            remedy = f"`{command()} run` takes that out for its tool; elsewhere correct it"
            yield Finding(Level.NOTE, "environment", text, remedy)
    for name in PROXY_VARIABLES:
        value = patient.environ.get(name, "")
        if value and value.rstrip("/") != own:
            text = f"{name} names another proxy: tools of this shell do not use the pool"
            remedy = f"`{command()} run` replaces it for its tool"
            yield Finding(Level.NOTE, "environment", text, remedy)


def _proxy(patient: Patient) -> Iterator[Finding]:
    port = patient.places.port
    found = api.probe(port)
    if found is api.Missing.NOBODY:
        text = f"none at {HOST}:{port}"
        remedy = (
            f"`{command()} run` starts one when it is needed, `{command()} serve` one that stays"
        )
        yield Finding(Level.OK, "proxy", text, remedy)
        return
    if not isinstance(found, api.Health):
        said = {
            api.Missing.SILENT: "accepts connections and does not answer",
            api.Missing.OTHER: "is used by something that is not the pool",
        }[found]
        remedy = "end it, or use another --port"
        yield Finding(Level.BAD, "proxy", f"{HOST}:{port} {said}", remedy)
        return
    try:
        value = api.ask(port, "/health")
    except api.NoAnswer as error:
        yield Finding(Level.BAD, "proxy", str(error))
        return
    version = value.get("version")
    source = shown(found.accounts_file) if found.accounts_file else "the environment"
    text = f"{HOST}:{port} serves {found.size} accounts of {source}, version {version}"
    if version != __version__:
        remedy = f"start it again: this is {__version__}"
        yield Finding(Level.NOTE, "proxy", text, remedy)
    else:
        yield Finding(Level.OK, "proxy", text)
    yield from _states(port)


def _states(port: int) -> Iterator[Finding]:
    try:
        value = api.accounts(port)
    except api.NoAnswer as error:
        yield Finding(Level.NOTE, "proxy", str(error))
        return
    for account in value["accounts"]:
        if account["state"] in {"disabled", "no_credential"}:
            why = f"{account['key']} is {account['state'].replace('_', ' ')}: {account['reason']}"
            remedy = f"`{command()} enable {account['key']}` once it is mended"
            disabled = account["state"] == "disabled"
            yield Finding(Level.BAD, "account", why, remedy if disabled else "")
    for warning in value.get("warnings", ()):
        yield Finding(Level.NOTE, "proxy", str(warning))


def _certificate(patient: Patient) -> Iterator[Finding]:
    path = patient.places.authority
    if not path.is_file():
        text = f"{shown(path)} does not exist yet; the first start makes it"
        yield Finding(Level.OK, "certificate", text)
        return
    from cryptography import x509  # noqa: PLC0415 - takes a while

    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    left_s = certificate.not_valid_after_utc.timestamp() - patient.wall_now
    until = f"{certificate.not_valid_after_utc:%Y-%m-%d}"
    remedy = f"remove {shown(path.parent)}/mitmproxy-ca* and start the proxy again"
    if left_s < 0:
        yield Finding(Level.BAD, "certificate", f"{shown(path)} ended on {until}", remedy)
    elif left_s < _SOON_S:
        yield Finding(Level.NOTE, "certificate", f"{shown(path)} ends on {until}", remedy)
    else:
        yield Finding(Level.OK, "certificate", f"{shown(path)}, until {until}")
    key = path.with_name("mitmproxy-ca.pem")
    if key.is_file() and _is_open(key):
        text = f"others can read {shown(key)}, and with it what your tools send"
        yield Finding(Level.BAD, "certificate", text, f"chmod 600 {key}")
    der = ssl.PEM_cert_to_DER_cert(path.read_text(encoding="ascii"))
    trusted = der in ssl.create_default_context().get_ca_certs(binary_form=True)
    text = (
        "the system's store trusts it"
        if trusted
        else f"the system's store does not trust it, which `{command()} run` and `env` do not need"
    )
    yield Finding(Level.OK, "certificate", text)


def _state(patient: Patient) -> Iterator[Finding]:
    confdir = patient.places.confdir
    if not confdir.exists():
        yield Finding(Level.OK, "state", f"{shown(confdir)} does not exist yet")
        return
    if not os.access(confdir, os.W_OK):
        text = f"{shown(confdir)} cannot be written, and nothing is kept over a restart"
        yield Finding(Level.BAD, "state", text, f"correct its owner and mode (700): {confdir}")
    option: Any = mitmproxy_config(str(confdir)).get("pool_state")
    path = Path(str(option)).expanduser() if option else confdir / STATE_FILE
    if str(option) == "memory:":
        yield Finding(Level.NOTE, "state", "pool_state is memory: nothing is kept over a restart")
        return
    if not path.exists():
        yield Finding(Level.OK, "state", f"{shown(path)} does not exist yet")
        return
    if _is_open(path):
        yield Finding(Level.BAD, "state", f"others can read {shown(path)}", f"chmod 600 {path}")
    if not os.access(path, os.W_OK):
        text = f"{shown(path)} cannot be written"
        yield Finding(Level.BAD, "state", text, f"correct its owner and mode (600): {path}")
        return
    # Only read: a proxy may be writing to it.
    uri = f"{path.absolute().as_uri()}?mode=ro"
    try:
        with closing(sqlite3.connect(uri, uri=True, timeout=5)) as database:
            (said,) = database.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.Error as error:
        said = str(error)
    if said == "ok":
        yield Finding(Level.OK, "state", f"{shown(path)}, {path.stat().st_size:,} bytes")
    else:
        remedy = "stop the proxy and move the file away; logins in it must log in again"
        yield Finding(Level.BAD, "state", f"{shown(path)} is damaged ({said})", remedy)


def _is_open(path: Path) -> bool:
    return os.name == "posix" and bool(stat.S_IMODE(path.stat().st_mode) & 0o077)


CHECKS: tuple[Callable[[Patient], Iterator[Finding]], ...] = (
    _versions,
    _accounts,
    _proxy,
    _certificate,
    _state,
)

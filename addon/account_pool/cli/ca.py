"""`account-pool ca`: mitmproxy's certificate: where it is, who trusts it, how to change that.

Nothing is changed here: stores belong to the system, and most need its administrator. `run` and
`env` need none of this, as they name the certificate to their tools alone.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import sqlite3
import ssl
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from account_pool.cli import bundle
from account_pool.cli.output import note, show_json
from account_pool.cli.places import Places

#: What programs ask that are not given anything else. On macOS many ask the Keychain instead.
SYSTEM = "OpenSSL's store" if sys.platform == "darwin" else "the system's store"
#: Longest time that a program of the system is waited for, seconds.
_PROGRAM_S = 10
_NAME = "mitmproxy"


@dataclass(frozen=True, slots=True)
class Store:
    """A store of certificates that are trusted, and how ours gets in and out.

    Attributes:
        name: who asks it.
        trust, remove: what to type.
        holds: whether it has ours; None: that cannot be seen.
    """

    name: str
    trust: str
    remove: str
    holds: bool | None = None


def show_authority(port: int, environ: Mapping[str, str], *, only_path: bool, as_json: bool) -> int:
    """Print where the certificate is, and how to trust it. Makes it if there is none. Returns 0."""
    path = Places.usual(port).authority
    bundle.make_authority(Places.usual(port))
    if only_path:
        print(path)
        return 0
    der = _der(path)
    fingerprint = hashlib.sha256(der).hexdigest().upper()
    known = list(stores(path, environ))
    if as_json:
        show_json(
            {
                "path": str(path),
                "sha256": fingerprint,
                "stores": [asdict(one) for one in known],
            }
        )
        return 0
    print(f"{path}\nSHA-256 {fingerprint}")
    for one in known:
        holds = {True: "trusts it", False: "does not trust it", None: "not known"}[one.holds]
        print(f"\n{one.name}: {holds}\n  trust   {one.trust}\n  remove  {one.remove}")
    note("`account-pool run` and `env` need none of this: they name it to their tools alone")
    note(f"whoever can read {path.with_name('mitmproxy-ca.pem')} can read what these programs send")
    return 0


def trusting(authority: Path, environ: Mapping[str, str]) -> list[str]:
    """Return the names of the stores that hold *authority*, as far as that can be seen."""
    return [store.name for store in stores(authority, environ) if store.holds]


def stores(authority: Path, environ: Mapping[str, str]) -> Iterator[Store]:
    """Yield the stores of this system, and the file this shell names, for *authority*."""
    if sys.platform == "darwin":
        yield _keychain(authority)
    elif os.name == "nt":
        yield _windows(authority)
    else:
        yield _linux(authority)
    yield from _nss(authority, Path.home())
    yield from _java(authority, environ)
    named = environ.get("SSL_CERT_FILE")
    if named:
        path = Path(named).expanduser()
        yield Store(
            "SSL_CERT_FILE of this shell",
            'eval "$(account-pool env)"',
            'eval "$(account-pool env --unset)"',
            bundle.holds(path, authority),
        )


def _der(authority: Path) -> bytes:
    return ssl.PEM_cert_to_DER_cert(authority.read_text(encoding="ascii"))


def _linux(authority: Path) -> Store:
    """The one of the distribution; which that is, its program tells."""
    path, holds = shlex.quote(str(authority)), bundle.is_in_system(authority)
    if shutil.which("update-ca-trust"):  # Fedora, RHEL, openSUSE; Arch with either
        copy = f"/etc/pki/ca-trust/source/anchors/{_NAME}.crt"
        if not Path(copy).parent.is_dir():
            copy = f"/etc/ca-certificates/trust-source/anchors/{_NAME}.crt"
        again = "update-ca-trust"
        clear = again
    else:  # Debian, Ubuntu, Alpine
        copy = f"/usr/local/share/ca-certificates/{_NAME}.crt"
        again, clear = "update-ca-certificates", "update-ca-certificates --fresh"
    return Store(
        SYSTEM,
        f"sudo cp {path} {copy} && sudo {again}",
        f"sudo rm {copy} && sudo {clear}",
        holds,
    )


def _keychain(authority: Path) -> Store:
    path = shlex.quote(str(authority))
    code = _code("security", "verify-cert", "-c", str(authority), "-p", "ssl", "-l", "-L", "-q")
    return Store(
        "the Keychain",
        f"security add-trusted-cert -k ~/Library/Keychains/login.keychain-db {path}",
        f"security remove-trusted-cert {path} && security delete-certificate -c {_NAME}",
        None if code is None else code == 0,
    )


def _windows(authority: Path) -> Store:
    # The thumbprint by which certutil names one.
    sha1 = hashlib.sha1(_der(authority), usedforsecurity=False).hexdigest()
    return Store(
        SYSTEM,
        f'certutil -user -addstore Root "{authority}"',
        f"certutil -user -delstore Root {sha1}",
        bundle.is_in_system(authority),
    )


def _nss(authority: Path, home: Path) -> Iterator[Store]:
    """Those of Firefox, and on Linux of Chromium, which ask no store of the system."""
    places = [(home / ".pki/nssdb", "Chromium")]
    profiles = (
        ".mozilla/firefox",
        "snap/firefox/common/.mozilla/firefox",
        "Library/Application Support/Firefox/Profiles",
        "AppData/Roaming/Mozilla/Firefox/Profiles",
    )
    for profile in profiles:
        found = sorted((home / profile).glob("*/cert9.db"))
        places += [(file.parent, f"Firefox ({file.parent.name})") for file in found]
    for folder, name in places:
        if not (folder / "cert9.db").is_file():
            continue
        database = shlex.quote(f"sql:{folder}")
        yield Store(
            name,
            f"certutil -d {database} -A -t C,, -n {_NAME} -i {shlex.quote(str(authority))}",
            f"certutil -d {database} -D -n {_NAME}",
            _is_in_nss(folder / "cert9.db", _der(authority)),
        )


def _is_in_nss(database: Path, der: bytes) -> bool | None:
    """Say whether *database* has the certificate; in a11, as PKCS #11 numbers CKA_VALUE."""
    try:
        # Only read, and not waited for: a browser may have it open.
        uri = f"{database.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=1)) as opened:
            (found,) = opened.execute(
                "SELECT count(*) FROM nssPublic WHERE a11 = ?", (der,)
            ).fetchone()
    except sqlite3.Error:
        return None
    return bool(found)


def _java(authority: Path, environ: Mapping[str, str]) -> Iterator[Store]:
    home = environ.get("JAVA_HOME")
    file = Path(home) / "lib/security/cacerts" if home else None
    if file is None or not file.is_file():
        return
    try:
        # Not encrypted in either of its formats, JKS and PKCS #12 without a password.
        holds = _der(authority) in file.read_bytes()
    except OSError:
        holds = None
    yield Store(
        "Java of JAVA_HOME",
        f"keytool -importcert -cacerts -alias {_NAME} -file {shlex.quote(str(authority))}",
        f"keytool -delete -cacerts -alias {_NAME}",
        holds,
    )


def _code(*command: str) -> int | None:
    """Return the exit code of a program of the system, None where it cannot be run."""
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=_PROGRAM_S)  # noqa: S603 - ours
        return done.returncode
    except (OSError, subprocess.SubprocessError):
        return None
